"""The engine's async face and its thread, on a decoder without a model."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

import numpy as np
import pytest
from aimass_decoding import engine as engine_module
from aimass_decoding.config import EngineConfig
from aimass_decoding.engine import DecodingEngine
from aimass_decoding.outlet import Interest
from aimass_decoding.request import FinishReason, SamplingParams, SequenceRequest
from aimass_decoding.sequence import Sequence
from aimass_decoding.testing import FakeDecoder, fake_engine, hashed_logits
from aimass_serving.errors import (
    BadBundle,
    DeadlineExceeded,
    Draining,
    InputTooLong,
    InvalidField,
    ModelFailed,
    Overloaded,
)
from numpy.typing import NDArray


def request(*prompt: int, max_new_tokens: int = 5, **settings: Any) -> SequenceRequest:
    return SequenceRequest("r", np.array(prompt or (1, 2, 3)), max_new_tokens, **settings)


async def tokens_of(engine: DecodingEngine, asked: SequenceRequest) -> list[int]:
    return [token_id async for delta in engine.generate(asked) for token_id in delta.token_ids]


class Gate:
    """Holds the engine thread before a run of the graph until a test lets it go on.

    With `is_for_decodes` prompts of several tokens pass.
    """

    def __init__(self, *, is_for_decodes: bool = False) -> None:
        self.is_open = threading.Event()
        self.has_arrived = threading.Event()
        self._is_for_decodes = is_for_decodes

    def __call__(self, input_ids: NDArray[np.int64]) -> None:
        self.has_arrived.set()
        if self._is_for_decodes and input_ids.shape[1] > 1:
            return
        assert self.is_open.wait(10)

    async def arrival(self) -> None:
        await asyncio.to_thread(self.has_arrived.wait, 10)


async def test_tokens_together_are_the_tokens_alone() -> None:
    with fake_engine(hashed_logits()) as engine:
        requests = [request(number, 1, max_new_tokens=8) for number in range(20)]
        alone = [await tokens_of(engine, each) for each in requests]
        together = await asyncio.gather(*(tokens_of(engine, each) for each in requests))
    assert together == alone


async def test_the_last_delta_and_no_other_has_a_finish() -> None:
    with fake_engine(hashed_logits()) as engine:
        deltas = [delta async for delta in engine.generate(request())]
    assert [delta.finish is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]


async def test_a_slow_reader_gets_what_came_meanwhile_as_one_delta() -> None:
    gate = Gate(is_for_decodes=True)
    with fake_engine(FakeDecoder(hashed_logits(), before_run=gate)) as engine:
        stream = engine.generate(request(max_new_tokens=20, wants_logprobs=True))
        first = await anext(stream)
        gate.is_open.set()
        await engine.drain()
        rest = [delta async for delta in stream]
    assert (len(first.token_ids), len(rest)) == (1, 1)
    assert len(rest[0].token_ids) == len(rest[0].logprobs) == 19
    assert rest[0].finish is not None


async def test_closing_the_generator_frees_the_slot() -> None:
    gate = Gate(is_for_decodes=True)
    decoder = FakeDecoder(hashed_logits(), before_run=gate)
    with fake_engine(decoder, EngineConfig(max_slots=1)) as engine:
        stream = engine.generate(request(max_new_tokens=60))
        await anext(stream)
        await stream.aclose()
        gate.is_open.set()
        assert await tokens_of(engine, request())
        stats = engine.stats()
    assert (stats.num_cancelled, stats.release_ms["count"], stats.num_slots_taken) == (1, 1, 0)


async def test_cancelling_the_task_frees_the_slot_during_a_step() -> None:
    gate = Gate()
    with fake_engine(FakeDecoder(hashed_logits(), before_run=gate)) as engine:
        task = asyncio.create_task(tokens_of(engine, request()))
        await gate.arrival()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.is_open.set()
        await engine.drain()
        stats = engine.stats()
    assert (stats.num_cancelled, stats.num_slots_taken, stats.num_decode_steps) == (1, 0, 0)


async def test_a_generator_that_was_never_started_costs_nothing() -> None:
    with fake_engine(hashed_logits()) as engine:
        stream = engine.generate(request())
        await stream.aclose()
        assert engine.stats().num_submitted == 0


@pytest.mark.parametrize(
    ("refused", "error"),
    [
        (request(*range(64)), InputTooLong),
        (request(1, 32), InvalidField),
        (request(-1), InvalidField),
        (request(stop_token_ids=frozenset([32])), InvalidField),
    ],
)
async def test_a_request_the_model_cannot_take_is_refused(
    refused: SequenceRequest, error: type[Exception]
) -> None:
    with fake_engine(hashed_logits()) as engine:
        with pytest.raises(error):
            await tokens_of(engine, refused)
        assert await tokens_of(engine, request())


async def test_a_full_queue_is_an_error_of_the_caller_it_refuses() -> None:
    gate = Gate()
    decoder = FakeDecoder(hashed_logits(), before_run=gate)
    with fake_engine(decoder, EngineConfig(max_slots=1, max_queue_tokens=3)) as engine:
        running = asyncio.create_task(tokens_of(engine, request()))
        await gate.arrival()
        others = [asyncio.create_task(tokens_of(engine, request())) for _ in range(2)]
        await asyncio.sleep(0)
        gate.is_open.set()
        results = await asyncio.gather(running, *others, return_exceptions=True)
    assert [type(result) for result in results] == [list, list, Overloaded]


async def test_a_passed_deadline_is_raised() -> None:
    with fake_engine(hashed_logits()) as engine, pytest.raises(DeadlineExceeded):
        await tokens_of(engine, request(deadline_s=0.0))


async def test_drain_refuses_new_work_and_waits_for_the_old() -> None:
    gate = Gate()
    with fake_engine(FakeDecoder(hashed_logits(), before_run=gate)) as engine:
        running = asyncio.create_task(tokens_of(engine, request()))
        await gate.arrival()
        drained = asyncio.create_task(engine.drain())
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            await tokens_of(engine, request())
        assert not drained.done()
        gate.is_open.set()
        await drained
        assert engine.stats().num_finished == {FinishReason.MAX_NEW_TOKENS: 1}
        assert len(await running) == 5


async def test_draining_an_idle_engine_returns_at_once() -> None:
    with fake_engine(hashed_logits()) as engine:
        await engine.drain()
        await engine.drain()


async def test_closing_ends_what_runs_with_draining() -> None:
    has_arrived = threading.Event()

    def hold_until_closed(input_ids: NDArray[np.int64]) -> None:
        has_arrived.set()
        while not engine.is_closed:
            time.sleep(0.001)

    with fake_engine(FakeDecoder(hashed_logits(), before_run=hold_until_closed)) as engine:
        tasks = [asyncio.create_task(tokens_of(engine, request(max_new_tokens=60))) for _ in range(3)]
        await asyncio.to_thread(has_arrived.wait, 10)
        await asyncio.to_thread(engine.close)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [Draining] * 3
        with pytest.raises(Draining):
            await tokens_of(engine, request())
        await engine.drain()


def test_a_closed_engine_leaves_no_thread_and_can_be_closed_again() -> None:
    num_threads = threading.active_count()
    with fake_engine(hashed_logits()) as engine:
        assert threading.active_count() == num_threads + 1
        engine.close()
        assert threading.active_count() == num_threads


def test_callers_whose_event_loop_has_ended_are_forgotten() -> None:
    gate = Gate()
    with fake_engine(FakeDecoder(hashed_logits(), before_run=gate)) as engine:
        loop = asyncio.new_event_loop()
        stream = engine.generate(request(max_new_tokens=60))
        started = loop.create_task(anext(stream))
        loop.run_until_complete(gate.arrival())
        started.cancel()
        loop.run_until_complete(asyncio.gather(started, return_exceptions=True))
        gate.is_open.set()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        assert asyncio.run(tokens_of(engine, request()))
        assert engine.stats().num_slots_taken == 0


async def test_phases_are_recorded_in_the_callers_task_also_when_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    phases: list[tuple[str, int, int]] = []

    def record(name: str, start_ns: int, end_ns: int, **_: Any) -> None:
        assert asyncio.current_task() is not None
        phases.append((name, start_ns, end_ns))

    monkeypatch.setattr(engine_module, "emit_phase", record)
    with fake_engine(hashed_logits(), max_positions=1000) as engine:
        await tokens_of(engine, request())
        stream = engine.generate(request(max_new_tokens=900))
        await anext(stream)
        await stream.aclose()
    assert [name for name, _, _ in phases] == ["queue", "prefill", "decode"] * 2
    for whole in (phases[:3], phases[3:]):
        times = [time for _, start_ns, end_ns in whole for time in (start_ns, end_ns)]
        assert times == sorted(times)
        assert whole[0][2] == whole[1][1]


def test_golden_numbers_are_checked_before_the_start() -> None:
    decoder = FakeDecoder(hashed_logits())
    golden = {"prompt_ids": np.array([1, 2]), "logits": hashed_logits()((1, 2)), "tolerance": np.array(1e-6)}
    with fake_engine(decoder, is_started=False) as engine:
        engine.replay_golden(golden)
        with pytest.raises(BadBundle):
            engine.replay_golden(golden | {"logits": golden["logits"] + 1})


async def test_two_event_loops_share_one_engine() -> None:
    with fake_engine(hashed_logits()) as engine:
        other = asyncio.to_thread(lambda: asyncio.run(tokens_of(engine, request())))
        here, there = await asyncio.gather(tokens_of(engine, request()), other)
    assert here == there


async def test_stats_count_what_happened() -> None:
    with fake_engine(hashed_logits(), EngineConfig(max_slots=4)) as engine:
        await tokens_of(engine, request(1, 2, max_new_tokens=3))
        stats = engine.stats()
    assert (stats.num_submitted, stats.num_prompt_tokens, stats.num_output_tokens) == (1, 2, 3)
    assert (stats.num_prefill_steps, stats.num_decode_steps, stats.num_slots) == (1, 2, 4)
    assert (stats.num_slots_taken, stats.num_waiting, stats.queue_tokens) == (0, 0, 0)


async def test_limits_are_those_of_config_and_model() -> None:
    with fake_engine(hashed_logits(), EngineConfig(max_slots=3), max_positions=50) as engine:
        assert (engine.max_context_tokens, engine.max_concurrent_sequences) == (50, 3)
        assert engine.execution_provider == "CPUExecutionProvider"


def several(num_sequences: int, **settings: Any) -> SequenceRequest:
    how = SamplingParams(temperature=1.0, seed=4)
    return request(sampling=how, num_sequences=num_sequences, **settings)


async def test_several_sequences_of_a_request_come_side_by_side_and_each_ends_once() -> None:
    with fake_engine(hashed_logits()) as engine:
        deltas = [delta async for delta in engine.generate(several(3))]
        single = request(sampling=SamplingParams(temperature=1.0, seed=6))
        alone = await tokens_of(engine, single)
    tokens = {index: [i for d in deltas if d.index == index for i in d.token_ids] for index in range(3)}
    assert tokens[2] == alone, "sequence 2 draws with the seed plus 2"
    assert sorted(delta.index for delta in deltas if delta.finish is not None) == [0, 1, 2]
    firsts = [delta.index for delta in deltas if delta.timings is not None]
    assert sorted(firsts) == [0, 1, 2]


async def test_one_sequence_is_given_up_and_the_others_go_on() -> None:
    interest = Interest()
    with fake_engine(hashed_logits()) as engine:
        ended = []
        async for delta in engine.generate(several(3, max_new_tokens=40), interest=interest):
            interest.lose(1)
            assert delta.index != 1 or delta.finish is None
            if delta.finish is not None:
                ended.append(delta.index)
        await engine.drain()
        stats = engine.stats()
    assert sorted(ended) == [0, 2]
    assert stats.num_cancelled == 1
    assert stats.num_slots_taken == 0


async def test_giving_up_all_sequences_ends_the_stream() -> None:
    interest = Interest()
    with fake_engine(hashed_logits()) as engine:
        async for _ in engine.generate(several(2, max_new_tokens=40), interest=interest):
            interest.lose(0)
            interest.lose(1)
        await engine.drain()
        assert engine.stats().num_cancelled == 2


async def test_leaving_a_request_gives_up_all_of_its_sequences() -> None:
    with fake_engine(hashed_logits(), EngineConfig(max_slots=2)) as engine:
        stream = engine.generate(several(5, max_new_tokens=40))
        await anext(stream)
        await stream.aclose()
        await engine.drain()
        stats = engine.stats()
    assert stats.num_cancelled == 5
    assert stats.num_waiting == stats.num_slots_taken == 0


async def test_a_fault_of_one_sequence_ends_the_request() -> None:
    def break_second_decode(input_ids: NDArray[np.int64]) -> None:
        if len(input_ids) == 3:
            raise RuntimeError("broken")

    with fake_engine(FakeDecoder(hashed_logits(), before_run=break_second_decode)) as engine:
        with pytest.raises(ModelFailed):
            async for _ in engine.generate(several(3)):
                pass
        await engine.drain()
        assert engine.stats().num_slots_taken == 0


async def test_biases_and_allowed_tokens_outside_the_vocabulary_are_refused() -> None:
    with fake_engine(hashed_logits()) as engine:
        for how in (SamplingParams(logit_bias={32: 1.0}), SamplingParams(allowed_token_ids=(1, -1))):
            with pytest.raises(InvalidField):
                await tokens_of(engine, request(sampling=how))


async def test_what_is_shared_and_kept_is_in_the_statistics() -> None:
    with fake_engine(hashed_logits(), EngineConfig(max_prefill_tokens_per_step=2)) as engine:
        for last in range(3):
            await tokens_of(engine, request(1, 2, 3, 4, last))
        stats = engine.stats()
    assert stats.num_reused_prompt_tokens == 8
    assert stats.num_prompt_tokens == 7
    assert stats.num_kept_prefixes > 0
    assert stats.num_runs_by_threads == {}


async def test_a_fault_while_a_request_is_queued_reaches_its_caller_and_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    with fake_engine(hashed_logits()) as engine:
        scheduler = engine._scheduler
        whole = scheduler.submit

        def faulty(sequence: Sequence, now_s: float) -> None:
            if sequence.request.priority == 7:
                raise RuntimeError("a fault of our own")
            whole(sequence, now_s)
            if sequence.request.priority == 8:
                raise RuntimeError("after it was queued")

        monkeypatch.setattr(scheduler, "submit", faulty)
        running = asyncio.create_task(tokens_of(engine, request(max_new_tokens=40)))
        for priority in (7, 8):
            async with asyncio.timeout(10):
                with pytest.raises(ModelFailed, match="queueing it raised RuntimeError"):
                    await tokens_of(engine, request(priority=priority))
        assert len(await running) == 40
        assert engine.stats().num_slots_taken == engine.stats().num_waiting == 0


async def test_a_cancelled_stream_is_gone_after_the_step_in_progress() -> None:
    """Counted in steps, for milliseconds are not the same on every machine: of 60 cancels, each in the middle
    of a step, every one (so also the 95th of a hundred) is gone when the next step begins.
    """
    turns = threading.Semaphore(0)
    decoder = FakeDecoder(hashed_logits(), before_run=lambda _: _require(turns.acquire(timeout=10)))

    async def turn() -> None:
        """Let the step in progress end, and the next begin."""
        num_runs = len(decoder.runs)
        turns.release()
        async with asyncio.timeout(10):
            while len(decoder.runs) == num_runs:  # noqa: ASYNC110 - the engine's thread knows no events
                await asyncio.sleep(0)

    with fake_engine(decoder, EngineConfig(max_slots=2, max_len=1000), max_positions=1000) as engine:
        beside = asyncio.create_task(tokens_of(engine, request(max_new_tokens=900)))
        for number in range(60):
            stream = engine.generate(request(max_new_tokens=60))
            first = asyncio.create_task(anext(stream))
            while not first.done():
                await turn()
            for _ in range(number % 3):
                await turn()
            assert decoder.runs[-1] == (2, 1)
            await stream.aclose()
            await turn()
            assert decoder.runs[-1] == (1, 1)
            assert engine.stats().num_slots_taken == 1
        stats = engine.stats()
        turns.release(1000)
        assert len(await beside) == 900
    assert stats.num_cancelled == stats.release_ms["count"] == 60


def _require(condition: bool) -> None:
    assert condition
