"""Vectors are the same numbers after the way, as far as their packing can hold them."""

from __future__ import annotations

import numpy as np
import pytest
from aimass.embedding.v1 import embedding_service_pb2 as pb
from aimass.vectors import VectorDtype, dtype_pb, unpack_vector
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray

vectors = st_numpy.arrays(
    np.float32, st.integers(1, 40), elements=st.floats(-100, 100, width=32, allow_subnormal=False)
)


@given(vectors)
def test_float32_arrives_unchanged(vector: NDArray[np.float32]) -> None:
    sent = pb.Embedding(vector=vector.astype("<f4").tobytes())

    assert np.array_equal(unpack_vector(sent, pb.VECTOR_DTYPE_FLOAT32, len(vector)), vector)


@given(vectors)
def test_float16_arrives_rounded_to_half_precision(vector: NDArray[np.float32]) -> None:
    sent = pb.Embedding(vector=vector.astype("<f2").tobytes())

    received = unpack_vector(sent, pb.VECTOR_DTYPE_FLOAT16, len(vector))

    assert np.array_equal(received, vector.astype(np.float16).astype(np.float32))


@given(vectors)
def test_int8_arrives_within_half_a_step_of_its_scale(vector: NDArray[np.float32]) -> None:
    largest = float(np.abs(vector).max())
    scale = largest / 127 if largest else 1.0
    sent = pb.Embedding(vector=np.round(vector / scale).astype(np.int8).tobytes(), scale=scale)

    received = unpack_vector(sent, pb.VECTOR_DTYPE_INT8, len(vector))

    assert np.abs(received - vector).max() <= scale * 0.5001


@given(vectors)
def test_binary_arrives_as_signs(vector: NDArray[np.float32]) -> None:
    sent = pb.Embedding(vector=np.packbits(vector > 0).tobytes())

    received = unpack_vector(sent, pb.VECTOR_DTYPE_BINARY, len(vector))

    assert np.array_equal(received, np.where(vector > 0, 1, -1))


@given(vectors, st.sampled_from(VectorDtype))
def test_every_dtype_arrives_as_float32_of_the_stated_length(
    vector: NDArray[np.float32], dtype: VectorDtype
) -> None:
    num_bytes = {"float32": 4 * len(vector), "float16": 2 * len(vector), "int8": len(vector)}
    sent = pb.Embedding(vector=bytes(num_bytes.get(dtype, -(-len(vector) // 8))), scale=1)

    received = unpack_vector(sent, dtype_pb(dtype), len(vector))

    assert received.dtype == np.float32
    assert received.shape == (len(vector),)


@pytest.mark.parametrize("num_bytes", [0, 4, 12])
def test_bytes_of_another_length_are_refused(num_bytes: int) -> None:
    with pytest.raises(ValueError, match="expected a vector of 2 numbers"):
        unpack_vector(pb.Embedding(vector=bytes(num_bytes)), pb.VECTOR_DTYPE_FLOAT32, 2)


def test_a_dtype_newer_than_the_client_is_refused() -> None:
    with pytest.raises(ValueError, match="number 99"):
        unpack_vector(pb.Embedding(vector=b"1234"), 99, 1)  # type: ignore[arg-type]
