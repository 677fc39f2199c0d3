"""G.711: mu-law and A-law samples to and from linear ones, by tables. Knows nothing of files or rates.

Source: ITU-T G.711, tables 1a to 2b.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BIAS = 0x84


def _mulaw_table() -> NDArray[np.float32]:
    """Return the linear value of each mu-law byte, full scale 1."""
    code = ~np.arange(256, dtype=np.uint8)
    exponent, mantissa = ((code >> 4) & 7).astype(np.int32), (code & 15).astype(np.int32)
    magnitude = (((mantissa << 3) + _BIAS) << exponent) - _BIAS
    return (np.where(code & 0x80, -magnitude, magnitude) / 32_768).astype(np.float32)


def _alaw_table() -> NDArray[np.float32]:
    """Return the linear value of each A-law byte, full scale 1."""
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    exponent, mantissa = ((code >> 4) & 7).astype(np.int32), (code & 15).astype(np.int32)
    first = (mantissa << 4) + 8
    magnitude = np.where(exponent > 0, (first + 0x100) << np.maximum(exponent - 1, 0), first)
    return (np.where(code & 0x80, magnitude, -magnitude) / 32_768).astype(np.float32)


MULAW_TO_LINEAR = _mulaw_table()  # [256]
ALAW_TO_LINEAR = _alaw_table()  # [256]


def _nearest_codes(table: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return for each 16-bit sample, as an unsigned index, the byte whose linear value is nearest."""
    order = np.argsort(table, kind="stable")
    values = table[order].astype(np.float64)
    samples = np.arange(-32_768, 32_768) / 32_768
    borders = (values[1:] + values[:-1]) / 2
    codes = order[np.searchsorted(borders, samples)].astype(np.uint8)
    return np.roll(codes, -32_768)  # so that a sample read as uint16 is its own index


_LINEAR_TO_MULAW = _nearest_codes(MULAW_TO_LINEAR)  # [65536]
_LINEAR_TO_ALAW = _nearest_codes(ALAW_TO_LINEAR)  # [65536]


def decode_mulaw(content: bytes) -> NDArray[np.float32]:
    """Return the samples [n] of mu-law bytes, full scale 1."""
    return MULAW_TO_LINEAR[np.frombuffer(content, np.uint8)]


def decode_alaw(content: bytes) -> NDArray[np.float32]:
    """Return the samples [n] of A-law bytes, full scale 1."""
    return ALAW_TO_LINEAR[np.frombuffer(content, np.uint8)]


def encode_mulaw(samples: NDArray[np.int16]) -> bytes:
    """Return 16-bit samples [n] as mu-law, each the nearest code."""
    return _LINEAR_TO_MULAW[samples.view(np.uint16)].tobytes()


def encode_alaw(samples: NDArray[np.int16]) -> bytes:
    """Return 16-bit samples [n] as A-law, each the nearest code."""
    return _LINEAR_TO_ALAW[samples.view(np.uint16)].tobytes()
