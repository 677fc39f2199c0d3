"""Speaks for many requests with one voice, on one thread: whoever's listener is about to run dry, then first
chunks, then whoever's listener would run dry soonest.

Must not know the wire. A step is one sentence read or one chunk computed, so a cancelled request costs no
more than the step it is in. A request whose reader is slow waits, and holds a bounded number of chunks.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from aimass.model.v1.model_service_pb2 import ModelLimits
from aimass.model.v1.synthesis_spec_pb2 import SpeechSynthesisSpec
from aimass_serving.errors import (
    AimassError,
    DeadlineExceeded,
    Draining,
    InvalidField,
    ModelFailed,
    Overloaded,
)

from aimass_speech.config import SpeechConfig
from aimass_speech.synthesis.script import Piece, SynthesisOptions
from aimass_speech.synthesis.speaking import Chunk, Speaking, VoiceParts
from aimass_speech.synthesis.voice import UnspeakablePhrase

logger = logging.getLogger(__name__)

_MAX_WAITING_PIECES = 64
"""Sentences of a request that wait to be spoken; then no more of its text is read."""
_RETRY_AFTER_S = 2.0
_GUARD_STEPS = 3
"""Steps, as slow as the slowest of late, that a listener must have audio for; else no one else is begun."""
_FORGET_SHARE = 0.99
"""What is kept of the slowest step's time with each step that is faster."""


@dataclass(slots=True, eq=False)
class _Job:
    """A request in work. Guarded by the engine's lock, but for `speaking` in a step: it is the thread's."""

    speaking: Speaking
    arrival: int
    deadline_s: float | None
    wake: Callable[[], None]
    """Tells the event loop that something changed."""
    arrived: deque[Piece] = field(default_factory=deque)
    is_complete: bool = False
    """No more pieces will come."""
    chunks: deque[Chunk] = field(default_factory=deque)
    error: Exception | None = None
    is_done: bool = False
    is_dropped: bool = False
    first_audio_s: float | None = None

    def urgency(self, sample_rate_hz: int, *, guarded_until_s: float) -> tuple[int, float]:
        """Return what orders requests: those whose audio ends before `guarded_until_s`, those without audio
        by arrival, and the others by when their audio ends.
        """
        if self.first_audio_s is None:
            return 1, self.arrival
        dry_at_s = self.first_audio_s + self.speaking.num_samples / sample_rate_hz
        return (0 if dry_at_s < guarded_until_s else 2), dry_at_s


class SpokenStream:
    """A request on the event loop: feed it pieces, and read its chunks."""

    def __init__(self, engine: SynthesisEngine, job: _Job, changed: asyncio.Event) -> None:
        self._engine, self._job, self._changed = engine, job, changed
        self.seed = job.speaking.seed

    async def feed(self, pieces: Iterable[Piece]) -> None:
        """Add pieces, once there is room for them."""
        for piece in pieces:
            while not self._engine.try_feed(self._job, piece):
                await self._changed.wait()
                self._changed.clear()

    def complete(self) -> None:
        """Say that no more pieces will come."""
        self._engine.complete(self._job)

    def fail(self, error: Exception) -> None:
        """End the request with an error, behind the chunks that are ready."""
        self._engine.fail(self._job, error)

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """Yield the audio until it is complete. Closing it early frees the work.

        Raises `DeadlineExceeded`, `ModelFailed`, `Draining`.
        """
        try:
            while (chunk := await self._next()) is not None:
                yield chunk
        finally:
            self.close()

    async def _next(self) -> Chunk | None:
        while True:
            chunk, is_done = self._engine.take(self._job)
            if chunk is not None:
                return chunk
            if is_done:
                return None
            await self._changed.wait()
            self._changed.clear()

    def close(self) -> None:
        """Free the request's place. Safe to repeat."""
        self._engine.drop(self._job)

    @property
    def num_samples(self) -> int:
        """Samples of the voice so far; all of them once the chunks have ended."""
        return self._job.speaking.num_samples

    @property
    def unpronounceable(self) -> list[str]:
        """Symbols that were left out so far."""
        return list(self._job.speaking.unpronounceable)


class SynthesisEngine:
    """One voice. Its thread owns the voice; requests are handed over under one lock."""

    def __init__(
        self,
        parts: VoiceParts,
        spec: SpeechSynthesisSpec,
        *,
        model: str,
        config: SpeechConfig,
        permit: AbstractContextManager[None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.parts = parts
        self.spec = spec
        self.config = config
        self._model = model
        self._permit = permit
        self._clock = clock
        self._changed = threading.Condition()
        self._jobs: list[_Job] = []  # guarded by _changed, as everything below
        self._num_arrived = 0
        self._is_draining = False
        self._is_closed = False
        self._emptied = asyncio.Event()
        self._slowest_step_s = 0.0  # the thread's own
        self._thread = threading.Thread(target=self._loop, name=f"speak-{model}", daemon=True)

    @property
    def limits(self) -> ModelLimits:
        """What a request must stay within."""
        return ModelLimits()

    @property
    def execution_provider(self) -> str:
        """ONNX Runtime execution provider that runs the model."""
        return self.parts.voice.execution_provider

    @property
    def num_open(self) -> int:
        """Requests in work, and those whose audio has not been read to its end."""
        with self._changed:
            return len(self._jobs)

    def start(self) -> None:
        """Start the compute thread."""
        self._thread.start()

    def check_options(self, options: SynthesisOptions) -> None:
        """Raise `InvalidField` for what this voice cannot do."""
        if options.pronunciations and not self.parts.reader.takes_phonemes:
            raise InvalidField(
                f"{options.field_name}.pronunciations", expected="none: this voice reads letters", got="some"
            )

    def check_phonemes(self, field_name: str) -> None:
        """Raise `InvalidField` when this voice takes no phonemes."""
        if not self.parts.reader.takes_phonemes:
            raise InvalidField(field_name, expected="text: this voice reads letters", got="phonemes")

    def open(self, options: SynthesisOptions, *, seed: int, deadline_s: float | None) -> SpokenStream:
        """Take a request. Its place is kept until its chunks end or it is closed.

        Raises `Overloaded`, `Draining`, `DeadlineExceeded`.
        """
        changed = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(changed.set)
            except RuntimeError:
                logger.debug("the event loop has ended: nobody waits for what was computed last")

        if deadline_s is not None and self._clock() >= deadline_s:
            raise DeadlineExceeded(phase="synthesis")
        with self._changed:
            if self._is_closed or self._is_draining:
                raise Draining
            if len(self._jobs) >= self.config.max_synthesis_streams:
                raise Overloaded(
                    retry_after_s=_RETRY_AFTER_S, detail=f"{len(self._jobs)} requests are spoken"
                )
            self._num_arrived += 1
            job = _Job(Speaking(self.parts, options, seed), self._num_arrived, deadline_s, wake)
            self._jobs.append(job)
            self._changed.notify_all()  # its deadline may be the next
        return SpokenStream(self, job, changed)

    async def drain(self) -> None:
        """Take no new requests, and return when all are spoken."""
        with self._changed:
            self._is_draining = True
            if not self._jobs:
                return
        await self._emptied.wait()

    def close(self) -> None:
        """Stop the thread; requests in work fail. May be called twice."""
        with self._changed:
            self._is_closed = True
            for job in self._jobs:
                _end(job, Draining())
            self._jobs.clear()
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    # For the streams, on the event loop.

    def try_feed(self, job: _Job, piece: Piece) -> bool:
        """Add a piece if there is room, or if nobody will speak it any more."""
        with self._changed:
            if job.is_done or job.is_dropped:
                return True
            if len(job.arrived) >= _MAX_WAITING_PIECES:
                return False
            job.arrived.append(piece)
            self._changed.notify_all()
            return True

    def complete(self, job: _Job) -> None:
        """Note that no more pieces will come."""
        with self._changed:
            job.is_complete = True
            self._changed.notify_all()

    def fail(self, job: _Job, error: Exception) -> None:
        """End a request whose text cannot be read on."""
        with self._changed:
            _end(job, error)

    def take(self, job: _Job) -> tuple[Chunk | None, bool]:
        """Return the next chunk, or None and whether there will be none. Raises what the work failed with."""
        with self._changed:
            if job.chunks:
                self._changed.notify_all()
                return job.chunks.popleft(), False
            if job.error is not None:
                raise job.error
            return None, job.is_done

    def drop(self, job: _Job) -> None:
        """Forget a request; the step it is in is its last."""
        with self._changed:
            job.is_dropped = True
            job.chunks.clear()
            if job in self._jobs:
                self._jobs.remove(job)
            if self._is_draining and not self._jobs:
                self._emptied.set()

    # On the compute thread.

    def _loop(self) -> None:
        while (job := self._next()) is not None:
            try:
                with self._permit:
                    chunk = self._step(job)
            except UnspeakablePhrase as error:
                self._fail(job, ModelFailed(self._model, detail=f"the graph gave {error}"))
            except AimassError as error:
                self._fail(job, error)
            except Exception as error:
                logger.exception("voice %s failed", self._model)
                self._fail(job, ModelFailed(self._model, detail=f"it raised {type(error).__name__}"))
            else:
                self._publish(job, chunk)

    def _step(self, job: _Job) -> Chunk | None:
        """Do a request's next piece of work, and note how long it took."""
        start_s = self._clock()
        try:
            return job.speaking.step()
        finally:
            took_s = self._clock() - start_s
            self._slowest_step_s = max(took_s, _FORGET_SHARE * self._slowest_step_s)

    def _next(self) -> _Job | None:
        """Wait for work; return the most urgent request that has some, or None when closed."""
        with self._changed:
            while not self._is_closed:
                self._end_expired()
                ready = [job for job in self._jobs if self._has_work(job)]
                if ready:
                    rate = self.parts.voice.sample_rate_hz
                    until_s = self._clock() + _GUARD_STEPS * self._slowest_step_s
                    job = min(ready, key=lambda job: job.urgency(rate, guarded_until_s=until_s))
                    self._hand_over(job)
                    return job
                self._changed.wait(self._next_deadline_s())
        return None

    def _has_work(self, job: _Job) -> bool:
        if job.is_done or len(job.chunks) >= self.config.max_synthesis_ahead:
            return False
        return bool(job.arrived) or not job.speaking.is_idle or job.is_complete

    @staticmethod
    def _hand_over(job: _Job) -> None:
        """Give the thread what has arrived."""
        is_full = len(job.arrived) >= _MAX_WAITING_PIECES
        if not job.speaking.pieces and job.arrived:
            job.speaking.pieces.append(job.arrived.popleft())
            if is_full:
                job.wake()

    def _publish(self, job: _Job, chunk: Chunk | None) -> None:
        with self._changed:
            if job.is_dropped:
                return
            if chunk is not None:
                if len(chunk.samples) and job.first_audio_s is None:
                    job.first_audio_s = self._clock()
                job.chunks.append(chunk)
            if job.is_complete and not job.arrived and job.speaking.is_idle:
                _end(job, None)
            elif chunk is not None:
                job.wake()

    def _fail(self, job: _Job, error: Exception) -> None:
        with self._changed:
            _end(job, error)

    def _end_expired(self) -> None:
        now = self._clock()
        for job in self._jobs:
            if not job.is_done and job.deadline_s is not None and job.deadline_s <= now:
                _end(job, DeadlineExceeded(phase="synthesis"))

    def _next_deadline_s(self) -> float | None:
        waiting = (job.deadline_s for job in self._jobs if not job.is_done)
        deadlines = [deadline_s for deadline_s in waiting if deadline_s is not None]
        return max(0.0, min(deadlines) - self._clock()) if deadlines else None


def _end(job: _Job, error: Exception | None) -> None:
    """End a request. Its chunks can still be read, and it keeps its place until its reader leaves."""
    if not job.is_done:
        job.error, job.is_done = error, True
        job.wake()
