"""How batches are cut: every text once, little padding, lanes that end together."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
from aimass_encoder.pieces import PIECE_COST, cut
from hypothesis import given
from hypothesis import strategies as st

LENGTHS = st.lists(st.integers(1, 512), min_size=1, max_size=60).map(sorted)
LANES = st.integers(1, 8)


def pieces_of(lengths: list[int], *, num_lanes: int) -> list[list[int]]:
    ends = accumulate(cut(lengths, num_lanes=num_lanes), initial=0)
    return [lengths[start:end] for start, end in pairwise(ends)]


@given(LENGTHS, LANES)
def test_pieces_hold_every_text_once_and_none_is_empty(lengths: list[int], num_lanes: int) -> None:
    pieces = pieces_of(lengths, num_lanes=num_lanes)
    assert all(pieces)
    assert [length for piece in pieces for length in piece] == lengths


@given(LENGTHS, LANES)
def test_a_piece_is_padded_by_less_than_another_run_costs(lengths: list[int], num_lanes: int) -> None:
    for piece in pieces_of(lengths, num_lanes=num_lanes):
        assert sum(piece[-1] - length for length in piece) <= PIECE_COST


@given(length=st.integers(1, 512), texts_a_lane=st.integers(1, 20), num_lanes=LANES)
def test_texts_of_one_length_are_dealt_out_evenly(length: int, texts_a_lane: int, num_lanes: int) -> None:
    assert cut([length] * (texts_a_lane * num_lanes), num_lanes=num_lanes) == [texts_a_lane] * num_lanes


@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [
        pytest.param([7], [1], id="one text"),
        pytest.param([7, 256], [1, 1], id="a short text beside a long one is not padded to it"),
        pytest.param([16, 17, 18, 200], [3, 1], id="the long one has a lane for itself"),
        pytest.param([256] * 3, [1, 2], id="an odd one: no lane can be spared"),
    ],
)
def test_small_batches_on_two_lanes(lengths: list[int], sizes: list[int]) -> None:
    assert cut(lengths, num_lanes=2) == sizes


def test_on_one_lane_pieces_only_save_padding() -> None:
    assert cut([30] * 20, num_lanes=1) == [20]
    assert cut([10] * 20 + [200] * 4, num_lanes=1) == [20, 4]
