"""The engine's public face: async in, async out, and one thread that computes.

The thread owns all mutable state; it takes commands from one inbox and publishes once a step. No locks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, aclosing
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

from aimass_serving.adaptive_session import ThreadUse, each_variant, thread_use
from aimass_serving.errors import AimassError, InputTooLong, InvalidField, ModelFailed
from aimass_serving.session import Session
from aimass_serving.telemetry import emit_phase, record_release
from numpy.typing import NDArray

from aimass_decoding.beam_engine import BeamEngine
from aimass_decoding.config import EngineConfig
from aimass_decoding.cross_attention import SourceMemory
from aimass_decoding.engine_thread import EngineThread, call_soon
from aimass_decoding.golden import replay_draft, replay_golden
from aimass_decoding.outlet import Event, Interest, Outlet
from aimass_decoding.request import SequenceRequest, TokenDelta
from aimass_decoding.runner import PROBE_TOKENS, DecoderGeometry, DecoderRunner, chunk_difference
from aimass_decoding.sampler import SamplingState
from aimass_decoding.scheduler import Scheduler
from aimass_decoding.sequence import Sequence, Stage
from aimass_decoding.stats import EngineStats
from aimass_decoding.stepper import Stepper

MAX_CHUNK_DIFFERENCE = 1e-3
"""Of logits: a draft is confirmed by numbers that are those of single steps but for this."""
_LOGGER = logging.getLogger(__name__)


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
        draft_session: Session | None = None,
    ) -> None:
        """Allocate the slots. `draft_session` runs a cheaper graph of the same model and signature."""
        num_slots, self._max_len = config.num_slots_of(geometry), config.max_len_of(geometry)
        self._model = model
        self._vocab_size = geometry.vocab_size
        self._needs_memory = geometry.cross is not None
        self._num_adapters = geometry.num_adapters
        self._execution_provider = session.execution_provider
        self._runner = DecoderRunner(session, geometry, max_slots=num_slots, max_len=self._max_len)
        self._scheduler = Scheduler(
            config,
            num_slots=num_slots,
            max_len=self._max_len,
            can_copy_slots=self._runner.can_copy_slots,
            max_draft_tokens=self._max_draft_tokens(session, config),
        )
        self._session = session
        self._draft_session = draft_session if self._scheduler.max_draft_tokens else None
        self._draft_runner = self._open_draft(geometry)
        self._mask_threads = ThreadPoolExecutor(config.num_mask_threads, thread_name_prefix="masks")
        self._stepper = Stepper(
            self._runner,
            self._scheduler,
            model=model,
            permit=permit,
            publish=self._publish,
            mask_executor=self._mask_threads,
            draft_runner=self._draft_runner,
            max_mask_wait_s=config.max_mask_wait_s,
        )
        self._numbers = count()
        self._thread = EngineThread(self, model=model, name=f"decoding {model}")
        self._beams = BeamEngine(
            partial(DecoderRunner, session, geometry),
            max_beams=config.num_beams_of(geometry) if self._runner.can_copy_slots else 0,
            max_len=self._max_len,
            config=config,
            model=model,
            permit=permit,
        )
        for counters in (self._stepper.counters, self._beams.counters):
            counters.release_ms.watcher = partial(record_release, model=model)

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
        return self._thread.is_closed

    @property
    def max_beams(self) -> int:
        """Most beams of a request; 0 on a device that cannot search with beams."""
        return self._beams.max_beams

    @property
    def has_work(self) -> bool:
        """Whether any sequence waits or runs. Of the engine thread, as `step` and `fail_all` are."""
        return self._scheduler.has_work

    def step(self) -> None:
        """Advance what runs by one run of the graph. For the engine thread."""
        self._stepper.step()

    def fail_all(self, error: AimassError) -> None:
        """End every sequence with an error. For the engine thread."""
        self._stepper.fail_all(error)

    def replay_golden(
        self, golden: Mapping[str, NDArray[Any]], *, memory: SourceMemory | None = None
    ) -> None:
        """Check the graph against the numbers of its export. Before `start` only. Raises `BadBundle`.

        `memory` is what the encoder of an encoder-decoder made of the golden source.
        """
        assert not self._thread.is_alive, "the runner belongs to the engine thread"
        for _ in each_variant(self._session):
            replay_golden(
                self._runner, golden, bundle=self._model, memory=memory, num_adapters=self._num_adapters
            )
        if self._draft_session is not None and self._draft_runner is not None:
            for _ in each_variant(self._draft_session):
                replay_draft(self._draft_runner, golden, bundle=self._model)

    def start(self) -> None:
        """Start the engine thread."""
        self._thread.start()

    async def generate(
        self, request: SequenceRequest, *, interest: Interest | None = None
    ) -> AsyncGenerator[TokenDelta, None]:
        """Run a request's sequences to their ends; give tokens as they come, several to a slow reader.

        Of each sequence, the last delta, and no other, has a `finish`; a request has one sequence unless it
        asked for several, of which `interest` may give up some. Closing the generator early frees the slots
        by the next step. Raises `InvalidField` and `InputTooLong` for what does not fit the model,
        `Draining`, `Overloaded`, `DeadlineExceeded`, and `ModelFailed` when the graph fails or gives no
        numbers. An error ends all sequences of the request.
        """
        self._refuse_unfit(request)
        if request.beams is not None:
            async with aclosing(self._beams.generate(request)) as deltas:
                async for delta in deltas:
                    yield delta
            return
        interest = interest or Interest()
        sequences, outlet = self._submit(request)
        running = {index for index in range(len(sequences)) if index in interest}

        def give_up(index: int) -> None:
            if index in running:
                running.discard(index)
                self._abort([sequences[index]])

        interest.on_loss(give_up)
        seen: set[int] = set()
        try:
            while running:
                delta = await outlet.read()
                if delta.index not in running:
                    continue
                if delta.index not in seen:
                    if not seen:
                        delta = replace(delta, prompt_logprobs=tuple(sequences[0].prompt_logprobs))
                    seen.add(delta.index)
                    delta = replace(delta, timings=sequences[delta.index].timings)
                if delta.finish is not None:
                    running.discard(delta.index)
                yield delta
        finally:
            self._abort([sequences[index] for index in running])
            _emit_phases(sequences)

    def _abort(self, sequences: list[Sequence]) -> None:
        """Give sequences up. Those that have ended meanwhile are left alone."""
        cancelled_at_s = time.monotonic()
        for sequence in sequences:
            self._thread.put(partial(self._stepper.abort, sequence, cancelled_at_s))

    async def drain(self) -> None:
        """Take no new sequences, and return when all have ended."""
        self._beams.refuse_new()
        await self._thread.drain()
        await self._beams.drain()

    def close(self) -> None:
        """Stop after the step in progress; what has not ended fails with `Draining`. Blocks. Idempotent."""
        self._thread.close()
        self._beams.close()
        self._mask_threads.shutdown(wait=False, cancel_futures=True)

    def stats(self) -> EngineStats:
        """Return what the engine has done so far. Numbers of one snapshot may be a step apart."""
        counters, scheduler = self._stepper.counters.plus(self._beams.counters), self._scheduler
        threads = thread_use(self._session) or ThreadUse({}, 0, 0)
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
            num_reused_prompt_tokens=counters.num_reused_prompt_tokens,
            num_output_tokens=counters.num_output_tokens,
            num_drafted_tokens=counters.num_drafted_tokens,
            num_confirmed_tokens=counters.num_confirmed_tokens,
            graph_s=counters.graph_s,
            num_kept_prefixes=scheduler.num_kept_prefixes,
            num_slot_copies=counters.num_slot_copies,
            num_runs_by_threads=threads.num_runs,
            num_thread_trials=threads.num_trials,
            num_thread_changes=threads.num_changes,
            mask_wait_ms=counters.mask_wait_ms.summary(),
            release_ms=counters.release_ms.summary(),
        )

    def _max_draft_tokens(self, session: Session, config: EngineConfig) -> int:
        """Return how much may be guessed: nothing where guesses, confirmed or not, could change a token.

        Every variant of the graph is asked, so that these first runs teach nothing about threads.
        """
        can_draft = config.max_draft_tokens > 0 and self._runner.gives_every_position
        if not can_draft or self._needs_memory or self._max_len < PROBE_TOKENS:
            return 0
        differences = [
            chunk_difference(self._runner, vocab_size=self._vocab_size) for _ in each_variant(session)
        ]
        return config.max_draft_tokens if all(d <= MAX_CHUNK_DIFFERENCE for d in differences) else 0

    def _open_draft(self, geometry: DecoderGeometry) -> DecoderRunner | None:
        """Return a runner of the draft graph on the slots of the other; None where nothing is drafted."""
        if self._draft_session is None:
            return None
        num_slots = self._scheduler.num_slots
        return DecoderRunner(
            self._draft_session, geometry, max_slots=num_slots, max_len=self._max_len, slots_of=self._runner
        )

    def _refuse_unfit(self, request: SequenceRequest) -> None:
        """Refuse what no engine state could make possible, without a turn of the engine thread."""
        num_tokens = len(request.prompt_ids)
        if num_tokens + 1 > self._max_len:
            raise InputTooLong("prompt", num_tokens=num_tokens, max_tokens=self._max_len - 1)
        if (request.memory is not None) != self._needs_memory:
            expected = "a source" if self._needs_memory else "no source"
            raise InvalidField("source", expected=expected, got=request.memory)
        if not 0 <= request.adapter <= self._num_adapters:
            raise InvalidField("adapter", expected=f"0 to {self._num_adapters}", got=request.adapter)
        lowest, highest = int(request.prompt_ids.min()), int(request.prompt_ids.max())
        if lowest < 0 or highest >= self._vocab_size:
            got = lowest if lowest < 0 else highest
            raise InvalidField("prompt.token_ids", expected=f"ids from 0 to {self._vocab_size - 1}", got=got)
        self._refuse_unknown("stopping.stop_token_ids", request.stop_token_ids)
        self._refuse_unknown("sampling.logit_bias", request.sampling.logit_bias)
        self._refuse_unknown("sampling.allowed_token_ids", request.sampling.allowed_token_ids)

    def _refuse_unknown(self, field_name: str, token_ids: Iterable[int]) -> None:
        unknown = [i for i in token_ids if not 0 <= i < self._vocab_size]
        if unknown:
            expected = f"ids from 0 to {self._vocab_size - 1}"
            raise InvalidField(field_name, expected=expected, got=unknown[0])

    def _submit(self, request: SequenceRequest) -> tuple[list[Sequence], Outlet]:
        outlet = Outlet(asyncio.get_running_loop(), num_sequences=request.num_sequences)
        sequences = self._sequences(request, outlet)
        self._thread.put_all([partial(self._take, sequence) for sequence in sequences])
        return sequences, outlet

    def _take(self, sequence: Sequence) -> None:
        """Queue a sequence. What fails by a fault of our own must still reach its reader, who waits."""
        try:
            self._stepper.submit(sequence)
        except Exception as error:
            _LOGGER.exception("the engine of model %s could not queue a sequence", self._model)
            if sequence in self._scheduler.sequences:
                self._stepper.abort(sequence, time.monotonic())
            sequence.stage = Stage.DONE
            detail = f"queueing it raised {type(error).__name__}"
            self._publish([(sequence, ModelFailed(self._model, detail=detail))])

    def _sequences(self, request: SequenceRequest, outlet: Outlet) -> list[Sequence]:
        now_s, submitted_ns, first = time.monotonic(), time.time_ns(), next(self._numbers)
        rest = [next(self._numbers) for _ in range(1, request.num_sequences)]
        return [
            Sequence(
                request,
                number=number,
                arrival_s=now_s,
                submitted_ns=submitted_ns,
                sampling=SamplingState(request, index=index),
                group=first if rest else None,
                index=index,
                last_progress_s=now_s,
                outlet=outlet,
            )
            for index, number in enumerate([first, *rest])
        ]

    def _publish(self, events: list[tuple[Sequence, Event]]) -> None:
        """Wake each event loop once, with all that is new for it. A loop that has ended wants no more."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Outlet, Event]]] = defaultdict(list)
        for sequence, event in events:
            if sequence.outlet is not None:
                by_loop[sequence.outlet.loop].append((sequence.outlet, event))
        for loop, deliveries in by_loop.items():
            if not call_soon(loop, partial(_deliver, deliveries)):
                for sequence, _ in events:
                    if sequence.outlet is not None and sequence.outlet.loop is loop:
                        self._stepper.abort(sequence, time.monotonic())


def _deliver(deliveries: list[tuple[Outlet, Event]]) -> None:
    for outlet, event in deliveries:
        outlet.deliver(event)


def _emit_phases(sequences: list[Sequence]) -> None:
    """Record how long the request waited, read its prompt and decoded, up to now if it was given up.

    Sequences of one request run side by side: the first waits and reads for all.
    """
    first = sequences[0]
    has_ended = all(sequence.finished_ns for sequence in sequences)
    end_ns = max(sequence.finished_ns for sequence in sequences) if has_ended else time.time_ns()
    num_output = sum(sequence.num_output for sequence in sequences)
    num_steps = max(sequence.num_steps for sequence in sequences)
    prompt = {"aimass.prompt_tokens": first.num_prompt_tokens, "aimass.reused_tokens": first.num_reused}
    output = {"aimass.output_tokens": num_output, "aimass.decode_steps": num_steps}
    emit_phase("queue", first.submitted_ns, first.prefill_ns or end_ns)
    if first.prefill_ns:
        emit_phase("prefill", first.prefill_ns, first.first_token_ns or end_ns, attributes=prompt)
    if first.first_token_ns:
        emit_phase("decode", first.first_token_ns, end_ns, attributes=output)
