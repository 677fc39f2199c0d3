"""Integer weights in blocks along the inputs of a matrix, each with a scale and a zero point. Pure
arithmetic.

The layout is that of onnxruntime's MatMulNBits and GatherBlockQuantized: weight = (q - zero_point) * scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK_SIZES = {8: 64, 4: 32}
"""Numbers that share a scale, by bits. With 8 bits blocks of 64 lose hardly more than those of 32 (SmolLM2:
perplexity +0.6 % either way) and are up to a fifth faster; blocks of 128 lose 1.4 %.
"""
_SHRINKS = (0.95, 0.9, 0.85, 0.8, 0.75)
Weights = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class BlockQuantized:
    """A matrix [outputs, inputs] in integers of 4 or 8 bits."""

    levels: NDArray[np.uint8]  # [outputs, blocks, block_size], one number a byte
    scales: Weights  # [outputs, blocks]
    zero_points: NDArray[np.uint8]  # [outputs, blocks]
    num_inputs: int
    bits: int

    @property
    def block_size(self) -> int:
        """Numbers that share a scale."""
        return int(self.levels.shape[2])

    def packed_levels(self) -> NDArray[np.uint8]:
        """Return [outputs, blocks, bytes of a block]: of two 4-bit numbers the first is in the low half."""
        return self.levels if self.bits == 8 else _packed(self.levels)

    def packed_zero_points(self) -> NDArray[np.uint8]:
        """Return [outputs, bytes of a row], packed like the levels and filled up to whole bytes."""
        if self.bits == 8:
            return self.zero_points
        return _packed(np.pad(self.zero_points, ((0, 0), (0, self.zero_points.shape[1] % 2))))

    def dequantized(self) -> Weights:
        """Return the matrix [outputs, inputs] that these numbers stand for."""
        centred = self.levels.astype(np.float32) - self.zero_points[..., None]
        matrix: Weights = (centred * self.scales[..., None]).reshape(len(centred), -1)
        return matrix[:, : self.num_inputs]


def quantize_blocks(matrix: Weights, *, bits: int) -> BlockQuantized:
    """Quantise a matrix [outputs, inputs], zero always being one of the levels.

    With 8 bits every number moves by at most half a step of its block. With 4 bits several ranges are tried
    for each block and the one with the least squared error is kept: cutting off a lone outlier can serve the
    other numbers better.
    """
    outputs, inputs = matrix.shape
    size = BLOCK_SIZES[bits]
    blocks = np.pad(matrix, ((0, 0), (0, -inputs % size))).reshape(outputs, -1, size)
    best = _Rounded.of(blocks, bits=bits, shrink=1.0)
    for shrink in _SHRINKS if bits < 8 else ():
        best = best.or_better(_Rounded.of(blocks, bits=bits, shrink=shrink))
    return BlockQuantized(best.levels, best.scales, best.zero_points, num_inputs=inputs, bits=bits)


@dataclass(frozen=True, slots=True)
class _Rounded:
    """Blocks rounded to levels, and how far off they are."""

    levels: NDArray[np.uint8]  # [outputs, blocks, block_size]
    scales: Weights  # [outputs, blocks]
    zero_points: NDArray[np.uint8]  # [outputs, blocks]
    squared_error: Weights  # [outputs, blocks]

    @classmethod
    def of(cls, blocks: Weights, *, bits: int, shrink: float) -> _Rounded:
        """Round to the nearest of 2**bits levels over each block's range, shrunk on both sides."""
        top = 2**bits - 1
        low = np.minimum(blocks.min(-1), 0) * shrink
        high = np.maximum(blocks.max(-1), 0) * shrink
        scales = ((high - low) / top).astype(np.float32)
        scales[scales == 0] = 1.0
        zero_points: NDArray[np.uint8] = np.clip(np.rint(-low / scales), 0, top).astype(np.uint8)
        rounded = np.rint(blocks / scales[..., None]) + zero_points[..., None]
        levels: NDArray[np.uint8] = np.clip(rounded, 0, top).astype(np.uint8)
        restored = (levels.astype(np.float32) - zero_points[..., None]) * scales[..., None]
        return cls(levels, scales, zero_points, np.square(restored - blocks).sum(-1))

    def or_better(self, other: _Rounded) -> _Rounded:
        """Take from the other every block that it rounds better."""
        wins = other.squared_error < self.squared_error  # [outputs, blocks]
        return _Rounded(
            np.where(wins[..., None], other.levels, self.levels),
            np.where(wins, other.scales, self.scales),
            np.where(wins, other.zero_points, self.zero_points),
            np.where(wins, other.squared_error, self.squared_error),
        )


def _packed(numbers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    low, high = numbers[..., 0::2], numbers[..., 1::2]
    return (low | (high << 4)).astype(np.uint8)
