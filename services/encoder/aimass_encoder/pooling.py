"""Token vectors to one vector per text: pure functions on right-padded batches.

Must not know models, requests or tasks.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Mask = NDArray[np.int64]


class Pooling(StrEnum):
    """Which token vectors make the text's vector."""

    CLS = "cls"
    MEAN = "mean"
    LAST = "last"


def pool(hidden: Vectors, mask: Mask, pooling: Pooling) -> Vectors:
    """Return one vector per row: [batch, hidden_size].

    `hidden` is [batch, seq, hidden_size]; `mask` is [batch, seq], 1 for tokens and then 0 for padding on the
    right. A row without any token gives zeros, whatever its padding holds.
    """
    if pooling is Pooling.MEAN:
        return _mean(hidden, mask)
    lengths = mask.sum(axis=1)  # [batch]
    position = np.zeros_like(lengths) if pooling is Pooling.CLS else np.maximum(lengths - 1, 0)
    picked: Vectors = hidden[np.arange(len(hidden)), position]  # [batch, hidden_size]
    picked[lengths == 0] = 0
    return picked


def _mean(hidden: Vectors, mask: Mask) -> Vectors:
    """Average the tokens of each row. Row by row: what padding holds, NaN included, is never touched."""
    pooled = np.zeros((hidden.shape[0], hidden.shape[2]), np.float32)
    for row, length in enumerate(mask.sum(axis=1)):
        if length:
            hidden[row, :length].mean(axis=0, out=pooled[row])
    return pooled


def l2_normalize(vectors: Vectors) -> Vectors:
    """Scale each row of [batch, dimensions] to length 1. Zeros stay zeros; a row with NaN becomes NaN."""
    scale = np.abs(vectors).max(axis=1, keepdims=True)  # first, so that squares neither overflow nor vanish
    scaled = np.divide(vectors, scale, out=np.zeros_like(vectors), where=scale != 0)
    length = np.linalg.norm(scaled, axis=1, keepdims=True)  # [batch, 1]
    unit: Vectors = np.divide(scaled, length, out=np.zeros_like(vectors), where=length != 0)
    return unit
