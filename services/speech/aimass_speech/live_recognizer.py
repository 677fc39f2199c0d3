"""One live stream of speech to events: what is being said, and what was said, utterance by utterance.

Must not know the wire. Holds the audio of the open utterance and of those not decoded yet, and no more:
while finals lag, no audio is read, so that the caller's flow control slows the caller.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from aimass_serving.errors import AimassError
from numpy.typing import NDArray

from aimass_speech.agreement import Interim, LocalAgreement
from aimass_speech.audio import SAMPLE_RATE_HZ, StreamDecoder
from aimass_speech.detector import DetectorStream
from aimass_speech.endpointer import Began, Ended, Endpointer, EndpointEvent, Paused, WentOn
from aimass_speech.recognition import RecognitionOptions, Transcript
from aimass_speech.recognizer import RecognitionEngine
from aimass_speech.window import Priority

T = TypeVar("T")

_MAX_EVENTS = 256
"""Events that wait for a slow reader; then no audio is read."""
_MAX_WAITING_BYTES = 2**17
"""Audio that waits to be looked at; then no more is asked for."""
_MAX_FINALS = 3
"""Utterances of a stream that wait for their text; then no audio is read."""
_PIECE_SAMPLES = SAMPLE_RATE_HZ // 2
"""Audio that is looked at in one go, however long the messages are."""


@dataclass(frozen=True, slots=True)
class LiveOptions:
    """How a live stream is answered."""

    has_interims: bool = False
    has_interim_words: bool = False
    """Give words to interims too, where finals have them."""
    interim_every_s: float = 0.5
    """New audio between two readings of an open utterance."""
    min_interim_s: float = 0.35
    """Speech an utterance must have for its first reading."""
    retry_every_s: float = 0.15
    """New audio between two readings as long as they are empty."""
    idle_s: float = 3.0
    """An open utterance ends when nothing, not even a flush, was sent for so long."""


@dataclass(frozen=True, slots=True)
class FlushAsked:
    """The caller wants the open utterance finished now."""

    id: str


@dataclass(frozen=True, slots=True)
class InterimRead:
    """A reading of the open utterance."""

    utterance: int
    interim: Interim
    start: int
    """Sample of the stream at which the utterance's audio starts."""
    transcript: Transcript


@dataclass(frozen=True, slots=True)
class FinalRead:
    """The final reading of an utterance with text; with phrases to choose from, of every one."""

    utterance: int
    start: int
    end: int
    transcript: Transcript
    finalization_ms: float
    """From the decision that the utterance was over to this event."""


@dataclass(frozen=True, slots=True)
class SpeechChanged:
    """Speech began or ended at sample `at`."""

    is_begin: bool
    at: int


@dataclass(frozen=True, slots=True)
class FlushDone:
    """Everything before the flush has been answered."""

    id: str


LiveEvent = InterimRead | FinalRead | SpeechChanged | FlushDone


@dataclass(slots=True, eq=False)
class _Utterance:
    """An utterance from its beginning to its final. Owned by its stream."""

    number: int
    start: int
    speech: int
    """Sample at which the speech in it began."""
    agreement: LocalAgreement = field(default_factory=LocalAgreement)
    draft_ids: tuple[int, ...] = ()
    """Tokens of its last reading."""
    read_until: int = 0
    """Sample up to which it has been read for an interim."""
    partial: asyncio.Task[None] | None = None
    early: asyncio.Task[Transcript] | None = None
    """Its final, begun in a pause that may be its end."""
    is_over: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Closing:
    """An utterance that is over and has no text yet."""

    utterance: _Utterance
    end: int
    text: asyncio.Task[Transcript]
    decided_s: float


class LiveRecognizer:
    """One stream. Lives on the event loop; `events` may be called once."""

    def __init__(
        self,
        engine: RecognitionEngine,
        detector: DetectorStream,
        decoder: StreamDecoder,
        endpointer: Endpointer,
        options: RecognitionOptions,
        live: LiveOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._detector = detector
        self._decoder = decoder
        self._endpointer = endpointer
        self._options = options
        self._live = live
        self._clock = clock
        self._vocabulary = engine.vocabulary(options)
        self._audio = _AudioBuffer()
        self._utterance: _Utterance | None = None
        self._num_utterances = 0
        self._events: asyncio.Queue[LiveEvent | Exception | None] = asyncio.Queue(_MAX_EVENTS)
        self._closing: asyncio.Queue[_Closing | FlushDone | None] = asyncio.Queue(_MAX_FINALS)
        self._tasks: set[asyncio.Task[Any]] = set()

    async def events(self, requests: AsyncIterator[bytes | FlushAsked]) -> AsyncGenerator[LiveEvent, None]:
        """Yield what happens, until the requests end and all is answered. Close it when leaving early.

        Raises what the decoder raises for a final; a partial that fails is left out.
        """
        self._start(self._guarded(self._read(requests)))
        self._start(self._guarded(self._finish_utterances()))
        try:
            while (event := await self._events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    # Reading.

    async def _read(self, requests: AsyncIterator[bytes | FlushAsked]) -> None:
        inbox = _Inbox()
        self._start(inbox.fill(requests))
        async for request in _with_idle(inbox, lambda: self._live.idle_s if self._utterance else None):
            if isinstance(request, bytes):
                await self._take(self._decoder.feed(request))
                continue
            await self._finish_open()
            if isinstance(request, FlushAsked):
                await self._closing.put(FlushDone(request.id))
        await self._take(self._decoder.finish())
        await self._finish_open()
        await self._closing.put(None)

    async def _finish_open(self) -> None:
        """End the open utterance now. A detector still hears speech in the silence right behind it, which
        would begin an utterance of its own: it starts anew.
        """
        await self._follow(self._endpointer.finish(self._audio.end))
        self._detector.restart()

    async def _take(self, samples: NDArray[np.float32]) -> None:
        for start in range(0, len(samples), _PIECE_SAMPLES):
            piece = samples[start : start + _PIECE_SAMPLES]
            self._audio.append(piece)
            for probability in await self._detector.feed(piece):
                await self._follow(self._endpointer.feed(float(probability)))
            self._read_interim()
            self._audio.forget_before(self._endpointer.needed_from)

    async def _follow(self, events: list[EndpointEvent]) -> None:
        for event in events:
            match event:
                case Began():
                    self._utterance = _Utterance(self._num_utterances, event.start, event.speech)
                    self._num_utterances += 1
                    await self._events.put(SpeechChanged(is_begin=True, at=event.speech))
                case Paused():
                    self._begin_early(event.at)
                case WentOn():
                    self._drop_early()
                case Ended():
                    await self._close(event)

    async def _close(self, event: Ended) -> None:
        utterance, self._utterance = self._utterance, None
        assert utterance is not None, "only an open utterance ends"
        utterance.is_over = True
        if utterance.partial is not None:
            utterance.partial.cancel()
        text = utterance.early or self._decode(utterance, event.end, Priority.FINAL)
        await self._events.put(SpeechChanged(is_begin=False, at=event.speech))
        await self._closing.put(_Closing(utterance, event.end, text, self._clock()))

    # Decoding.

    def _decode(self, utterance: _Utterance, end: int, priority: Priority) -> asyncio.Task[Transcript]:
        samples = self._audio.between(utterance.start, end)
        wants_words = self._live.has_interim_words or priority is Priority.FINAL
        work = self._engine.recognize_utterance(
            samples,
            self._options,
            self._vocabulary,
            priority=priority,
            wants_words=self._options.has_words and wants_words,
            draft_ids=utterance.draft_ids,
        )
        return self._start(work)

    def _begin_early(self, end: int) -> None:
        """Decode the final while it is not certain that the utterance is over, unless others are waiting."""
        utterance = self._utterance
        if utterance is not None and utterance.early is None and not self._engine.is_busy(Priority.FINAL):
            if utterance.partial is not None:
                utterance.partial.cancel()
            utterance.early = self._start(self._read_early(utterance, end))

    async def _read_early(self, utterance: _Utterance, end: int) -> Transcript:
        """Read a final in advance; until it is one, it is as good as an interim."""
        transcript = await self._decode(utterance, end, Priority.FINAL)
        utterance.draft_ids = transcript.token_ids
        if transcript.text and self._live.has_interims:
            self._tell_interim(utterance, transcript, end=end)
        return transcript

    def _drop_early(self) -> None:
        if self._utterance is not None and self._utterance.early is not None:
            self._utterance.early.cancel()
            self._utterance.early = None

    def _read_interim(self) -> None:
        """Read the open utterance again when there is enough new audio, and nothing more urgent to do."""
        utterance, now = self._utterance, self._audio.end
        if not self._live.has_interims or utterance is None or utterance.early is not None:
            return
        if self._endpointer.is_falling_silent:
            return  # the final that a pause begins is not to wait for a reading of the same
        since = max(utterance.speech + int(self._live.min_interim_s * SAMPLE_RATE_HZ), utterance.read_until)
        is_reading = utterance.partial is not None and not utterance.partial.done()
        if now < since or is_reading or self._engine.is_busy(Priority.PARTIAL):
            return
        utterance.read_until = now + int(self._live.interim_every_s * SAMPLE_RATE_HZ)
        utterance.partial = self._start(self._read_partial(utterance, now))

    async def _read_partial(self, utterance: _Utterance, end: int) -> None:
        try:
            transcript = await self._decode(utterance, end, Priority.PARTIAL)
        except AimassError:
            return  # a later one, or the final, will say it
        utterance.draft_ids = transcript.token_ids
        if not transcript.text:
            utterance.read_until = end + int(self._live.retry_every_s * SAMPLE_RATE_HZ)
        else:
            self._tell_interim(utterance, transcript, end=end)

    def _tell_interim(self, utterance: _Utterance, transcript: Transcript, *, end: int) -> None:
        if not utterance.is_over and not self._events.full():
            utterance.read_until = max(
                utterance.read_until, end + int(self._live.interim_every_s * SAMPLE_RATE_HZ)
            )
            interim = utterance.agreement.take(transcript.text)
            self._events.put_nowait(InterimRead(utterance.number, interim, utterance.start, transcript))

    async def _finish_utterances(self) -> None:
        """Tell finals and flushes in the order in which they were decided."""
        while (item := await self._closing.get()) is not None:
            if isinstance(item, FlushDone):
                await self._events.put(item)
                continue
            transcript = await item.text
            if transcript.text or transcript.match is not None:
                waited_ms = 1e3 * (self._clock() - item.decided_s)
                await self._events.put(
                    FinalRead(item.utterance.number, item.utterance.start, item.end, transcript, waited_ms)
                )
        await self._events.put(None)

    # Tasks.

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # who waits for it hears of it; nobody waits for an early final that was dropped

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            await self._events.put(error)


class _AudioBuffer:
    """The end of a stream's audio, addressed by samples from its start."""

    def __init__(self) -> None:
        self._pieces: list[NDArray[np.float32]] = []
        self._start = 0
        self.end = 0
        """Samples of the stream so far."""

    def append(self, samples: NDArray[np.float32]) -> None:
        self._pieces.append(samples)
        self.end += len(samples)

    def between(self, start: int, end: int) -> NDArray[np.float32]:
        """Return the samples from `start` to `end`, both still held."""
        joined = np.concatenate(self._pieces) if self._pieces else np.zeros(0, np.float32)
        self._pieces = [joined]
        return joined[start - self._start : end - self._start].copy()

    def forget_before(self, place: int) -> None:
        """Let go of whole pieces before sample `place`."""
        while self._pieces and self._start + len(self._pieces[0]) <= place:
            self._start += len(self._pieces.pop(0))


class _Inbox:
    """What was sent and not looked at yet: audio that waits is joined, so that a stream that is behind
    catches up in one go. Asks for no more while it is full.
    """

    def __init__(self) -> None:
        self._items: deque[bytes | FlushAsked] = deque()
        self._num_bytes = 0
        self._arrived, self._has_room = asyncio.Event(), asyncio.Event()
        self._error: Exception | None = None
        self._is_ended = False

    async def fill(self, requests: AsyncIterator[bytes | FlushAsked]) -> None:
        """Take in all requests; what they raise is told to the reader, in its turn."""
        try:
            async for request in requests:
                self._items.append(request)
                self._num_bytes += len(request) if isinstance(request, bytes) else 0
                self._arrived.set()
                while self._num_bytes > _MAX_WAITING_BYTES or len(self._items) > _MAX_EVENTS:
                    self._has_room.clear()
                    await self._has_room.wait()
        except Exception as error:
            self._error = error
        self._is_ended = True
        self._arrived.set()

    def __aiter__(self) -> AsyncIterator[bytes | FlushAsked]:
        return self

    async def __anext__(self) -> bytes | FlushAsked:
        while not self._items:
            if self._error is not None:
                raise self._error
            if self._is_ended:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        first = self._items.popleft()
        pieces = [first] if isinstance(first, bytes) else []
        while pieces and self._items and isinstance(piece := self._items[0], bytes):
            pieces.append(piece)
            self._items.popleft()
        self._num_bytes -= sum(map(len, pieces))
        self._has_room.set()
        return b"".join(pieces) if pieces else first


@dataclass(frozen=True, slots=True)
class _Idle:
    """Nothing was sent for a while."""


async def _with_idle(
    requests: AsyncIterator[bytes | FlushAsked], limit_s: Callable[[], float | None]
) -> AsyncIterator[bytes | FlushAsked | _Idle]:
    """Yield the requests, and `_Idle` whenever none came for `limit_s()` seconds, if that is a number."""
    iterator = aiter(requests)
    pending = asyncio.ensure_future(_next(iterator))
    try:
        while True:
            done, _ = await asyncio.wait([pending], timeout=limit_s())
            if not done:
                yield _Idle()
                continue
            request = pending.result()
            if request is None:
                return
            yield request
            pending = asyncio.ensure_future(_next(iterator))
    finally:
        pending.cancel()


async def _next(iterator: AsyncIterator[bytes | FlushAsked]) -> bytes | FlushAsked | None:
    return await anext(iterator, None)
