"""Pooling and normalising, on arrays small enough to check by hand."""

from __future__ import annotations

import numpy as np
import pytest
from aimass_encoder.pooling import Pooling, l2_normalize, pool
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

HIDDEN: NDArray[np.float32] = np.array(
    [[[1, 2], [3, 4], [5, 6]], [[7, 8], [np.nan, np.nan], [np.inf, 0]]], np.float32
)  # [2, 3, 2]; the second row has one token, its padding holds garbage
MASK = np.array([[1, 1, 1], [1, 0, 0]], np.int64)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (Pooling.CLS, [[1, 2], [7, 8]]),
        (Pooling.MEAN, [[3, 4], [7, 8]]),
        (Pooling.LAST, [[5, 6], [7, 8]]),
    ],
)
def test_pooling_reads_tokens_and_never_padding(pooling: Pooling, expected: list[list[float]]) -> None:
    np.testing.assert_array_equal(pool(HIDDEN, MASK, pooling), np.array(expected, np.float32))


@pytest.mark.parametrize("pooling", list(Pooling))
def test_a_row_without_tokens_pools_to_zeros(pooling: Pooling) -> None:
    pooled = pool(np.full((1, 2, 3), np.nan, np.float32), np.zeros((1, 2), np.int64), pooling)
    np.testing.assert_array_equal(pooled, np.zeros((1, 3), np.float32))


@pytest.mark.parametrize("pooling", list(Pooling))
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), padding=st.integers(0, 4))
def test_a_row_pools_to_the_same_vector_alone_and_in_any_batch(
    pooling: Pooling, lengths: list[int], padding: int
) -> None:
    rng = np.random.default_rng(len(lengths) + padding)
    hidden = rng.normal(size=(len(lengths), max(lengths) + padding, 4)).astype(np.float32)
    mask = (np.arange(hidden.shape[1]) < np.array(lengths)[:, None]).astype(np.int64)
    together = pool(hidden, mask, pooling)
    for row, length in enumerate(lengths):
        alone = pool(hidden[row : row + 1, :length], mask[row : row + 1, :length], pooling)
        np.testing.assert_array_equal(together[row], alone[0])


FINITE = st.floats(-(2.0**100), 2.0**100, width=32)


@given(vectors=hnp.arrays(np.float32, (3, 5), elements=FINITE))
def test_normalised_rows_have_length_one_or_are_zero(vectors: NDArray[np.float32]) -> None:
    length = np.linalg.norm(l2_normalize(vectors), axis=1)
    is_zero = ~vectors.any(axis=1)
    np.testing.assert_allclose(length[~is_zero], 1, rtol=1e-5)
    np.testing.assert_array_equal(length[is_zero], 0)


def test_normalising_does_not_hide_nan() -> None:
    normalised = l2_normalize(np.array([[np.nan, 1], [3, 4]], np.float32))
    assert np.isnan(normalised[0]).all()
    np.testing.assert_allclose(normalised[1], [0.6, 0.8], rtol=1e-6)


def test_normalising_keeps_the_direction() -> None:
    np.testing.assert_allclose(l2_normalize(np.array([[3, -4]], np.float32)), [[0.6, -0.8]], rtol=1e-6)
