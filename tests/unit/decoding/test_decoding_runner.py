"""The runner puts every token where it belongs: seen through a decoder whose cache holds the tokens."""

from __future__ import annotations

import numpy as np
import pytest
from aimass.model.v1.manifest_pb2 import DecoderSpec
from aimass_decoding.runner import DecoderGeometry, DecoderRunner, geometry_of
from aimass_decoding.testing import FakeDecoder, fake_geometry, hashed_logits
from aimass_serving.session import CUDA_PROVIDER, BufferView
from aimass_serving.testing import FakeSession

MAX_LEN = 16
LOGITS = hashed_logits()


def runner(num_slots: int = 3) -> DecoderRunner:
    session = FakeDecoder(LOGITS).session()
    return DecoderRunner(session, fake_geometry(), max_slots=num_slots, max_len=MAX_LEN)


def test_a_prompt_in_chunks_gives_the_logits_of_the_whole_prompt() -> None:
    sut, prompt = runner(), np.arange(1, 10)
    whole = sut.prefill(0, prompt, start=0).copy()
    sut.prefill(1, prompt[:4], start=0)
    sut.prefill(1, prompt[4:8], start=4)
    assert np.array_equal(sut.prefill(1, prompt[8:], start=8), whole)
    assert np.array_equal(whole, LOGITS(tuple(range(1, 10))))


def test_decode_continues_each_slot_at_its_own_length() -> None:
    sut = runner()
    for slot, prompt in enumerate([[1, 2, 3], [4], [5, 6]]):
        sut.prefill(slot, np.array(prompt), start=0)
    logits = sut.decode(np.array([7, 8, 9]), np.array([3, 1, 2]))
    for row, tokens in enumerate([(1, 2, 3, 7), (4, 8), (5, 6, 9)]):
        assert np.array_equal(logits[row], LOGITS(tokens))


def test_fewer_rows_leave_the_higher_slots_alone() -> None:
    sut = runner()
    sut.prefill(0, np.array([1]), start=0)
    sut.prefill(2, np.array([2, 3]), start=0)
    assert sut.decode(np.array([4]), np.array([1])).shape == (1, 32)
    logits = sut.decode(np.array([5, 0, 6]), np.array([2, 0, 2]))
    assert np.array_equal(logits[0], LOGITS((1, 4, 5)))
    assert np.array_equal(logits[2], LOGITS((2, 3, 6)))


def test_a_slot_can_be_filled_to_its_last_token_and_not_beyond() -> None:
    sut = runner()
    sut.prefill(0, np.zeros(MAX_LEN - 1, np.int64), start=0)
    sut.decode(np.array([0]), np.array([MAX_LEN - 1]))
    with pytest.raises(ValueError, match="full"):
        sut.decode(np.array([0]), np.array([MAX_LEN]))


@pytest.mark.parametrize(("count", "start"), [(0, 0), (MAX_LEN + 1, 0), (4, MAX_LEN - 3)])
def test_a_chunk_that_does_not_fit_is_refused(count: int, start: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        runner().prefill(0, np.zeros(count, np.int64), start=start)


def test_a_copied_slot_continues_like_its_source() -> None:
    sut = runner()
    sut.prefill(2, np.array([1, 2, 3]), start=0)
    assert sut.can_copy_slots
    sut.copy_slot(2, 0, num_tokens=3)
    assert np.array_equal(sut.decode(np.array([4]), np.array([3]))[0], LOGITS((1, 2, 3, 4)))


def test_a_slot_in_the_memory_of_a_device_is_copied_by_the_session() -> None:
    """The fake device's memory is the host's; the session's copy itself is tested with the session."""
    decoder = FakeDecoder(LOGITS)
    session = CountingSession(decoder, execution_provider=CUDA_PROVIDER)
    sut = DecoderRunner(session, fake_geometry(), max_slots=3, max_len=MAX_LEN)
    sut.prefill(2, np.array([1, 2, 3]), start=0)
    sut.prefill(1, np.array([9]), start=0)
    sut.copy_slot(2, 0, num_tokens=3)
    logits = sut.decode(np.array([4, 8, 4]), np.array([3, 1, 3]))
    assert np.array_equal(logits[0], LOGITS((1, 2, 3, 4)))
    assert np.array_equal(logits[1], LOGITS((9, 8)))
    assert np.array_equal(logits[2], logits[0])
    assert session.num_copies == 2  # keys and values of one layer


class CountingSession(FakeSession):
    """Counts what is copied within its memory."""

    num_copies = 0

    def copy(self, source: BufferView, target: BufferView) -> None:
        self.num_copies += 1
        super().copy(source, target)


def test_all_logits_of_a_prompt_are_those_of_its_beginnings() -> None:
    sut = runner()
    first = sut.prefill_all(1, np.array([1, 2, 3]), start=0)
    rest = sut.prefill_all(1, np.array([4, 5]), start=3)
    assert np.array_equal(first, [LOGITS((1,)), LOGITS((1, 2)), LOGITS((1, 2, 3))])
    assert np.array_equal(rest, [LOGITS((1, 2, 3, 4)), LOGITS((1, 2, 3, 4, 5))])
    assert np.array_equal(sut.prefill(1, np.array([6]), start=5), LOGITS((1, 2, 3, 4, 5, 6)))
    end = sut.prefill_all(0, np.array([7, 8, 9]), start=0, first=1)
    assert np.array_equal(end, [LOGITS((7, 8)), LOGITS((7, 8, 9))])


def test_geometry_is_what_the_manifest_states() -> None:
    spec = DecoderSpec(
        num_layers=2, num_kv_heads=3, head_dim=8, vocab_size=100, max_positions=64, kv_dtype="float16"
    )
    geometry = geometry_of(spec)
    assert geometry == DecoderGeometry(2, 3, 8, 100, 64, "float16")
    assert geometry.kv_bytes_per_token == 2 * 2 * 3 * 8 * 2
