"""The engine's greedy tokens on real graphs: alone, together, in chunks and in dirty slots, and PyTorch's."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aimass_decoding.config import EngineConfig
from aimass_decoding.engine import DecodingEngine
from aimass_decoding.request import SamplingParams, SequenceRequest
from aimass_decoding.runner import DecoderRunner, geometry_of
from aimass_serving.bundle import Bundle
from aimass_serving.compute import ComputePermit
from aimass_serving.session import BufferView, Device, DeviceBuffer, Session, SessionConfig, open_session
from aimass_serving.store import open_store
from aimass_serving.testing import host_array
from numpy.typing import NDArray

TOLERANCE = 5e-5
"""Largest difference of fp32 logits. They reach about 5; another order of additions was seen to cost 5e-6."""

NUM_NEW_TOKENS = 24


@pytest.fixture(params=["llama", "gpt2"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bundle(family: str, request: pytest.FixtureRequest) -> Bundle:
    store: Path = request.getfixturevalue(f"tiny_{family}_store")
    opened = open_store(str(store))
    return opened.open(opened.list()[0])


@pytest.fixture
def oracle(family: str, request: pytest.FixtureRequest) -> Any:
    model, _ = request.getfixturevalue(f"tiny_{family}_model")
    return model


def session_of(bundle: Bundle) -> Session:
    return open_session(bundle.graph("decoder"), SessionConfig(device=Device.CPU, num_threads=1))


@contextmanager
def running(bundle: Bundle, **settings: Any) -> Iterator[DecodingEngine]:
    engine = DecodingEngine(
        session_of(bundle),
        geometry_of(bundle.manifest.decoder),
        EngineConfig(**settings),
        model=bundle.ref,
        permit=ComputePermit(),
    )
    engine.replay_golden(bundle.golden())
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


def prompts(count: int, *, longest: int = 60) -> list[NDArray[np.int64]]:
    generator = np.random.default_rng(4)
    return [generator.integers(3, 500, int(generator.integers(1, longest))) for _ in range(count)]


async def tokens_of(engine: DecodingEngine, prompt: NDArray[np.int64], **settings: Any) -> list[int]:
    asked = SequenceRequest("r", prompt, NUM_NEW_TOKENS, **settings)
    return [token_id async for delta in engine.generate(asked) for token_id in delta.token_ids]


def expected_tokens(oracle: Any, prompt: NDArray[np.int64]) -> list[int]:
    with torch.no_grad():
        output = oracle.generate(
            torch.from_numpy(prompt)[None],
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NUM_NEW_TOKENS,
            min_new_tokens=NUM_NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return [int(token_id) for token_id in output[0, len(prompt) :]]


async def test_greedy_tokens_alone_and_together_are_those_of_transformers(
    bundle: Bundle, oracle: Any
) -> None:
    asked = prompts(12)
    with running(bundle, max_slots=8) as engine:
        alone = [await tokens_of(engine, prompt) for prompt in asked]
        together = await asyncio.gather(*(tokens_of(engine, prompt) for prompt in asked))
    assert together == alone
    assert alone == [expected_tokens(oracle, prompt) for prompt in asked]


async def test_tokens_do_not_depend_on_who_joins_leaves_and_cancels(bundle: Bundle) -> None:
    asked = prompts(10)
    how = SamplingParams(temperature=0.9, top_p=0.95, seed=5)
    with running(bundle, max_slots=4, max_prefill_tokens_per_step=16) as engine:
        greedy = [await tokens_of(engine, prompt) for prompt in asked]
        sampled = [await tokens_of(engine, prompt, sampling=how) for prompt in asked]
        traffic = asyncio.create_task(random_traffic(engine, random.Random(6)))
        for _ in range(3):
            tasks = [tokens_of(engine, prompt) for prompt in asked]
            tasks += [tokens_of(engine, prompt, sampling=how) for prompt in asked]
            assert await asyncio.gather(*tasks) == greedy + sampled
        traffic.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await traffic
        await engine.drain()
        stats = engine.stats()
    assert stats.num_cancelled > 10, "the traffic really left in the middle"
    assert stats.num_slots_taken == 0


async def random_traffic(engine: DecodingEngine, chance: random.Random) -> None:
    """Strangers who come at any time, and often leave before the end."""

    async def stranger(prompt: NDArray[np.int64]) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(chance.uniform(0.001, 0.05)):
                await tokens_of(engine, prompt)

    async with asyncio.TaskGroup() as group:
        for prompt in prompts(500):
            group.create_task(stranger(prompt))
            await asyncio.sleep(chance.uniform(0, 0.01))


def test_a_prompt_in_chunks_gives_the_logits_of_the_whole_prompt(bundle: Bundle, oracle: Any) -> None:
    runner = DecoderRunner(session_of(bundle), geometry_of(bundle.manifest.decoder), max_slots=3, max_len=64)
    prompt = prompts(1, longest=60)[0]
    prompt = np.resize(prompt, 50)
    with torch.no_grad():
        expected = oracle(torch.from_numpy(prompt)[None]).logits[0, -1].numpy()
    for slot, chunk in enumerate((50, 16, 1)):
        for start in range(0, 50, chunk):
            logits = runner.prefill(slot, prompt[start : start + chunk], start=start)
        assert np.abs(logits - expected).max() <= TOLERANCE, f"in chunks of {chunk}"


def test_each_row_of_a_ragged_decode_gives_the_logits_of_pytorch(bundle: Bundle, oracle: Any) -> None:
    runner = DecoderRunner(session_of(bundle), geometry_of(bundle.manifest.decoder), max_slots=4, max_len=64)
    sequences = [list(prompt) for prompt in prompts(4)]
    for slot, sequence in enumerate(sequences):
        runner.prefill(slot, np.array(sequence), start=0)
    for step in range(4):
        lengths = np.array([len(sequence) for sequence in sequences])
        for sequence in sequences:
            sequence.append(7 + step)
        logits = runner.decode(np.full(4, 7 + step), lengths)
        for row, sequence in enumerate(sequences):
            with torch.no_grad():
                expected = oracle(torch.tensor([sequence])).logits[0, -1].numpy()
            assert np.abs(logits[row] - expected).max() <= TOLERANCE


def test_whatever_a_slot_held_before_even_nan_does_not_reach_the_next_sequence(bundle: Bundle) -> None:
    session = DirtySession(session_of(bundle))
    runner = DecoderRunner(session, geometry_of(bundle.manifest.decoder), max_slots=3, max_len=64)
    prompt = prompts(1)[0]
    clean = runner.prefill(1, prompt, start=0).copy()
    clean_next = runner.decode(np.array([0, 9, 0]), np.array([0, len(prompt), 0]))[1].copy()
    session.fill(np.nan)
    assert np.array_equal(runner.prefill(1, prompt, start=0), clean)
    dirty_next = runner.decode(np.array([0, 9, 0]), np.array([0, len(prompt), 0]))[1]
    assert np.array_equal(dirty_next, clean_next)


class DirtySession:
    """A session that can spoil all memory it gave out."""

    def __init__(self, inner: Session) -> None:
        self._inner = inner
        self._buffers: list[DeviceBuffer] = []
        self.inputs, self.outputs = inner.inputs, inner.outputs
        self.execution_provider = inner.execution_provider
        self.run, self.run_each, self.bind, self.copy = inner.run, inner.run_each, inner.bind, inner.copy

    def allocate(self, shape: tuple[int, ...], dtype: Any) -> DeviceBuffer:
        self._buffers.append(self._inner.allocate(shape, dtype))
        return self._buffers[-1]

    def fill(self, value: float) -> None:
        for buffer in self._buffers:
            view: BufferView = buffer.rows(0, buffer.shape[0])
            host_array(view)[...] = value


async def test_a_copied_slot_goes_on_with_the_same_tokens(bundle: Bundle) -> None:
    asked = prompts(7)
    with running(bundle, max_slots=8) as engine:
        alone = await tokens_of(engine, asked[-1])
        short = [engine.generate(SequenceRequest("s", prompt, 2)) for prompt in asked[:-1]]
        tasks = [asyncio.create_task(consume(stream)) for stream in short]
        last = asyncio.create_task(tokens_of(engine, asked[-1]))
        await asyncio.gather(*tasks)
        assert await last == alone


async def consume(stream: Any) -> None:
    async for _ in stream:
        pass
