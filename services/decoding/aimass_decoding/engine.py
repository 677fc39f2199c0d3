"""The engine's public face: async in, async out, and one thread that computes.

The thread owns all mutable state; it takes commands from one inbox and publishes once a step. No locks.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any

from aimass_serving.errors import Draining, InputTooLong, InvalidField, ModelFailed
from aimass_serving.session import Session
from aimass_serving.telemetry import emit_phase
from numpy.typing import NDArray

from aimass_decoding.config import EngineConfig
from aimass_decoding.cross_attention import SourceMemory
from aimass_decoding.golden import replay_golden
from aimass_decoding.outlet import Event, Outlet
from aimass_decoding.request import SequenceRequest, TokenDelta
from aimass_decoding.runner import DecoderGeometry, DecoderRunner
from aimass_decoding.sampler import SamplingState
from aimass_decoding.scheduler import Scheduler
from aimass_decoding.sequence import Sequence
from aimass_decoding.stats import EngineStats
from aimass_decoding.stepper import Stepper

_LOGGER = logging.getLogger(__name__)

_Command = Callable[[], None]
_Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]


class DecodingEngine:
    """Runs many sequences at once on one model.

    `generate`, `drain`, `stats` and `close` may be called from any thread or event loop.
    """

    def __init__(
        self,
        session: Session,
        geometry: DecoderGeometry,
        config: EngineConfig,
        *,
        model: str,
        permit: AbstractContextManager[object],
    ) -> None:
        num_slots, self._max_len = config.num_slots_of(geometry), config.max_len_of(geometry)
        self._model = model
        self._vocab_size = geometry.vocab_size
        self._needs_memory = geometry.cross is not None
        self._execution_provider = session.execution_provider
        self._runner = DecoderRunner(session, geometry, max_slots=num_slots, max_len=self._max_len)
        self._scheduler = Scheduler(config, num_slots=num_slots, max_len=self._max_len)
        self._stepper = Stepper(
            self._runner, self._scheduler, model=model, permit=permit, publish=self._publish
        )
        self._inbox: SimpleQueue[_Command] = SimpleQueue()
        self._idle_waiters: list[_Waiter] = []  # of the engine thread
        self._numbers = count()
        self._thread = threading.Thread(target=self._run, name=f"decoding {model}", daemon=True)
        self._is_draining = False
        self._is_closed = False

    @property
    def max_context_tokens(self) -> int:
        """Longest sequence, prompt and output together."""
        return self._max_len

    @property
    def max_concurrent_sequences(self) -> int:
        """How many sequences advance together."""
        return self._scheduler.num_slots

    @property
    def execution_provider(self) -> str:
        """ONNX Runtime execution provider that runs the model."""
        return self._execution_provider

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    def replay_golden(
        self, golden: Mapping[str, NDArray[Any]], *, memory: SourceMemory | None = None
    ) -> None:
        """Check the graph against the numbers of its export. Before `start` only. Raises `BadBundle`.

        `memory` is what the encoder of an encoder-decoder made of the golden source.
        """
        assert not self._thread.is_alive(), "the runner belongs to the engine thread"
        replay_golden(self._runner, golden, bundle=self._model, memory=memory)

    def start(self) -> None:
        """Start the engine thread. Once."""
        self._thread.start()

    async def generate(self, request: SequenceRequest) -> AsyncGenerator[TokenDelta, None]:
        """Run a sequence to its end; give its tokens as they come, several at once to a slow reader.

        The last delta, and no other, has a `finish`. Closing the generator early frees the slot by the next
        step. Raises `InvalidField` and `InputTooLong` for a prompt that does not fit the model, `Draining`,
        `Overloaded`, `DeadlineExceeded`, and `ModelFailed` when the graph fails or gives no numbers.
        """
        self._refuse_unfit(request)
        sequence, outlet = self._submit(request)
        try:
            delta = replace(await outlet.read(), timings=sequence.timings)
            yield delta
            while delta.finish is None:
                delta = await outlet.read()
                yield delta
        finally:
            if not outlet.has_ended:
                self._inbox.put(partial(self._stepper.abort, sequence, time.monotonic()))
            _emit_phases(sequence)

    async def drain(self) -> None:
        """Take no new sequences, and return when all have ended."""
        self._is_draining = True
        if self._is_closed or not self._thread.is_alive():
            return
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._inbox.put(partial(self._idle_waiters.append, (loop, waiter)))
        await waiter

    def close(self) -> None:
        """Stop after the step in progress; what has not ended fails with `Draining`. Blocks. Idempotent."""
        self._is_draining = self._is_closed = True
        if self._thread.is_alive():
            self._inbox.put(_do_nothing)
            self._thread.join()

    def stats(self) -> EngineStats:
        """Return what the engine has done so far. Numbers of one snapshot may be a step apart."""
        counters, scheduler = self._stepper.counters, self._scheduler
        return EngineStats(
            num_submitted=counters.num_submitted,
            num_finished=dict(counters.num_finished),
            num_refused=counters.num_refused,
            num_cancelled=counters.num_cancelled,
            num_expired=counters.num_expired,
            num_failed=counters.num_failed,
            num_slots=scheduler.num_slots,
            num_slots_taken=scheduler.num_active,
            num_waiting=scheduler.num_waiting,
            queue_tokens=scheduler.queue_tokens,
            num_prefill_steps=counters.num_prefill_steps,
            num_decode_steps=counters.num_decode_steps,
            num_prompt_tokens=counters.num_prompt_tokens,
            num_output_tokens=counters.num_output_tokens,
            release_ms=counters.release_ms.summary(),
        )

    def _refuse_unfit(self, request: SequenceRequest) -> None:
        """Refuse what no engine state could make possible, without a turn of the engine thread."""
        num_tokens = len(request.prompt_ids)
        if num_tokens + 1 > self._max_len:
            raise InputTooLong("prompt", num_tokens=num_tokens, max_tokens=self._max_len - 1)
        if (request.memory is not None) != self._needs_memory:
            expected = "a source" if self._needs_memory else "no source"
            raise InvalidField("source", expected=expected, got=request.memory)
        lowest, highest = int(request.prompt_ids.min()), int(request.prompt_ids.max())
        if lowest < 0 or highest >= self._vocab_size:
            got = lowest if lowest < 0 else highest
            raise InvalidField("prompt.token_ids", expected=f"ids from 0 to {self._vocab_size - 1}", got=got)
        unknown = [i for i in request.stop_token_ids if not 0 <= i < self._vocab_size]
        if unknown:
            expected = f"ids from 0 to {self._vocab_size - 1}"
            raise InvalidField("stopping.stop_token_ids", expected=expected, got=unknown[0])

    def _submit(self, request: SequenceRequest) -> tuple[Sequence, Outlet]:
        if self._is_draining:
            raise Draining
        outlet = Outlet(asyncio.get_running_loop())
        now_s = time.monotonic()
        sequence = Sequence(
            request,
            number=next(self._numbers),
            arrival_s=now_s,
            submitted_ns=time.time_ns(),
            sampling=SamplingState(request),
            last_progress_s=now_s,
            outlet=outlet,
        )
        self._inbox.put(partial(self._stepper.submit, sequence))
        if (
            self._is_closed
        ):  # the thread may have looked into its inbox for the last time before the line above
            raise Draining
        return sequence, outlet

    def _run(self) -> None:
        """Take commands and step, until closed. A fault of our own ends the sequences, not the engine."""
        while not self._is_closed:
            try:
                self._obey()
                self._stepper.step()
            except Exception as error:
                _LOGGER.exception("the engine of model %s failed between steps", self._model)
                detail = f"the engine raised {type(error).__name__}"
                self._stepper.fail_all(ModelFailed(self._model, detail=detail))
        self._obey_pending()
        self._stepper.fail_all(Draining())
        self._release_idle_waiters()

    def _obey(self) -> None:
        """Carry out the commands in the inbox. Without work, wait for one."""
        if not self._scheduler.has_work and self._inbox.empty():
            self._release_idle_waiters()
            self._inbox.get()()
        self._obey_pending()

    def _obey_pending(self) -> None:
        try:
            while True:
                self._inbox.get_nowait()()
        except Empty:
            return

    def _release_idle_waiters(self) -> None:
        waiters, self._idle_waiters[:] = self._idle_waiters[:], []
        for loop, waiter in waiters:
            _call_soon(loop, partial(_resolve, waiter))

    def _publish(self, events: list[tuple[Sequence, Event]]) -> None:
        """Wake each event loop once, with all that is new for it. A loop that has ended wants no more."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Outlet, Event]]] = defaultdict(list)
        for sequence, event in events:
            if sequence.outlet is not None:
                by_loop[sequence.outlet.loop].append((sequence.outlet, event))
        for loop, deliveries in by_loop.items():
            if not _call_soon(loop, partial(_deliver, deliveries)):
                for sequence, _ in events:
                    if sequence.outlet is not None and sequence.outlet.loop is loop:
                        self._stepper.abort(sequence, time.monotonic())


def _deliver(deliveries: list[tuple[Outlet, Event]]) -> None:
    for outlet, event in deliveries:
        outlet.deliver(event)


def _call_soon(loop: asyncio.AbstractEventLoop, callback: _Command) -> bool:
    """Run a callback on a loop's thread; return False when the loop has ended."""
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        return False
    return True


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _do_nothing() -> None:
    return


def _emit_phases(sequence: Sequence) -> None:
    """Record how long the sequence waited, read its prompt and decoded, up to now if it was given up."""
    end_ns = sequence.finished_ns or time.time_ns()
    prompt = {"aimass.prompt_tokens": sequence.num_prompt_tokens}
    output = {"aimass.output_tokens": sequence.num_output, "aimass.decode_steps": sequence.num_steps}
    emit_phase("queue", sequence.submitted_ns, sequence.prefill_ns or end_ns)
    if sequence.prefill_ns:
        emit_phase("prefill", sequence.prefill_ns, sequence.first_token_ns or end_ns, attributes=prompt)
    if sequence.first_token_ns:
        emit_phase("decode", sequence.first_token_ns, end_ns, attributes=output)
