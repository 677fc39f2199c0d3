"""A request's numbers do not depend on its neighbours, on reuse, or on threads: on the real SmolLM2 in fp32.

On a CPU with AVX2 no bit changes: every row is added up in the same order, whatever the number of rows and of
threads. Other kernels may add up in another order, hence `TOLERANCE`; what is reused is a copy, and exact
everywhere. Graphs that share a scale between rows (stock dynamic int8) would not keep this.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aimass_decoding.config import EngineConfig
from aimass_decoding.engine import DecodingEngine
from aimass_decoding.request import SamplingParams, SequenceRequest
from aimass_decoding.runner import DecoderRunner, geometry_of
from aimass_serving.bundle import Bundle
from aimass_serving.compute import ComputePermit
from aimass_serving.session import Session, SessionConfig, open_thread_variants
from aimass_serving.store import open_store
from numpy.typing import NDArray

TOLERANCE = 1e-4
"""Largest difference of fp32 logits, which reach about 20, and of log-probabilities."""

CHUNK = 16
SAMPLED = SamplingParams(temperature=0.8, top_p=0.95, seed=5)


@pytest.fixture(scope="module")
def bundle(smollm2_store: Path) -> Bundle:
    store = open_store(str(smollm2_store))
    return store.open(store.list()[0])


@pytest.fixture(scope="module")
def sessions(bundle: Bundle) -> list[Session]:
    """At two threads and at one, on the same weights."""
    return open_thread_variants(bundle.graph("decoder"), SessionConfig(), [2, 1])


@contextmanager
def running(session: Session, bundle: Bundle, **settings: Any) -> Iterator[DecodingEngine]:
    config = EngineConfig(**{"max_slots": 4, "max_len": 128, "max_prefill_tokens_per_step": CHUNK} | settings)
    geometry = geometry_of(bundle.manifest.decoder)
    engine = DecodingEngine(session, geometry, config, model=bundle.ref, permit=ComputePermit())
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


def prompts() -> list[NDArray[np.int64]]:
    """Some start alike, by two whole chunks and a part of the third."""
    generator = np.random.default_rng(7)
    shared = generator.integers(5, 40_000, 2 * CHUNK + 5)
    lengths = (3, 20, 33)
    own = [generator.integers(5, 40_000, length) for length in lengths]
    return own + [np.concatenate([shared, tail]) for tail in own]


async def outcome(
    engine: DecodingEngine, prompt: NDArray[np.int64], how: SamplingParams
) -> list[tuple[int, float]]:
    """Return each token with its log-probability."""
    asked = SequenceRequest("r", prompt, 8, sampling=how, wants_logprobs=True)
    return [(e.token_id, e.logprob) async for delta in engine.generate(asked) for e in delta.logprobs]


async def test_a_random_schedule_of_joins_leaves_and_cancels_changes_nothing(
    sessions: list[Session], bundle: Bundle
) -> None:
    asked = [(prompt, how) for prompt in prompts() for how in (SamplingParams(), SAMPLED)]
    with running(sessions[0], bundle, max_kept_prefixes=0) as engine:
        alone = [await outcome(engine, prompt, how) for prompt, how in asked]
    with running(sessions[1], bundle) as engine:
        together = await asyncio.gather(
            strangers(engine, random.Random(8)), *(outcome(engine, prompt, how) for prompt, how in asked)
        )
        await engine.drain()
        stats = engine.stats()
    for got, expected in zip(together[1:], alone, strict=True):
        assert got is not None
        assert [token_id for token_id, _ in got] == [token_id for token_id, _ in expected]
        np.testing.assert_allclose([p for _, p in got], [p for _, p in expected], atol=TOLERANCE, rtol=0)
    assert stats.num_reused_prompt_tokens > 0, "prompts were really shared"
    assert stats.num_cancelled > 0, "strangers really left in the middle"
    assert stats.num_slots_taken == 0


async def strangers(engine: DecodingEngine, chance: random.Random) -> None:
    for prompt in prompts():
        with suppress(TimeoutError):
            async with asyncio.timeout(chance.uniform(0.05, 0.4)):
                await outcome(engine, prompt, SAMPLED)


def test_logits_do_not_depend_on_rows_or_threads(sessions: list[Session], bundle: Bundle) -> None:
    geometry = geometry_of(bundle.manifest.decoder)
    alone, together = (DecoderRunner(s, geometry, max_slots=6, max_len=128) for s in sessions)
    for slot, prompt in enumerate(prompts()):
        expected = alone.prefill(0, prompt, start=0).copy()
        assert np.abs(together.prefill(slot, prompt, start=0) - expected).max() <= TOLERANCE
    lengths = np.array([len(prompt) for prompt in prompts()])
    rows = together.decode(np.full(6, 77), lengths)
    for slot, prompt in enumerate(prompts()):
        alone.prefill(0, prompt, start=0)
        expected = alone.decode(np.array([77]), lengths[slot : slot + 1])[0]
        assert np.abs(rows[slot] - expected).max() <= TOLERANCE


def test_a_whole_chunk_copied_from_another_slot_changes_no_bit(
    sessions: list[Session], bundle: Bundle
) -> None:
    runner = DecoderRunner(sessions[0], geometry_of(bundle.manifest.decoder), max_slots=2, max_len=128)
    prompt = prompts()[-1]
    for start in range(0, len(prompt), CHUNK):
        computed = runner.prefill(0, prompt[start : start + CHUNK], start=start).copy()
    runner.copy_slot(0, 1, num_tokens=2 * CHUNK)
    for start in range(2 * CHUNK, len(prompt), CHUNK):
        reused = runner.prefill(1, prompt[start : start + CHUNK], start=start)
    assert np.array_equal(reused, computed)
