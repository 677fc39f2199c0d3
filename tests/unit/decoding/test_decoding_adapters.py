"""Sequences with different adapters in one engine: each row gets its own, and nothing computed crosses over.

The fake decoder remembers with each token the adapter it was computed with, so that a row, a copy or a shared
prompt that mixes two of them gives other tokens.
"""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from aimass_decoding.config import EngineConfig
from aimass_decoding.request import BeamParams, SamplingParams, SequenceRequest
from aimass_decoding.runner import DecoderRunner
from aimass_decoding.sequence import Sequence, Stage
from aimass_decoding.testing import (
    ADAPTER_STRIDE,
    FakeDecoder,
    SteppedEngine,
    fake_engine,
    fake_geometry,
    hashed_logits,
)
from aimass_serving.errors import InvalidField

CHUNK, NUM_NEW = 4, 6
LOGITS = hashed_logits()
GEOMETRY = fake_geometry(num_adapters=2)
PROMPT = list(range(1, 11))


def engine(**settings: int) -> SteppedEngine:
    config = EngineConfig(**{"max_slots": 3, "max_len": 48, "max_prefill_tokens_per_step": CHUNK} | settings)
    return SteppedEngine(FakeDecoder(LOGITS), config, geometry=GEOMETRY)


def request(prompt: list[int], adapter: int, *, max_new_tokens: int = NUM_NEW) -> SequenceRequest:
    return SequenceRequest("r", np.array(prompt), max_new_tokens, adapter=adapter)


def greedy(prompt: list[int], adapter: int, count: int = NUM_NEW) -> list[int]:
    """Return the tokens of a model that remembers each token with this adapter."""
    remembered, chosen = [token + ADAPTER_STRIDE * adapter for token in prompt], []
    for _ in range(count):
        chosen.append(int(LOGITS(tuple(remembered)).argmax()))
        remembered.append(chosen[-1] + ADAPTER_STRIDE * adapter)
    return chosen


def run(sut: SteppedEngine, prompt: list[int], adapter: int) -> Sequence:
    sequence = sut.submit(request(prompt, adapter))
    sut.run()
    assert sut.tokens_of(sequence) == greedy(prompt, adapter)
    return sequence


def test_rows_of_one_step_have_adapters_of_their_own() -> None:
    sut = engine()
    sequences = [sut.submit(request([*PROMPT, adapter], adapter)) for adapter in (2, 0, 1)]
    sut.run()
    assert ("decode", 3) in sut.runner.calls
    for sequence, adapter in zip(sequences, (2, 0, 1), strict=True):
        assert sut.tokens_of(sequence) == greedy([*PROMPT, adapter], adapter)


def test_a_prompt_is_never_shared_across_adapters() -> None:
    sut = engine(max_slots=6)
    for adapter in (0, 1, 2):
        assert run(sut, PROMPT, adapter).num_reused == 0
    for adapter in (1, 0, 2):
        assert run(sut, PROMPT, adapter).num_reused == len(PROMPT), "each finds its own again"


def test_a_slot_that_held_one_adapter_serves_another_next() -> None:
    sut = engine(max_slots=1, max_kept_prefixes=0)
    for adapter in (1, 2, 0, 1):
        run(sut, [*PROMPT, adapter], adapter)


def test_a_sequence_that_moves_takes_its_adapter_along() -> None:
    sut = engine(max_slots=4)
    short = [sut.submit(request([index, 3], 1, max_new_tokens=8)) for index in (1, 2, 3)]
    long = sut.submit(request(PROMPT, 2, max_new_tokens=16))
    slots = set()
    while sut.scheduler.has_work:
        sut.stepper.step()
        if long.stage is Stage.DECODING:
            slots.add(long.slot)
    assert len(slots) > 1, "the rows before it became holes"
    assert sut.tokens_of(long) == greedy(PROMPT, 2, 16)
    assert all(s.stage is Stage.DONE for s in short)


def test_the_sequences_of_a_request_all_have_its_adapter() -> None:
    sut = engine()
    sampling = SamplingParams(temperature=1e-3)  # drawn, and as good as greedy
    asked = SequenceRequest("r", np.array(PROMPT), NUM_NEW, sampling, num_sequences=3, adapter=1)
    sequences = sut.submit_all(asked)
    sut.run()
    assert all(sut.tokens_of(sequence) == greedy(PROMPT, 1) for sequence in sequences)
    assert sequences[2].num_reused == len(PROMPT)


@pytest.mark.parametrize("adapter", [0, 1, 2])
async def test_beams_are_computed_with_the_adapter_of_their_request(adapter: int) -> None:
    def adapted(tokens: tuple[int, ...]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        assert {token // ADAPTER_STRIDE for token in tokens} == {adapter}, "every token by the same adapter"
        return LOGITS(tokens)

    beams = BeamParams(num_beams=3)
    with fake_engine(adapted, EngineConfig(max_beams=4, max_slots=2), num_adapters=2) as sut:
        asked = SequenceRequest("r", np.array(PROMPT), NUM_NEW, beams=beams, adapter=adapter)
        [delta] = [delta async for delta in sut.generate(asked)]
        assert len(delta.token_ids) == NUM_NEW


async def test_searches_and_streams_of_several_adapters_run_beside_one_another() -> None:
    async def tokens(sut_request: SequenceRequest) -> list[int]:
        return [token async for delta in sut.generate(sut_request) for token in delta.token_ids]

    with fake_engine(LOGITS, EngineConfig(max_beams=4, max_slots=2), num_adapters=2) as sut:
        searches = [
            SequenceRequest("r", np.array(PROMPT), NUM_NEW, beams=BeamParams(num_beams=1), adapter=adapter)
            for adapter in (1, 2, 0)
        ]
        streams = [request(PROMPT, adapter) for adapter in (2, 1)]
        texts = await asyncio.gather(*map(tokens, [*searches, *streams]))
    assert texts == [greedy(PROMPT, adapter) for adapter in (1, 2, 0, 2, 1)]


async def test_an_adapter_that_the_model_has_not_is_refused() -> None:
    with fake_engine(LOGITS, num_adapters=2) as sut:
        with pytest.raises(InvalidField, match="adapter: expected 0 to 2, got 3"):
            await anext(sut.generate(request(PROMPT, 3)))
        with pytest.raises(InvalidField, match="got -1"):
            await anext(sut.generate(request(PROMPT, -1)))
    runner = DecoderRunner(FakeDecoder(LOGITS).session(), GEOMETRY, max_slots=2, max_len=16)
    with pytest.raises(ValueError, match="from 0 to 2"):
        runner.set_adapter(0, 3)
