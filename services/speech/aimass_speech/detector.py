"""Runs voice activity detection for many streams on one thread: a frame of each in one batch.

Must not know the wire, nor what speech is cut into. A recording is a stream whose frames are all there.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
from aimass.model.v1.model_service_pb2 import ModelLimits
from aimass_serving.errors import Draining, ModelFailed, Overloaded
from numpy.typing import NDArray

from aimass_speech.config import SpeechConfig
from aimass_speech.vad import FrameCutter, VoiceActivityRunner

logger = logging.getLogger(__name__)

_SEQUENCE_FRAMES = 512
"""Frames of one stream computed in one run: about 16 s of audio. Others wait no longer than that takes."""
_MIN_SEQUENCE_FRAMES = 8
"""Streams with fewer frames than this to do are computed together, frame by frame, in one turn: each turn
may wait for a step of a recogniser."""
_PIECE_SAMPLES = 2**20
"""Samples of a recording that are cut into frames at a time, which copies them."""


@dataclass(slots=True, eq=False)
class _Work:
    """Frames of one stream to do. The thread owns it until `done` is set."""

    frames: NDArray[np.float32]  # [n, context + frame]
    state: NDArray[np.float32]  # [2, state_size]
    done: asyncio.Future[NDArray[np.float32]]
    probabilities: list[NDArray[np.float32]] = field(default_factory=list)
    position: int = 0

    @property
    def num_left(self) -> int:
        return len(self.frames) - self.position

    def take(self, probabilities: NDArray[np.float32], state: NDArray[np.float32]) -> None:
        self.probabilities.append(probabilities)
        self.position += len(probabilities)
        self.state = state


class DetectorStream:
    """One stream of audio. Lives on the event loop; one `feed` at a time."""

    def __init__(self, engine: VoiceActivityEngine) -> None:
        self._engine = engine
        self._cutter = FrameCutter(engine.runner.shape)
        self._state = engine.runner.new_state()

    async def feed(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the probability of speech [n] of each frame that is complete with these samples [m]."""
        return await self._run(self._cutter.feed(samples))

    async def finish(self) -> NDArray[np.float32]:
        """Return the probability of the last frame, if one is begun."""
        return await self._run(self._cutter.finish())

    def restart(self) -> None:
        """Forget what was heard, so that it does not linger in what follows. Frames go on where they were."""
        self._cutter.silence()
        self._state = self._engine.runner.new_state()

    async def _run(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        if not len(frames):
            return np.zeros(0, np.float32)
        probabilities, self._state = await self._engine.run(frames, self._state)
        return probabilities


class VoiceActivityEngine:
    """One detector. Its thread owns the runner; everything else lives on the event loop."""

    def __init__(
        self,
        runner: VoiceActivityRunner,
        *,
        model: str,
        config: SpeechConfig,
        permit: AbstractContextManager[None],
    ) -> None:
        self.runner = runner
        self.config = config
        self._model = model
        self._permit = permit
        self._changed = threading.Condition()
        self._waiting: deque[_Work] = deque()  # guarded by _changed
        self._is_closed = False
        self._is_draining = False
        self._thread = threading.Thread(target=self._loop, name=f"detect-{model}", daemon=True)

    @property
    def limits(self) -> ModelLimits:
        """What a request must stay within."""
        return ModelLimits()

    @property
    def execution_provider(self) -> str:
        """ONNX Runtime execution provider that runs the model."""
        return self.runner.execution_provider

    def start(self) -> None:
        """Start the compute thread."""
        self._thread.start()

    def open_stream(self) -> DetectorStream:
        """Return a new stream. Raises `Draining`."""
        if self._is_draining or self._is_closed:
            raise Draining
        return DetectorStream(self)

    async def probabilities(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the probability of speech [n] of each frame of a whole recording [m]."""
        stream = self.open_stream()
        pieces = [samples[start : start + _PIECE_SAMPLES] for start in range(0, len(samples), _PIECE_SAMPLES)]
        probabilities = [await stream.feed(piece) for piece in pieces]
        return np.concatenate([*probabilities, await stream.finish()])

    async def run(
        self, frames: NDArray[np.float32], state: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the probabilities [n] of a stream's next frames, and its new state.

        Raises `Overloaded`, `Draining`, `ModelFailed`. When cancelled, frames not begun are not computed.
        """
        work = _Work(frames, state, asyncio.get_running_loop().create_future())
        with self._changed:
            if self._is_closed:
                raise Draining
            if sum(w.num_left for w in self._waiting) > self.config.max_queue_frames:
                raise Overloaded(
                    retry_after_s=1.0, detail="too much audio waits for voice activity detection"
                )
            self._waiting.append(work)
            self._changed.notify_all()
        return await work.done, work.state

    async def drain(self) -> None:
        """Take no new streams, and return when nothing waits."""
        self._is_draining = True
        with self._changed:
            waiting = [work.done for work in self._waiting]
        if waiting:
            await asyncio.wait(waiting)

    def close(self) -> None:
        """Stop the thread; work that waits fails. May be called twice."""
        with self._changed:
            self._is_closed = True
            waiting = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for work in waiting:
            _fail(work, Draining())
        if self._thread.is_alive():
            self._thread.join()

    # On the compute thread.

    def _loop(self) -> None:
        while batch := self._next():
            try:
                with self._permit:
                    self._compute(batch)
            except Exception as error:
                logger.exception("model %s failed on %d streams", self._model, len(batch))
                for work in batch:
                    _fail(work, ModelFailed(self._model, detail=f"its graph raised {type(error).__name__}"))
                continue
            self._put_back(batch)

    def _next(self) -> list[_Work]:
        """Wait for work and take a batch off the queue; an empty one when closed."""
        with self._changed:
            while not self._is_closed:
                self._waiting = deque(work for work in self._waiting if not work.done.cancelled())
                if self._waiting:
                    return self._take()
                self._changed.wait()
        return []

    def _take(self) -> list[_Work]:
        if self._waiting[0].num_left >= _MIN_SEQUENCE_FRAMES:
            return [self._waiting.popleft()]
        short = [work for work in self._waiting if work.num_left < _MIN_SEQUENCE_FRAMES]
        batch = short[: self.config.max_detector_batch]
        chosen = set(batch)
        self._waiting = deque(work for work in self._waiting if work not in chosen)
        return batch

    def _compute(self, batch: list[_Work]) -> None:
        if len(batch) == 1:
            (work,) = batch
            frames = work.frames[work.position : work.position + _SEQUENCE_FRAMES]
            work.take(*self.runner.sequence(frames, work.state))
            return
        while rows := [work for work in batch if work.num_left]:
            frames = np.stack([work.frames[work.position] for work in rows])
            states = np.stack([work.state for work in rows], axis=1)  # [2, streams, state_size]
            probabilities, states = self.runner.step(frames, states)
            for row, work in enumerate(rows):
                work.take(probabilities[row : row + 1], states[:, row])

    def _put_back(self, batch: list[_Work]) -> None:
        """Return unfinished work to the end of the queue, and hand over what is done."""
        with self._changed:
            is_closed = self._is_closed
            self._waiting.extend(work for work in batch if work.num_left and not is_closed)
        for work in batch:
            if not work.num_left:
                _finish(work)
            elif is_closed:
                _fail(work, Draining())


def _finish(work: _Work) -> None:
    _settle(work, np.concatenate(work.probabilities))


def _fail(work: _Work, error: Exception) -> None:
    _settle(work, error)


def _settle(work: _Work, outcome: NDArray[np.float32] | Exception) -> None:
    """Hand the outcome to the event loop, unless nobody waits any more."""

    def settle() -> None:
        if work.done.done():
            return
        if isinstance(outcome, Exception):
            work.done.set_exception(outcome)
        else:
            work.done.set_result(outcome)

    try:
        work.done.get_loop().call_soon_threadsafe(settle)
    except RuntimeError:
        logger.debug("the event loop has ended: nobody waits for what was computed last")
