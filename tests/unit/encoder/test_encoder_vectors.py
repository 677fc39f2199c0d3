"""Packing vectors, checked by unpacking them as the proto tells a client to."""

from __future__ import annotations

import numpy as np
import pytest
from aimass_encoder.request import VectorDtype
from aimass_encoder.vectors import PackedVector, pack
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

VECTORS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(1, 19)), elements=st.floats(-1e4, 1e4, width=32)
)


def unpack(packed: PackedVector, dtype: str) -> NDArray[np.float64]:
    return np.frombuffer(packed.content, dtype).astype(np.float64)


@given(VECTORS)
def test_float32_is_exact(vectors: NDArray[np.float32]) -> None:
    for row, packed in zip(vectors, pack(vectors, VectorDtype.FLOAT32), strict=True):
        np.testing.assert_array_equal(unpack(packed, "<f4"), row)


@given(VECTORS)
def test_float16_keeps_eleven_bits(vectors: NDArray[np.float32]) -> None:
    for row, packed in zip(vectors, pack(vectors, VectorDtype.FLOAT16), strict=True):
        np.testing.assert_allclose(unpack(packed, "<f2"), row, rtol=2**-11, atol=2**-25)


def test_float16_saturates_instead_of_becoming_infinite() -> None:
    (packed,) = pack(np.array([[1e6, -1e6]], np.float32), VectorDtype.FLOAT16)
    np.testing.assert_array_equal(unpack(packed, "<f2"), [65504, -65504])


@given(VECTORS)
def test_int8_is_within_half_a_step(vectors: NDArray[np.float32]) -> None:
    for row, packed in zip(vectors, pack(vectors, VectorDtype.INT8), strict=True):
        assert len(packed.content) == len(row)
        np.testing.assert_allclose(unpack(packed, "i1") * packed.scale, row, atol=0.501 * packed.scale)


def test_int8_uses_the_whole_range_of_each_row() -> None:
    packed = pack(np.array([[0.5, -0.25], [0, 8]], np.float32), VectorDtype.INT8)
    assert [list(unpack(p, "i1")) for p in packed] == [[127, -64], [0, 127]]
    assert [p.scale for p in packed] == [pytest.approx(0.5 / 127), pytest.approx(8 / 127)]


def test_int8_of_zeros_is_zeros() -> None:
    (packed,) = pack(np.zeros((1, 3), np.float32), VectorDtype.INT8)
    assert packed == PackedVector(b"\0\0\0", 0.0)


def test_binary_has_the_first_dimension_in_the_highest_bit() -> None:
    (packed,) = pack(np.array([[1, -1, 0, 2, -3, 1, 1, 1, 1]], np.float32), VectorDtype.BINARY)
    assert packed.content == bytes([0b10010111, 0b10000000])
