"""Hundreds of callers who come, leave, break things and read slowly: nothing is lost, no slot leaks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import weakref

import numpy as np
import pytest
from aimass_decoding import engine as engine_module
from aimass_decoding.config import EngineConfig
from aimass_decoding.engine import DecodingEngine
from aimass_decoding.request import SequenceRequest
from aimass_decoding.sequence import Sequence
from aimass_decoding.testing import FakeDecoder, fake_engine, hashed_logits
from aimass_serving.errors import ModelFailed, Overloaded
from numpy.typing import NDArray

LOGITS = hashed_logits()


def request(number: int, *, max_new_tokens: int = 20) -> SequenceRequest:
    return SequenceRequest(f"r{number}", np.arange(1 + number % 13) + number % 7, max_new_tokens)


async def tokens_of(engine: DecodingEngine, asked: SequenceRequest) -> list[int]:
    return [token_id async for delta in engine.generate(asked) for token_id in delta.token_ids]


async def impatient(engine: DecodingEngine, number: int, chance: random.Random) -> None:
    with contextlib.suppress(TimeoutError, Overloaded):
        async with asyncio.timeout(chance.uniform(0, 0.2)):
            await tokens_of(engine, request(number, max_new_tokens=50))


async def test_five_hundred_callers_who_cancel_at_random_leave_nothing_behind() -> None:
    chance = random.Random(1)
    with fake_engine(LOGITS, EngineConfig(max_slots=8)) as engine:
        expected = [await tokens_of(engine, request(number)) for number in range(10)]
        storm = [asyncio.create_task(impatient(engine, number, chance)) for number in range(500)]
        steady = [asyncio.create_task(tokens_of(engine, request(number))) for number in range(10)]
        assert await asyncio.gather(*steady) == expected
        await asyncio.gather(*storm)
        assert await asyncio.gather(*(tokens_of(engine, request(n)) for n in range(10))) == expected
        await engine.drain()
        stats = engine.stats()
    assert stats.num_cancelled > 20, "the storm was one"
    assert (stats.num_slots_taken, stats.num_waiting, stats.queue_tokens) == (0, 0, 0)
    outcomes = sum(stats.num_finished.values()) + stats.num_cancelled + stats.num_refused
    assert outcomes == stats.num_submitted == 530
    assert stats.num_failed == stats.num_expired == 0


async def test_sequences_are_freed_when_they_have_ended_or_were_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: weakref.WeakSet[Tracked] = weakref.WeakSet()

    class Tracked(Sequence):
        __slots__ = ("__weakref__",)

        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[arg-type]
            seen.add(self)

    monkeypatch.setattr(engine_module, "Sequence", Tracked)
    chance = random.Random(2)
    with fake_engine(LOGITS, EngineConfig(max_slots=4)) as engine:
        await asyncio.gather(*(impatient(engine, number, chance) for number in range(200)))
        await tokens_of(engine, request(0))
        await asyncio.sleep(0)
        gc.collect()
        assert len(seen) <= 1, "the engine thread may still hold the last one it looked at"


async def test_a_decoder_that_fails_now_and_then_costs_only_the_sequences_of_that_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    num_runs = 0

    def fail_every_tenth_run(input_ids: NDArray[np.int64]) -> None:
        nonlocal num_runs
        num_runs += 1
        if num_runs % 10 == 0:
            raise RuntimeError("broken")

    with fake_engine(FakeDecoder(LOGITS, before_run=fail_every_tenth_run)) as engine:
        tasks = [tokens_of(engine, request(number, max_new_tokens=4)) for number in range(100)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await engine.drain()
        stats = engine.stats()
    failed = [result for result in results if isinstance(result, BaseException)]
    assert {type(error) for error in failed} == {ModelFailed}
    assert 0 < len(failed) == stats.num_failed < 100
    assert stats.num_slots_taken == 0


async def test_readers_of_any_speed_get_the_same_tokens() -> None:
    async def slow(engine: DecodingEngine, number: int) -> list[int]:
        tokens: list[int] = []
        async for delta in engine.generate(request(number)):
            tokens.extend(delta.token_ids)
            for _ in range(number % 5):
                await asyncio.sleep(0.002)
        return tokens

    with fake_engine(LOGITS) as engine:
        expected = [await tokens_of(engine, request(number)) for number in range(20)]
        assert await asyncio.gather(*(slow(engine, number) for number in range(20))) == expected


async def test_draining_under_load_loses_nobody_who_was_taken() -> None:
    with fake_engine(LOGITS, EngineConfig(max_slots=4)) as engine:
        tasks = [asyncio.create_task(tokens_of(engine, request(number))) for number in range(100)]
        await asyncio.sleep(0)
        await engine.drain()
        results = await asyncio.gather(*tasks)
    assert all(len(tokens) == 20 for tokens in results)
