"""Speech of any length to text: the long-form algorithm over windows, its prompts, its silences, its words.

Must not know the wire. One engine for each model; recordings and live streams share its decoder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from aimass.model.v1.model_service_pb2 import ModelLimits
from aimass_serving.errors import InvalidField, Overloaded
from numpy.typing import NDArray

from aimass_speech.config import SpeechConfig
from aimass_speech.phrase_match import PhraseMatch, matched
from aimass_speech.recognition import (
    Alternative,
    PhaseTimes,
    RecognitionOptions,
    Segment,
    Transcript,
    Word,
)
from aimass_speech.segmenter import TimedTokens, split_segments
from aimass_speech.speech_spans import SpeechSpan
from aimass_speech.transcript_tokenizer import TranscriptTokenizer
from aimass_speech.vocabulary import Vocabulary
from aimass_speech.whisper_spec import WhisperSpec
from aimass_speech.window import Priority, QualityRules, WindowRequest, WindowResult
from aimass_speech.window_decoder import WindowDecoder
from aimass_speech.word_alignment import AlignedWord

MAX_PROMPT_TOKENS = 223
"""Half of the decoder's positions, less one for the marker in front."""
_MAX_PROMPT_TEMPERATURE = 0.5
"""Text drawn above this temperature is no context for what follows: it may be the start of a loop."""
_FILE_DRAWS = 5
"""Outputs drawn at each temperature above 0 for a recording, as `transcribe` of OpenAI's whisper does."""
_MAX_GAP_S = 3.0
"""Speech with longer silence inside is cut there."""
_MIN_REST_S = 0.3
"""What is left of a stretch of speech when less than this is not worth a window."""


@dataclass(slots=True)
class _Progress:
    """What one stretch of speech has come to. Owned by the call."""

    segments: list[Segment] = field(default_factory=list)
    prompt_ids: list[int] = field(default_factory=list)
    token_ids: tuple[int, ...] = ()
    """Of the first window."""
    times: PhaseTimes = field(default_factory=PhaseTimes)
    language: str = ""
    language_probability: float = 1.0


class RecognitionEngine:
    """One recogniser. Lives on the event loop; its decoder has a thread of its own."""

    def __init__(
        self,
        decoder: WindowDecoder,
        tokenizer: TranscriptTokenizer,
        spec: WhisperSpec,
        *,
        config: SpeechConfig,
        execution_provider: str,
    ) -> None:
        self.decoder = decoder
        self.config = config
        self.spec = spec
        self._tokenizer = tokenizer
        self._execution_provider = execution_provider
        self._num_live = 0

    @property
    def limits(self) -> ModelLimits:
        """What a request must stay within."""
        return ModelLimits(max_tokens=self.spec.max_positions)

    @property
    def execution_provider(self) -> str:
        """ONNX Runtime execution provider that runs the model."""
        return self._execution_provider

    async def drain(self) -> None:
        """Take no new work and return when all work is done."""
        await self.decoder.drain()

    def close(self) -> None:
        """Stop at once. Blocking; may be called twice."""
        self.decoder.close()

    def is_busy(self, priority: Priority) -> bool:
        """Whether work of this priority is better left out now: others of it, or above it, are open."""
        return self.decoder.num_open_from(priority) >= self.config.max_early_windows

    @contextmanager
    def live_stream(self) -> Iterator[None]:
        """Count one live stream while it is open. Raises `Overloaded` when there are too many."""
        if self._num_live >= self.config.max_live_streams:
            raise Overloaded(retry_after_s=5.0, detail=f"{self._num_live} live streams are open")
        self._num_live += 1
        try:
            yield
        finally:
            self._num_live -= 1

    def check_options(self, options: RecognitionOptions) -> None:
        """Raise `InvalidField` for what this model cannot do."""
        if options.num_beams > self.config.max_slots:
            expected = f"1 to {self.config.max_slots}, the windows this server decodes together"
            raise InvalidField(f"{options.field}.beam_size", expected=expected, got=options.num_beams)
        known = sorted(self.spec.languages) or ["en"]
        if options.language and options.language not in known:
            expected = f"a language of this model ({len(known)} of them)" if len(known) > 9 else str(known)
            raise InvalidField(f"{options.field}.language", expected=expected, got=options.language)
        if options.is_translation and self.spec.translate is None:
            raise InvalidField(
                f"{options.field}.task", expected="TRANSCRIBE: this model does not translate", got="TRANSLATE"
            )

    def vocabulary(self, options: RecognitionOptions) -> Vocabulary:
        """Return a caller's phrases in the model's tokens."""
        return Vocabulary.of(options, self._tokenizer)

    async def recognize(
        self,
        samples: NDArray[np.float32],
        options: RecognitionOptions,
        *,
        spans: Sequence[SpeechSpan] | None,
        deadline_s: float | None = None,
    ) -> Transcript:
        """Return what is said in a recording [n].

        With `spans`, stretches of speech are decoded by themselves, several at a time; without, window after
        window with the text before as context. Raises `Overloaded`, `Draining`, `DeadlineExceeded`,
        `ModelFailed`.
        """
        whole = [SpeechSpan(0, len(samples))]
        regions = whole if spans is None else speech_regions(spans, self.spec)
        room, vocabulary = asyncio.Semaphore(self.config.file_windows), self.vocabulary(options)
        request = self._request(options, vocabulary, priority=Priority.FILE, deadline_s=deadline_s)
        if options.phrases:
            return await self._phrase(samples, options, request, _hull(regions))

        async def decode(region: SpeechSpan) -> _Progress:
            async with room:
                return await self._region(samples, region, options, request, uses_context=spans is None)

        done = []
        if self.spec.is_multilingual and not options.language and len(regions) > 1:
            done.append(await decode(regions.pop(0)))  # the language of the beginning is that of the rest
            request = replace(request, language=done[0].language)
        done += await _all_or_none([decode(region) for region in regions])
        return self._transcript(
            done, sum(span.end - span.start for span in (whole if spans is None else spans))
        )

    async def recognize_utterance(
        self,
        samples: NDArray[np.float32],
        options: RecognitionOptions,
        vocabulary: Vocabulary,
        *,
        priority: Priority,
        wants_words: bool,
        draft_ids: tuple[int, ...] = (),
    ) -> Transcript:
        """Return what is said in an utterance [n] of a live stream.

        A partial gets one attempt and no more tokens than fast speech has, so that it costs little. The draft
        is what an earlier reading heard, `Transcript.token_ids`: what is still heard costs little again.
        """
        request = self._request(options, vocabulary, priority=priority, deadline_s=None)
        request = replace(request, wants_words=wants_words, draft_ids=draft_ids)
        if priority is Priority.PARTIAL:
            length_s = len(samples) / self.spec.mel.sample_rate_hz
            request = replace(request, max_new_tokens=16 + int(10 * length_s), temperatures=(0.0,))
        region = SpeechSpan(0, len(samples))
        if options.phrases and priority is Priority.FINAL:
            return await self._phrase(samples, options, request, region)
        progress = await self._region(samples, region, options, request, uses_context=False)
        return self._transcript([progress], len(samples))

    def _request(
        self,
        options: RecognitionOptions,
        vocabulary: Vocabulary,
        *,
        priority: Priority,
        deadline_s: float | None,
    ) -> WindowRequest:
        """Return what all windows of a call have in common; they have no audio yet."""
        is_partial = priority is Priority.PARTIAL
        return WindowRequest(
            samples=np.zeros(0, np.float32),
            language=options.language,
            is_translation=options.is_translation,
            num_beams=1 if is_partial else options.num_beams,
            best_of=options.best_of or (_FILE_DRAWS if priority is Priority.FILE else 1),
            num_readings=1 if is_partial else options.num_alternatives,
            hot_phrases=vocabulary.hot_phrases,
            phrases=None if is_partial else vocabulary.phrases,
            wants_words=options.has_words,
            priority=priority,
            deadline_s=deadline_s,
        )

    async def _phrase(
        self,
        samples: NDArray[np.float32],
        options: RecognitionOptions,
        request: WindowRequest,
        region: SpeechSpan | None,
    ) -> Transcript:
        """Return which phrase is said in one stretch of speech, in a window of its own; None is no speech."""
        if region is None:
            return Transcript([], request.language, 0.0, 0, PhaseTimes(), PhraseMatch())
        if region.end - region.start > self.spec.window_samples:
            limit_s = self.spec.window_samples // self.spec.mel.sample_rate_hz
            got = f"{(region.end - region.start) / self.spec.mel.sample_rate_hz:.1f} s"
            raise InvalidField(
                "audio", expected=f"at most {limit_s} s of speech with {options.field}.phrases", got=got
            )
        own = samples[region.start : region.end]
        result = await self.decoder.decode(
            replace(request, samples=own, has_timestamps=False, temperatures=(0.0,))
        )
        match = self._match(result, options)
        segment = Segment(
            region.start, region.end, match.phrase or "", result.reading.avg_logprob, result.no_speech, 0.0
        )
        return Transcript(
            segments=[segment] if match.phrase else [],
            language=result.language,
            language_probability=result.language_probability,
            num_speech_samples=len(own),
            times=_times(result),
            match=match,
        )

    def _match(self, result: WindowResult, options: RecognitionOptions) -> PhraseMatch:
        reading = result.reading
        if QualityRules().is_silence(avg_logprob=reading.avg_logprob, no_speech=result.no_speech):
            return PhraseMatch()
        return matched(
            options.phrases,
            result.phrase_logprobs,
            heard=self._tokenizer.decode(reading.token_ids),
            heard_logprob=reading.logprob,
            threshold=options.phrase_threshold,
        )

    async def _region(
        self,
        samples: NDArray[np.float32],
        region: SpeechSpan,
        options: RecognitionOptions,
        request: WindowRequest,
        *,
        uses_context: bool,
    ) -> _Progress:
        """Decode window after window, each from where the one before was understood."""
        prompt = (
            self._tokenizer.encode(" " + options.initial_prompt.strip()) if options.initial_prompt else []
        )
        progress = _Progress(language=request.language)
        progress.prompt_ids += prompt
        place, rest = region.start, int(_MIN_REST_S * self.spec.mel.sample_rate_hz)
        while place < region.end and (place == region.start or region.end - place >= rest):
            window = samples[place : min(place + self.spec.window_samples, region.end)]
            result = await self.decoder.decode(
                replace(
                    request,
                    samples=window,
                    language=progress.language,
                    prompt_ids=tuple(progress.prompt_ids[-MAX_PROMPT_TOKENS:]),
                    draft_ids=request.draft_ids if place == region.start else (),
                )
            )
            place += self._take(result, progress, options, place=place, num_samples=len(window))
            if not uses_context or result.temperature > _MAX_PROMPT_TEMPERATURE:
                progress.prompt_ids = [] if uses_context else list(prompt)
        return progress

    def _take(
        self,
        result: WindowResult,
        progress: _Progress,
        options: RecognitionOptions,
        *,
        place: int,
        num_samples: int,
    ) -> int:
        """Add a window's segments; return how many samples of it were understood."""
        progress.times += _times(result)
        if not progress.language:
            progress.language, progress.language_probability = result.language, result.language_probability
        reading = result.reading
        progress.token_ids = progress.token_ids or reading.token_ids
        if QualityRules().is_silence(avg_logprob=reading.avg_logprob, no_speech=result.no_speech):
            return num_samples
        timed, advance = split_segments(reading.token_ids, self.spec, num_samples=num_samples)
        words = list(result.words)
        for piece in timed:
            own = _take_words(words, len(self._tokenizer.text_ids(piece.token_ids)))
            num_others = 0 if piece is not timed[0] else options.num_alternatives - 1
            segment = self._segment(piece, own, result, num_others, place=place)
            if segment is not None:
                progress.segments.append(segment)
                progress.prompt_ids += self._tokenizer.text_ids(piece.token_ids)
        return advance or num_samples

    def _segment(
        self,
        piece: TimedTokens,
        words: Sequence[AlignedWord],
        result: WindowResult,
        num_others: int,
        *,
        place: int,
    ) -> Segment | None:
        """Return a segment; None when it has no text."""
        text = self._tokenizer.decode(piece.token_ids)
        if not text.strip():
            return None
        frame = self.spec.frame_samples
        others = self._others(result, num_others)
        return Segment(
            start=place + piece.start,
            end=place + max(piece.end, piece.start),
            text=text,
            avg_logprob=result.reading.avg_logprob,
            no_speech=result.no_speech,
            temperature=result.temperature,
            words=[Word(w.text, place + w.start * frame, place + w.end * frame, w.confidence) for w in words],
            alternatives=others,
        )

    def _others(self, result: WindowResult, count: int) -> list[Alternative]:
        """Return other readings of a window, best first; the search gives such as differ in words."""
        return [
            Alternative(self._tokenizer.decode(other.token_ids), other.avg_logprob)
            for other in result.alternatives[:count]
        ]

    def _transcript(self, done: Sequence[_Progress], num_speech_samples: int) -> Transcript:
        times = sum((progress.times for progress in done), PhaseTimes())
        first = next((progress for progress in done if progress.language), None)
        return Transcript(
            segments=[segment for progress in done for segment in progress.segments],
            language=first.language if first else "",
            language_probability=first.language_probability if first else 0.0,
            num_speech_samples=num_speech_samples,
            times=times,
            token_ids=done[0].token_ids if done else (),
        )


def speech_regions(spans: Sequence[SpeechSpan], spec: WhisperSpec) -> list[SpeechSpan]:
    """Join stretches of speech into regions that fill a window, with no long silence inside.

    Audio between them stays where it is, so that times need no correction.
    """
    max_gap = int(_MAX_GAP_S * spec.mel.sample_rate_hz)
    regions: list[SpeechSpan] = []
    for span in spans:
        last = regions[-1] if regions else None
        fits = last is not None and span.end - last.start <= spec.window_samples
        if last is not None and fits and span.start - last.end <= max_gap:
            regions[-1] = SpeechSpan(last.start, span.end)
        else:
            regions.append(span)
    return regions


def _hull(regions: Sequence[SpeechSpan]) -> SpeechSpan | None:
    """Return the stretch from the first region to the last; None when there are none."""
    return SpeechSpan(regions[0].start, regions[-1].end) if regions else None


def _times(result: WindowResult) -> PhaseTimes:
    return PhaseTimes(
        queue_ms=(result.started_ns - result.submitted_ns) / 1e6,
        encode_ms=(result.encoded_ns - result.started_ns) / 1e6,
        decode_ms=(result.finished_ns - result.encoded_ns) / 1e6,
    )


def _take_words(words: list[AlignedWord], num_tokens: int) -> list[AlignedWord]:
    """Take the words off the front that `num_tokens` tokens of text make."""
    taken: list[AlignedWord] = []
    while words and num_tokens > 0:
        word = words.pop(0)
        num_tokens -= len(word.token_ids)
        taken.append(word)
    return taken


async def _all_or_none(work: Sequence[Coroutine[Any, Any, _Progress]]) -> list[_Progress]:
    """Return every result in order; the first error, or a cancel, ends all of the work."""
    tasks = [asyncio.ensure_future(item) for item in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
