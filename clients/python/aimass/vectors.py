"""Unpacks the bytes a vector travels in. Knows no call.

The layouts are those of `VectorDtype` in `embedding_service.proto`.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from aimass.embedding.v1 import embedding_service_pb2 as pb


class VectorDtype(StrEnum):
    """How the numbers of a vector are packed on the way."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    BINARY = "binary"


def dtype_pb(dtype: VectorDtype) -> pb.VectorDtype.ValueType:
    """Return the protocol's number of a dtype."""
    return pb.VectorDtype.Value(f"VECTOR_DTYPE_{dtype.name}")


def unpack_vector(
    embedding_pb: pb.Embedding, dtype: pb.VectorDtype.ValueType, dimensions: int
) -> NDArray[np.float32]:
    """Return the numbers of one vector: float32 `[dimensions]`.

    A binary vector comes back as +1 where the bit is set and -1 elsewhere, so that a dot product counts equal
    signs. Raises `ValueError` for a dtype newer than this client or bytes of another length.
    """
    packed = embedding_pb.vector
    match dtype:
        case pb.VECTOR_DTYPE_FLOAT32:
            vector = np.frombuffer(packed, "<f4")
        case pb.VECTOR_DTYPE_FLOAT16:
            vector = np.frombuffer(packed, "<f2")
        case pb.VECTOR_DTYPE_INT8:
            vector = np.frombuffer(packed, np.int8) * np.float32(embedding_pb.scale)
        case pb.VECTOR_DTYPE_BINARY:
            bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=dimensions)
            vector = bits.astype(np.float32) * 2 - 1
        case _:
            raise ValueError(f"expected a vector dtype this client knows, got number {dtype}")
    if vector.shape != (dimensions,):
        raise ValueError(f"expected a vector of {dimensions} numbers, got {vector.size}")
    return vector.astype(np.float32, copy=False)
