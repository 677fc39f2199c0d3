"""Beam searches behind the engine: cancel, deadlines, limits and faults, without a model. The texts are held
to transformers' in tests/parity and tests/service.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from aimass_decoding.beam_rules import repeating, rule_of
from aimass_decoding.beam_search import LogitsRule
from aimass_decoding.config import EngineConfig
from aimass_decoding.engine import DecodingEngine
from aimass_decoding.request import BeamParams, FinishReason, SamplingParams, SequenceRequest, TokenDelta
from aimass_decoding.testing import FakeDecoder, fake_engine, hashed_logits
from aimass_serving.errors import DeadlineExceeded, Draining, InvalidField, ModelFailed, Overloaded
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

VOCAB = 32
SMALL = EngineConfig(max_beams=4, max_slots=2)


def request(*prompt: int, num_beams: int = 3, max_new_tokens: int = 5, **fields: Any) -> SequenceRequest:
    beams = BeamParams(num_beams=num_beams)
    return SequenceRequest("r", np.array(prompt or (1, 2, 3)), max_new_tokens, beams=beams, **fields)


async def answer_of(engine: DecodingEngine, asked: SequenceRequest) -> TokenDelta:
    [delta] = [delta async for delta in engine.generate(asked)]
    return delta


async def tokens_of(engine: DecodingEngine, asked: SequenceRequest) -> tuple[int, ...]:
    return (await answer_of(engine, asked)).token_ids


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the engine's thread knows no events
            await asyncio.sleep(0)


def has_begun(decoder: FakeDecoder, num_runs: int) -> bool:
    return len(decoder.runs) == num_runs


def assert_true(condition: bool) -> None:
    assert condition


def finish_reason(delta: TokenDelta) -> FinishReason:
    assert delta.finish is not None
    return delta.finish.reason


async def test_searches_together_and_beside_streams_give_what_they_give_alone() -> None:
    with fake_engine(hashed_logits(), SMALL) as engine:
        searches = [request(n, 5, num_beams=1 + n % 4) for n in range(12)]
        stream = SequenceRequest("s", np.array([9, 9]), 20)
        alone = [await tokens_of(engine, each) for each in searches]
        text = [t async for delta in engine.generate(stream) for t in delta.token_ids]

        async def streamed() -> list[int]:
            return [t async for delta in engine.generate(stream) for t in delta.token_ids]

        together = await asyncio.gather(streamed(), *(tokens_of(engine, each) for each in searches))
        stats = engine.stats()
    assert together == [text, *alone]
    assert stats.num_finished[FinishReason.MAX_NEW_TOKENS] == stats.num_submitted == 26


async def test_a_search_that_is_cancelled_frees_its_slots_by_the_next_step() -> None:
    turns = threading.Semaphore(0)
    decoder = FakeDecoder(hashed_logits(), before_run=lambda _: assert_true(turns.acquire(timeout=10)))
    with fake_engine(decoder, SMALL) as engine:
        for num_steps in range(2, 8):  # the first is the prompt's
            given_up = asyncio.create_task(tokens_of(engine, request(max_new_tokens=50)))
            num_runs = len(decoder.runs) + num_steps
            turns.release(num_steps - 1)
            await until(partial(has_begun, decoder, num_runs))
            given_up.cancel()
            with pytest.raises(asyncio.CancelledError):
                await given_up
            whole = asyncio.create_task(tokens_of(engine, request(7, num_beams=4, max_new_tokens=1)))
            await asyncio.sleep(0)
            turns.release(2)
            await whole  # all four slots are free: the step after the one in progress reads its prompt
            assert decoder.runs[num_runs:] == [(1, 1)]
        stats = engine.stats()
    assert stats.num_cancelled == stats.release_ms["count"] == 6


async def test_time_is_kept_in_the_queue_and_at_work() -> None:
    def slow(_: NDArray[np.int64]) -> None:
        time.sleep(0.005)

    with fake_engine(FakeDecoder(hashed_logits(), before_run=slow), SMALL) as engine:
        now_s = time.monotonic()
        first = asyncio.create_task(
            answer_of(engine, request(max_new_tokens=55, time_limit_at_s=now_s + 0.1))
        )
        await until(lambda: engine.stats().num_submitted == 1)
        with pytest.raises(DeadlineExceeded, match="queue"):
            await answer_of(engine, request(deadline_s=now_s + 0.02))
        limited = await first
        with pytest.raises(DeadlineExceeded, match="decode"):
            await answer_of(engine, request(max_new_tokens=55, deadline_s=time.monotonic() + 0.05))
        waiting = await answer_of(engine, request(time_limit_at_s=time.monotonic() - 1))
    assert finish_reason(limited) is finish_reason(waiting) is FinishReason.TIME_LIMIT
    assert 0 < len(limited.token_ids) < 55
    assert waiting.token_ids == ()


async def test_how_a_text_ended_is_told() -> None:
    with fake_engine(hashed_logits(), EngineConfig(max_beams=4, max_len=16)) as engine:
        free = await tokens_of(engine, request(max_new_tokens=8, num_beams=1))
        eos, stop = frozenset({free[3]}), frozenset({free[3]})
        ended = await answer_of(engine, request(max_new_tokens=8, num_beams=1, eos_token_ids=eos))
        stopped = await answer_of(engine, request(max_new_tokens=8, num_beams=1, stop_token_ids=stop))
        full = await answer_of(engine, request(max_new_tokens=60))
    for delta, reason in ((ended, FinishReason.EOS), (stopped, FinishReason.STOP_TOKEN)):
        assert (delta.token_ids, finish_reason(delta)) == (free[:3], reason)
        assert delta.finish is not None
        assert (delta.finish.stop_token_id, delta.finish.num_output_tokens) == (free[3], 4)
    assert (finish_reason(full), len(full.token_ids)) == (FinishReason.CONTEXT_FULL, 13)


async def test_a_model_without_numbers_or_with_a_fault_fails_only_its_own_searches(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    whole, is_broken = hashed_logits(), False

    def logits_of(tokens: tuple[int, ...]) -> NDArray[np.float32]:
        return np.full(VOCAB, np.nan, np.float32) if tokens[0] == 7 and len(tokens) > 4 else whole(tokens)

    def fail(_: NDArray[np.int64]) -> None:
        if is_broken:
            raise RuntimeError("broken")

    with fake_engine(FakeDecoder(logits_of, before_run=fail), SMALL) as engine:
        alone = await tokens_of(engine, request(num_beams=2))
        bad, good = await asyncio.gather(
            tokens_of(engine, request(7, 2, num_beams=2)),
            tokens_of(engine, request(num_beams=2)),
            return_exceptions=True,
        )
        assert isinstance(bad, ModelFailed)
        assert good == alone
        is_broken = True
        with pytest.raises(ModelFailed, match="a step raised RuntimeError"):
            await tokens_of(engine, request())
        is_broken = False
        assert await tokens_of(engine, request(num_beams=2)) == alone


async def test_a_fault_at_the_door_reaches_its_caller_and_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)

    def faulty(asked: SequenceRequest, *, max_new_tokens: int) -> LogitsRule:
        if asked.priority == 7:
            raise RuntimeError("a fault of our own")
        return rule_of(asked, max_new_tokens=max_new_tokens)

    with fake_engine(hashed_logits(), SMALL) as engine:
        running = asyncio.create_task(tokens_of(engine, request(num_beams=2, max_new_tokens=40)))
        await until(lambda: engine.stats().num_prompt_tokens > 0)
        monkeypatch.setattr("aimass_decoding.beam_engine.rule_of", faulty)
        async with asyncio.timeout(10):
            with pytest.raises(ModelFailed, match="its beginning raised RuntimeError"):
                await tokens_of(engine, request(num_beams=2, priority=7))
            monkeypatch.setattr(engine._beams, "_queue", None)
            with pytest.raises(ModelFailed, match="queueing it raised TypeError"):
                await tokens_of(engine, request(num_beams=2))
        assert len(await running) == 40


async def test_more_than_the_memory_or_the_queue_holds_is_refused() -> None:
    with fake_engine(hashed_logits(), EngineConfig(max_beams=4, max_queue_tokens=6)) as engine:
        with pytest.raises(InvalidField, match=r"beams\.num_beams: expected at most 4"):
            await tokens_of(engine, request(num_beams=5))
        crowd = [tokens_of(engine, request(num_beams=4, max_new_tokens=20)) for _ in range(8)]
        results = await asyncio.gather(*crowd, return_exceptions=True)
    refused = [result for result in results if isinstance(result, BaseException)]
    assert refused
    assert {type(error) for error in refused} == {Overloaded}
    assert len(refused) < 8


async def test_draining_ends_searches_that_were_taken_and_takes_no_more() -> None:
    with fake_engine(hashed_logits(), SMALL) as engine:
        taken = [asyncio.create_task(tokens_of(engine, request(max_new_tokens=30))) for _ in range(6)]
        await until(lambda: engine.stats().num_submitted == 6)
        await engine.drain()
        assert all(len(text) == 30 for text in await asyncio.gather(*taken))
        with pytest.raises(Draining):
            await tokens_of(engine, request())


async def test_closing_ends_a_search_with_draining() -> None:
    closing = threading.Event()

    def only_while_closing(_: NDArray[np.int64]) -> None:
        assert closing.wait(10)
        time.sleep(0.005)  # sixty steps are left when the engine is told to close

    with fake_engine(FakeDecoder(hashed_logits(), before_run=only_while_closing), SMALL) as engine:
        task = asyncio.create_task(tokens_of(engine, request(max_new_tokens=60)))
        await until(lambda: engine.stats().num_submitted == 1)
        closing.set()
        await asyncio.to_thread(engine.close)
        with pytest.raises(Draining):
            await task


def test_beams_with_what_no_search_does_are_refused() -> None:
    for fields in ({"sampling": SamplingParams(temperature=1.0)}, {"wants_logprobs": True}):
        with pytest.raises(InvalidField, match="beams"):
            request(**fields)


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 4))
def test_the_tokens_that_would_repeat_a_run_are_found(written: list[int], size: int) -> None:
    runs = {tuple(written[i : i + size]) for i in range(len(written) - size + 1)}
    begun = tuple(written[len(written) - size + 1 :]) if size > 1 else ()
    expected = {t for t in range(4) if len(begun) == size - 1 and (*begun, t) in runs}
    assert set(repeating(np.array(written, np.int64), size).tolist()) == expected


def test_the_last_token_of_a_text_may_be_forced() -> None:
    beams = BeamParams(num_beams=2, forced_eos_id=4)
    rule = rule_of(SequenceRequest("r", np.array([1]), 3, beams=beams), max_new_tokens=3)
    scores = np.zeros((2, 6), np.float32)
    rule([(1,), (2,)], scores)
    assert not scores.any()
    rule([(1, 2), (2, 3)], scores)
    assert np.isneginf(scores).sum(axis=1).tolist() == [5, 5]
    assert scores[:, 4].tolist() == [0, 0]
