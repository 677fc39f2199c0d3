"""Integer weights in blocks along the inputs of a matrix, each with a scale and a zero point. Pure arithmetic.

The layout is that of onnxruntime's MatMulNBits and GatherBlockQuantized: weight = (q - zero_point) * scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
Weights = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class BlockQuantized:
    """A matrix [outputs, inputs] in integers of 4 or 8 bits."""

    levels: NDArray[np.uint8]  # [outputs, blocks, BLOCK], one number a byte
    scales: Weights  # [outputs, blocks]
    zero_points: NDArray[np.uint8]  # [outputs, blocks]
    num_inputs: int
    bits: int

    def packed_levels(self) -> NDArray[np.uint8]:
        """Return [outputs, blocks, BLOCK * bits / 8]: two 4-bit numbers a byte, the first in the low half."""
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
    """Quantise a matrix [outputs, inputs]; a number moves by at most one step of its block.

    With 4 bits, several ranges are tried for each block and the one with the least squared error is kept: cutting a
    lone outlier off can serve the other numbers better.
    """
    outputs, inputs = matrix.shape
    blocks = np.pad(matrix, ((0, 0), (0, -inputs % BLOCK))).reshape(outputs, -1, BLOCK)
    best = _levels(blocks, bits=bits, shrink=1.0)
    if bits < 8:
        error = _squared_error(blocks, *best)
        for shrink in (0.95, 0.9, 0.85, 0.8, 0.75):
            tried = _levels(blocks, bits=bits, shrink=shrink)
            tried_error = _squared_error(blocks, *tried)
            is_better = tried_error < error
            best = tuple(
                np.where(is_better.reshape(is_better.shape + (1,) * (new.ndim - 2)), new, old)
                for new, old in zip(tried, best, strict=True)
            )
            error = np.where(is_better, tried_error, error)
    levels, scales, zero_points = best
    return BlockQuantized(levels, scales, zero_points, num_inputs=inputs, bits=bits)


def _levels(
    blocks: Weights, *, bits: int, shrink: float
) -> tuple[NDArray[np.uint8], Weights, NDArray[np.uint8]]:
    """Round to the nearest of 2**bits levels that span each block's range, zero always being one of them."""
    top = 2**bits - 1
    low = np.minimum(blocks.min(-1), 0) * shrink
    high = np.maximum(blocks.max(-1), 0) * shrink
    scales = ((high - low) / top).astype(np.float32)
    scales[scales == 0] = 1.0
    zero_points = np.clip(np.rint(-low / scales), 0, top).astype(np.uint8)
    levels = np.clip(np.rint(blocks / scales[..., None]) + zero_points[..., None], 0, top).astype(np.uint8)
    return levels, scales, zero_points


def _squared_error(
    blocks: Weights, levels: NDArray[np.uint8], scales: Weights, zero_points: NDArray[np.uint8]
) -> Weights:
    restored = (levels.astype(np.float32) - zero_points[..., None]) * scales[..., None]
    error: Weights = np.square(restored - blocks).sum(-1)
    return error


def _packed(numbers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    packed: NDArray[np.uint8] = numbers[..., 0::2] | (numbers[..., 1::2] << 4)
    return packed
