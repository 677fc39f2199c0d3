"""Sources beside slots: what a runner binds, and what a sequence of the engine sees. No model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from aimass_decoding.config import EngineConfig
from aimass_decoding.cross_attention import CrossGeometry, CrossMemory, SourceEncoder, SourceMemory
from aimass_decoding.request import SequenceRequest
from aimass_decoding.runner import DecoderGeometry, DecoderRunner
from aimass_decoding.testing import FakeDecoder, SteppedEngine, hashed_logits
from aimass_serving.errors import BadConfig
from aimass_serving.testing import FakeSession
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

CROSS = CrossGeometry(num_layers=1, num_heads=2, head_dim=3, max_source_positions=8)
GEOMETRY = DecoderGeometry(
    num_layers=1, num_kv_heads=1, head_dim=1, vocab_size=32, max_positions=64, cross=CROSS
)


def memory(value: float, *, length: int = 4) -> SourceMemory:
    """Return a source whose every number is `value`."""
    return SourceMemory(tuple(np.full((2, length, 3), value, np.float32) for _ in CROSS.names))


class SeeingDecoder(FakeDecoder):
    """A fake decoder whose logits also tell which source each row attends to."""

    def __init__(self) -> None:
        super().__init__(hashed_logits())
        self.sources: list[list[float]] = []
        self.num_sources: list[int] = []

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        outputs = super().__call__(feeds)
        lengths, keys = feeds["cross_len"], feeds["cross.0.key"]
        self.num_sources.append(len(keys))
        readers = feeds["cross_readers"].ravel()[feeds["cross_places"]]
        assert readers.tolist() == list(range(len(readers)))  # each row comes back to its own place
        sources = feeds["cross_places"] // feeds["cross_readers"].shape[1]
        seen = [float(keys[source, :, : lengths[source]].mean()) for source in sources]
        assert all(not keys[source, :, lengths[source] :].any() for source in sources)
        self.sources.append(seen)
        outputs["logits"] = outputs["logits"] + np.array(seen, np.float32)[:, None] * np.arange(32) % 7
        return outputs


def stepped(decoder: FakeDecoder, *, max_slots: int = 3) -> SteppedEngine:
    return SteppedEngine(decoder, EngineConfig(max_slots=max_slots, max_len=32), geometry=GEOMETRY)


def request(value: float, tokens: list[int], *, max_new_tokens: int = 4) -> SequenceRequest:
    return SequenceRequest("r", np.array(tokens), max_new_tokens, memory=memory(value))


def test_each_row_reads_the_source_of_its_slot() -> None:
    decoder = SeeingDecoder()
    runner = DecoderRunner(decoder.session(), GEOMETRY, max_slots=3, max_len=16)
    for slot, value in enumerate((1.0, 2.0, 3.0)):
        runner.set_memory(slot, memory(value, length=slot + 2))
        runner.prefill(slot, np.array([5]), start=0)
    runner.decode(np.array([1, 1, 1]), np.array([1, 1, 1]))
    assert decoder.sources == [[1.0], [2.0], [3.0], [1.0, 2.0, 3.0]]


def test_a_shorter_source_leaves_nothing_of_the_one_before_it() -> None:
    decoder = SeeingDecoder()
    runner = DecoderRunner(decoder.session(), GEOMETRY, max_slots=1, max_len=16)
    runner.set_memory(0, memory(9.0, length=8))
    runner.set_memory(0, memory(2.0, length=1))
    runner.prefill(0, np.array([5]), start=0)  # the fake asserts that the rest is zero
    assert decoder.sources == [[2.0]]


def test_copied_memory_follows_its_sequence() -> None:
    decoder = SeeingDecoder()
    runner = DecoderRunner(decoder.session(), GEOMETRY, max_slots=2, max_len=16)
    runner.set_memory(0, memory(1.0))
    runner.set_memory(1, memory(2.0, length=3))
    runner.copy_memory(1, 0)
    runner.prefill(0, np.array([5]), start=0)
    assert decoder.sources == [[2.0]]


def test_slots_that_go_on_from_one_source_read_it_together() -> None:
    decoder = SeeingDecoder()
    runner = DecoderRunner(decoder.session(), GEOMETRY, max_slots=5, max_len=16)
    for slot, value in ((0, 1.0), (3, 2.0)):
        runner.set_memory(slot, memory(value))
        runner.prefill(slot, np.array([5]), start=0)
    for source, target in ((0, 1), (0, 2), (3, 4)):
        runner.copy_memory(source, target)
    runner.decode(np.ones(5, np.int64), np.ones(5, np.int64))
    assert decoder.sources[-1] == [1.0, 1.0, 1.0, 2.0, 2.0]
    assert decoder.num_sources == [1, 1, 2]


def test_a_new_source_leaves_those_who_shared_the_old_one_alone() -> None:
    decoder = SeeingDecoder()
    runner = DecoderRunner(decoder.session(), GEOMETRY, max_slots=2, max_len=16)
    runner.set_memory(0, memory(1.0))
    runner.copy_memory(0, 1)
    runner.set_memory(0, memory(2.0))
    runner.decode(np.ones(2, np.int64), np.ones(2, np.int64))
    assert decoder.sources[-1] == [2.0, 1.0]


@pytest.mark.parametrize("length", [0, 9])
def test_a_source_that_does_not_fit_is_refused(length: int) -> None:
    cross = CrossMemory(FakeSession(lambda _: {}), CROSS, max_slots=1)
    with pytest.raises(ValueError, match="1 to 8 positions"):
        cross.write(0, memory(1.0, length=length))


def test_a_source_of_another_model_is_refused() -> None:
    cross = CrossMemory(FakeSession(lambda _: {}), CROSS, max_slots=1)
    with pytest.raises(ValueError, match="2 arrays of shape"):
        cross.write(0, SourceMemory((np.zeros((2, 4, 5), np.float32),) * 2))


def test_a_model_without_an_encoder_takes_no_source() -> None:
    plain = DecoderGeometry(num_layers=1, num_kv_heads=1, head_dim=1, vocab_size=32, max_positions=64)
    runner = DecoderRunner(FakeDecoder(hashed_logits()).session(), plain, max_slots=1, max_len=16)
    with pytest.raises(ValueError, match="by no other"):
        runner.set_memory(0, memory(1.0))
    runner.set_memory(0, None)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=8))
def test_a_sequence_reads_its_own_source_whoever_runs_beside_it(requests: list[tuple[int, int]]) -> None:
    together = stepped(SeeingDecoder())
    sequences = [
        together.submit(request(float(value), [value, 3], max_new_tokens=count)) for value, count in requests
    ]
    together.run()
    for sequence, (value, count) in zip(sequences, requests, strict=True):
        alone = stepped(SeeingDecoder(), max_slots=1)
        expected = alone.submit(request(float(value), [value, 3], max_new_tokens=count))
        alone.run()
        assert together.tokens_of(sequence) == alone.tokens_of(expected)


def test_the_memory_budget_counts_sources_too() -> None:
    per_slot = GEOMETRY.kv_bytes_per_token * 32 + CROSS.bytes_per_slot
    assert CROSS.bytes_per_slot == 2 * 2 * 8 * 3 * 4
    config = EngineConfig(max_slots=9, max_len=32, kv_budget_bytes=3 * per_slot - 1)
    assert config.num_slots_of(GEOMETRY) == 2
    with pytest.raises(BadConfig):
        EngineConfig(max_len=32, kv_budget_bytes=per_slot - 1).num_slots_of(GEOMETRY)


def test_an_encoders_batch_is_cut_into_its_rows() -> None:
    outputs = {name: np.arange(2 * 2 * 4 * 3, dtype=np.float32).reshape(2, 2, 4, 3) for name in CROSS.names}
    encoder = SourceEncoder(FakeSession(lambda _: outputs), CROSS)
    first, second = encoder.encode({}, lengths=[4, 2])
    assert (first.length, second.length) == (4, 2)
    assert np.array_equal(second.arrays[1], outputs["cross.0.value"][1, :, :2])
