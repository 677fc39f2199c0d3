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
from aimass_speech.hot_phrases import HotPhrases
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
from aimass_speech.whisper_spec import WhisperSpec
from aimass_speech.window import Priority, QualityRules, WindowRequest, WindowResult
from aimass_speech.window_decoder import WindowDecoder
from aimass_speech.word_alignment import AlignedWord

MAX_PROMPT_TOKENS = 223
"""Half of the decoder's positions, less one for the marker in front."""
_MAX_PROMPT_TEMPERATURE = 0.5
"""Text drawn above this temperature is no context for what follows: it may be the start of a loop."""
_MAX_GAP_S = 3.0
"""Speech with longer silence inside is cut there."""
_MIN_REST_S = 0.3
"""What is left of a stretch of speech when less than this is not worth a window."""


@dataclass(slots=True)
class _Progress:
    """What one stretch of speech has come to. Owned by the call."""

    segments: list[Segment] = field(default_factory=list)
    prompt_ids: list[int] = field(default_factory=list)
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
        known = sorted(self.spec.languages) or ["en"]
        if options.language and options.language not in known:
            expected = f"a language of this model ({len(known)} of them)" if len(known) > 9 else str(known)
            raise InvalidField(f"{options.field}.language", expected=expected, got=options.language)
        if options.is_translation and self.spec.translate is None:
            raise InvalidField(
                f"{options.field}.task", expected="TRANSCRIBE: this model does not translate", got="TRANSLATE"
            )

    def hot_phrases(self, options: RecognitionOptions) -> HotPhrases | None:
        """Return the tree of the phrases to favour, each as it stands and behind a space."""
        if not options.hot_phrases:
            return None
        spellings = (
            (self._tokenizer.encode(before + hot.phrase.strip()), hot.boost)
            for hot in options.hot_phrases
            for before in (" ", "")
        )
        return HotPhrases(spellings)

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
        room, hot_phrases = asyncio.Semaphore(self.config.file_windows), self.hot_phrases(options)

        request = self._request(options, hot_phrases, priority=Priority.FILE, deadline_s=deadline_s)

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
        hot_phrases: HotPhrases | None,
        *,
        priority: Priority,
        language: str = "",
    ) -> Transcript:
        """Return what is said in an utterance [n] of a live stream.

        A partial gets one attempt and no more tokens than fast speech has, so that it costs little.
        """
        request = self._request(options, hot_phrases, priority=priority, deadline_s=None)
        if priority is Priority.PARTIAL:
            length_s = len(samples) / self.spec.mel.sample_rate_hz
            request = replace(request, max_new_tokens=16 + int(10 * length_s), temperatures=(0.0,))
        if language:
            request = replace(request, language=language)
        region = SpeechSpan(0, len(samples))
        progress = await self._region(samples, region, options, request, uses_context=False)
        return self._transcript([progress], len(samples))

    def _request(
        self,
        options: RecognitionOptions,
        hot_phrases: HotPhrases | None,
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
            num_readings=1 if is_partial else options.num_alternatives,
            hot_phrases=hot_phrases,
            wants_words=options.has_words and not is_partial,
            priority=priority,
            deadline_s=deadline_s,
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
