"""Decodes the windows of all calls of one model on one thread: every step advances all of them by a token.

The most urgent window that waits is encoded between two steps; less urgent ones wait while more urgent ones
are in work. Must not know the wire, files or utterances.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import math
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
from aimass_decoding.beam_batch import reordered
from aimass_serving.errors import DeadlineExceeded, Draining, ModelFailed, Overloaded
from numpy.typing import NDArray

from aimass_speech.attempt import BeamAttempt
from aimass_speech.config import SpeechConfig
from aimass_speech.features import Behind
from aimass_speech.phrase_search import PhraseAttempt, PhraseSearch
from aimass_speech.token_rules import TokenRules, log_softmax
from aimass_speech.transcript_tokenizer import TranscriptTokenizer
from aimass_speech.whisper_model import WhisperModel
from aimass_speech.window import Priority, Reading, WindowRequest, WindowResult
from aimass_speech.window_job import PHRASE_WIDTH, FailedAttempt, WindowJob, settle
from aimass_speech.word_alignment import AlignedWord, aligned_words, token_starts

logger = logging.getLogger(__name__)

_MORE_TOKENS = 16
"""Another reading is at most so much longer than the best."""


class WindowDecoder:
    """Owns the model's thread and its slots."""

    def __init__(
        self,
        model: WhisperModel,
        tokenizer: TranscriptTokenizer,
        *,
        name: str,
        config: SpeechConfig,
        permit: AbstractContextManager[None],
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._name = name
        self._config = config
        self._permit = permit
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._waiting: list[WindowJob] = []  # guarded by _changed
        self._active: list[WindowJob] = []  # the thread's own
        self._free = list(range(model.num_slots))
        self._is_closed = False
        self._is_draining = False
        self._num_urgent = 0
        self._thread = threading.Thread(target=self._loop, name=f"recognize-{name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def num_open_from(self, priority: Priority) -> int:
        """Return how many windows of at least this priority wait or are in work."""
        with self._changed:
            return sum(job.request.priority >= priority for job in (*self._waiting, *self._active))

    async def decode(self, request: WindowRequest) -> WindowResult:
        """Return what is said in a window. When cancelled, the window leaves at the next step.

        Raises `Overloaded`, `Draining`, `DeadlineExceeded`, `ModelFailed`.
        """
        done: asyncio.Future[WindowResult] = asyncio.get_running_loop().create_future()
        job = WindowJob(request, next(self._numbers), done, time.time_ns())
        with self._changed:
            if self._is_closed or self._is_draining:
                raise Draining
            if len(self._waiting) >= self._config.max_queue_windows and request.priority is Priority.FILE:
                raise Overloaded(retry_after_s=2.0, detail=f"{len(self._waiting)} windows wait for a decoder")
            self._waiting.append(job)
            self._changed.notify_all()
        return await done

    async def drain(self) -> None:
        """Take no new windows, and return when all that were taken are done."""
        self._is_draining = True
        with self._changed:
            waiting = [job.done for job in (*self._waiting, *self._active)]
        if waiting:
            await asyncio.wait(waiting)

    def close(self) -> None:
        """Stop the thread; windows that are not done fail. May be called twice."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        for job in (*self._waiting, *self._active):
            settle(job, Draining())

    # On the decoding thread.

    def _loop(self) -> None:
        while self._wait_for_work():
            self._drop_unwanted()
            job = self._admitted()
            if job is not None:
                self._guarded([job], functools.partial(self._begin, job))
            elif self._active:
                self._guarded(self._active, self._step)

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not (self._waiting or self._active or self._is_closed):
                self._changed.wait()
            return not self._is_closed

    def _drop_unwanted(self) -> None:
        """Let go of windows that were cancelled or whose deadline has passed."""
        now_s = time.monotonic()
        with self._changed:
            jobs = [*self._waiting, *self._active]
        for job in jobs:
            deadline_s = job.request.deadline_s
            if deadline_s is not None and deadline_s <= now_s and not job.done.done():
                settle(job, DeadlineExceeded(phase="queue" if job.attempt is None else "decode"))
                self._release(job)
            elif job.done.done():
                self._release(job)

    def _admitted(self) -> WindowJob | None:
        """Take the most urgent window off the queue, unless more urgent ones are in work or slots lack."""
        with self._changed:
            job = min(self._waiting, key=lambda job: job.urgency, default=None)
            busy = max((active.request.priority for active in self._active), default=Priority.FILE)
            if job is None or job.request.priority < busy or job.num_slots > len(self._free):
                return None
            self._waiting.remove(job)
            self._active.append(job)
        job.slots = [self._free.pop(0) for _ in range(job.num_slots)]
        return job

    def _guarded(self, jobs: Sequence[WindowJob], work: Callable[[], None]) -> None:
        """Run the model; a failure costs the windows it was run for, and no others."""
        try:
            with self._permit:
                work()
        except Exception as error:
            logger.exception("model %s failed on %d windows", self._name, len(jobs))
            for job in list(jobs):
                settle(job, ModelFailed(self._name, detail=f"its graph raised {type(error).__name__}"))
                self._release(job)

    def _release(self, job: WindowJob) -> None:
        with self._changed:
            for jobs in (self._waiting, self._active):
                if job in jobs:
                    jobs.remove(job)
        self._free = sorted([*self._free, *job.slots])
        job.slots = []

    def _begin(self, job: WindowJob) -> None:
        """Encode a window, listen for its language, and start its first attempt."""
        job.started_ns = time.time_ns()
        spec, request = self._model.spec, job.request
        job.memory = self._model.encode(
            request.samples,
            num_samples=self._window_samples(request),
            # Recordings are read as OpenAI's `transcribe` reads them; live windows are too short for zeros.
            behind=Behind.ZEROS if request.priority is Priority.FILE else Behind.SILENCE,
        )
        job.encoded_ns = time.time_ns()
        self._model.runner.set_memory(job.slots[0], job.memory)
        for slot in job.slots[1:]:
            self._model.runner.copy_memory(job.slots[0], slot)
        job.language = request.language
        if spec.is_multilingual and not job.language:
            self._detect_language(job)
        start = spec.start_ids(job.language or "en", is_translation=request.is_translation)
        marker = () if request.has_timestamps else (spec.no_timestamps,)
        previous = (spec.start_of_previous, *request.prompt_ids) if request.prompt_ids else ()
        job.start_ids = (*previous, *start, *marker)
        job.rules = TokenRules(spec, has_timestamps=request.has_timestamps, hot_phrases=request.hot_phrases)
        self._start_attempt(job)

    def _window_samples(self, request: WindowRequest) -> int:
        """Return how much audio the encoder sees: a full window, or less for a short live utterance."""
        spec, config = self._model.spec, self._config
        if request.priority is Priority.FILE or config.live_window_margin_s <= 0:
            return spec.window_samples
        rate = spec.mel.sample_rate_hz
        wanted_s = max(config.live_window_floor_s, len(request.samples) / rate + config.live_window_margin_s)
        return min(spec.window_samples, math.ceil(wanted_s) * rate)

    def _detect_language(self, job: WindowJob) -> None:
        spec = self._model.spec
        first = np.array([spec.start_of_transcript], np.int64)
        logits = self._model.runner.prefill(job.slots[0], first, start=0)
        codes = list(spec.languages)
        logprobs = log_softmax(logits[[spec.languages[code] for code in codes]].copy())
        best = int(logprobs.argmax())
        job.language, job.language_probability = codes[best], float(np.exp(logprobs[best]))

    def _start_attempt(self, job: WindowJob) -> None:
        """Begin at the next temperature."""
        job.num_attempts += 1
        job.drawn = []
        self._attempt(job)

    def _attempt(self, job: WindowJob) -> None:
        """Compute the tokens before the first that is chosen, in one slot, and a draft of those behind it;
        choose the first, and more as long as they are the draft's.
        """
        spec, request = self._model.spec, job.request
        self._widen(job, job.missing_draws)
        room = min(request.max_new_tokens, spec.max_positions - len(job.start_ids) - 1)
        attempt = job.attempt = job.free_attempt(end_of_text=spec.end_of_text, room=room)
        draft = job.draft(room=room)
        for guess, row in zip((*draft, None), self._prefill(job, draft), strict=True):
            parents = attempt.advance(row[np.newaxis])
            if parents is None or attempt.tokens[-1] != guess:
                break  # the steps from here on overwrite what the slot holds of the draft
        self._go_on(job, parents)

    def _widen(self, job: WindowJob, num_wanted: int) -> None:
        """Give a window more slots while there are free ones; what does not fit is drawn afterwards."""
        while len(job.slots) < num_wanted and self._free:
            job.slots.append(self._free.pop(0))
            self._model.runner.copy_memory(job.slots[0], job.slots[-1])

    def _prefill(self, job: WindowJob, more: Sequence[int] = ()) -> NDArray[np.float32]:
        """Return the logits [1 + n, vocab] after the start tokens and each of `more`; on the way, listen for
        speech.
        """
        spec, start_ids = self._model.spec, job.start_ids
        ids = np.array([*start_ids, *more], np.int64)
        place = len(start_ids) - 1 - start_ids[::-1].index(spec.start_of_transcript)
        logits = self._model.runner.prefill_all(job.slots[0], ids, start=0, first=place)
        job.no_speech = float(np.exp(log_softmax(logits[0])[spec.no_speech]))
        return logits[len(start_ids) - 1 - place :]

    def _step(self) -> None:
        """Advance every window in work by one token."""
        num_rows = max(slot for job in self._active for slot in job.slots) + 1
        tokens, lengths = np.zeros(num_rows, np.int64), np.zeros(num_rows, np.int64)
        for job in self._active:
            assert job.attempt is not None, "windows in work have begun"
            for slot, token in zip(job.slots, job.attempt.tokens, strict=False):
                tokens[slot] = token
                lengths[slot] = len(job.start_ids) + job.attempt.num_tokens - 1
        logits = self._model.runner.decode(tokens, lengths)  # [rows, vocab]
        for job in list(self._active):
            assert job.attempt is not None, "windows in work have begun"
            self._advance(job, logits[job.slots[: len(job.attempt.tokens)]])

    def _advance(self, job: WindowJob, logits: NDArray[np.float32]) -> None:
        assert job.attempt is not None, "windows in work have begun"
        self._go_on(job, job.attempt.advance(logits))

    def _go_on(self, job: WindowJob, parents: Sequence[int] | None) -> None:
        """Follow an attempt after it has chosen, to its next step or to what comes after it."""
        assert job.attempt is not None, "windows in work have begun"
        if parents is None:
            self._end_attempt(job, job.attempt.readings())
        else:
            self._follow(job, parents)

    def _follow(self, job: WindowJob, parents: Sequence[int]) -> None:
        """Let each output go on from the cache of its parent."""
        assert job.attempt is not None, "windows in work have begun"
        num_tokens = len(job.start_ids) + job.attempt.num_tokens - 1
        slots, copies = reordered(job.slots, list(parents))
        for source, target in copies:
            self._model.runner.copy_slot(source, target, num_tokens=num_tokens)
        job.slots = [*slots, *(slot for slot in job.slots if slot not in slots)]

    def _end_attempt(self, job: WindowJob, readings: list[Reading]) -> None:
        """Go on to what is still to be done for a window."""
        if job.phrases is not None:
            self._score_phrases(job)
        elif job.best is not None:
            self._finish(job, readings)
        else:
            job.drawn += readings if job.temperature > 0 else []
            if job.missing_draws > 0:
                self._attempt(job)
            else:
                self._judge(job, sorted(job.drawn, key=lambda one: -one.avg_logprob) or readings)

    def _judge(self, job: WindowJob, readings: list[Reading]) -> None:
        """Take an output, or try again at the next temperature."""
        if self._is_failure(job, readings):
            if job.num_attempts < len(job.request.temperatures):
                self._start_attempt(job)
                return
            readings = job.least_bad()
        best = readings[0]
        if job.request.phrases is not None:
            job.best = best
            job.phrases = PhraseSearch(
                job.request.phrases,
                end_of_text=self._model.spec.end_of_text,
                heard_logprob=best.logprob,
            )
            self._score_phrases(job)
        elif job.wants_others:
            job.best = best
            self._search_others(job, best)
        else:
            self._finish(job, readings)

    def _is_failure(self, job: WindowJob, readings: list[Reading]) -> bool:
        """Tell whether the best of an attempt's outputs fails the rules, and remember them if so."""
        ratio = compression_ratio(self._tokenizer.decode(readings[0].token_ids))
        is_failure = job.request.rules.is_failure(
            compression_ratio=ratio, avg_logprob=readings[0].avg_logprob, no_speech=job.no_speech
        )
        if is_failure:
            job.failures.append(FailedAttempt(readings, ratio))
        return is_failure

    def _search_others(self, job: WindowJob, best: Reading) -> None:
        """Search again, for the best readings that differ in words; the one that was taken stays first."""
        room = self._model.spec.max_positions - len(job.start_ids) - 1
        job.attempt = BeamAttempt(
            job.the_rules,
            end_of_text=self._model.spec.end_of_text,
            max_new_tokens=min(room, len(best.token_ids) + _MORE_TOKENS),
            num_beams=job.request.num_beams,
            same=self._tokenizer.spoken,
        )
        self._advance(job, self._prefill(job))

    def _score_phrases(self, job: WindowJob) -> None:
        """Follow the most probable beginnings that wait; finish when none can matter any more."""
        assert job.phrases is not None, "set before the first"
        self._widen(job, PHRASE_WIDTH)
        while (beginning := job.phrases.next_beginning()) is not None:
            job.attempt = PhraseAttempt(job.phrases, beginning, width=len(job.slots))
            parents = job.attempt.advance(self._prefill(job, beginning.token_ids)[-1:])
            if parents is not None:
                self._follow(job, parents)
                return
        self._finish(job, [])

    def _finish(self, job: WindowJob, readings: list[Reading]) -> None:
        if job.best is not None:
            spoken = self._tokenizer.spoken
            others = [other for other in readings if spoken(other.token_ids) != spoken(job.best.token_ids)]
            readings = [job.best, *others]
        words = self._words(job, readings[0]) if job.request.wants_words and self._model.can_align else ()
        result = WindowResult(
            reading=readings[0],
            alternatives=readings[1:],
            no_speech=job.no_speech,
            temperature=job.temperature,
            language=job.language or "en",
            language_probability=job.language_probability,
            words=words,
            phrase_logprobs=job.phrases.logprobs if job.phrases is not None else {},
            submitted_ns=job.submitted_ns,
            started_ns=job.started_ns,
            encoded_ns=job.encoded_ns,
            finished_ns=time.time_ns(),
        )
        settle(job, result)
        self._release(job)

    def _words(self, job: WindowJob, reading: Reading) -> Sequence[AlignedWord]:
        spec, text_ids = self._model.spec, self._tokenizer.text_ids(reading.token_ids)
        num_frames = len(job.request.samples) // spec.frame_samples
        if not text_ids or num_frames < 1 or job.memory is None:
            return ()
        start = spec.start_ids(job.language or "en", is_translation=job.request.is_translation)
        tokens = [*start, spec.no_timestamps, *text_ids, spec.end_of_text]
        scores = self._model.align(job.memory, tokens, num_frames=min(num_frames, job.memory.length))
        starts = token_starts(scores, first=len(start))
        probabilities = [
            float(np.exp(logprob))
            for token, logprob in zip(reading.token_ids, reading.logprobs, strict=True)
            if token < spec.end_of_text
        ]
        words = self._tokenizer.split_words(text_ids, language=job.language)
        return aligned_words(words, starts, probabilities)


def compression_ratio(text: str) -> float:
    """Return how many times shorter a text becomes when compressed: high for text that repeats itself."""
    content = text.encode()
    return len(content) / len(zlib.compress(content)) if content else 0.0
