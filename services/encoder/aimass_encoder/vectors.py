"""How vectors are packed into bytes. Pure; the formats are those of `VectorDtype` in the embedding proto."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aimass_encoder.request import VectorDtype

_FLOAT16_MAX = float(np.finfo(np.float16).max)
_INT8_MAX = 127


@dataclass(frozen=True, slots=True)
class PackedVector:
    """One vector as bytes."""

    content: bytes
    scale: float = 0.0
    """INT8 only: multiply each number by this to undo the packing. 0 for a vector of zeros."""


def pack(vectors: NDArray[np.float32], dtype: VectorDtype) -> Sequence[PackedVector]:
    """Pack each row of [batch, dimensions], little-endian.

    FLOAT16 holds numbers up to 65504: larger ones become that. INT8 is round(127 * x / max|x|) of each row.
    BINARY is one bit a dimension, 1 where x > 0, most significant first, filled with zeros to whole bytes.
    """
    match dtype:
        case VectorDtype.FLOAT32:
            return _rows(vectors.astype("<f4"))
        case VectorDtype.FLOAT16:
            return _rows(np.clip(vectors, -_FLOAT16_MAX, _FLOAT16_MAX).astype("<f2"))
        case VectorDtype.INT8:
            return _int8_rows(vectors)
        case VectorDtype.BINARY:
            return _rows(np.packbits(vectors > 0, axis=1, bitorder="big"))


def _rows(packed: NDArray[np.generic]) -> Sequence[PackedVector]:
    return [PackedVector(row.tobytes()) for row in packed]


def _int8_rows(vectors: NDArray[np.float32]) -> Sequence[PackedVector]:
    # In float64: 127 / max|x| overflows float32 for very small vectors.
    largest = np.abs(vectors.astype(np.float64)).max(axis=1, keepdims=True)  # [batch, 1]
    unit = np.divide(vectors, largest, out=np.zeros(vectors.shape), where=largest > 0)
    packed = np.rint(unit * _INT8_MAX).astype(np.int8)
    scales = largest[:, 0] / _INT8_MAX
    return [PackedVector(row.tobytes(), float(scale)) for row, scale in zip(packed, scales, strict=True)]
