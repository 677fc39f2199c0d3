"""What is read off an encoder's outputs for each text of a batch. Must not know texts, requests or queues.

A head is a function of a batch; the pipeline calls it with the rows of the texts that asked for it, so that
texts of different tasks can share one run of the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from aimass_serving.errors import AimassError, ModelFailed
from numpy.typing import NDArray

from aimass_encoder.pooling import Pooling, pool
from aimass_encoder.runner import HIDDEN, LOGITS, Outputs

Reading = TypeVar("Reading", covariant=True)


class Head(Protocol[Reading]):
    """Reads one result for each row."""

    def __call__(self, outputs: Outputs, mask: NDArray[np.int64]) -> Sequence[Reading | AimassError]:
        """Return one result, or the reason there is none, for each row.

        `outputs` are the graph's, [rows, ...], and under `input_ids` the tokens it read, [rows, seq]; `mask`
        is [rows, seq]. Results must not share memory with `outputs`.
        """


@dataclass(frozen=True, slots=True)
class PoolingHead:
    """One vector for each text, not normalised. A vector that holds NaN or infinity fails its own text."""

    pooling: Pooling
    model: str

    def __call__(
        self, outputs: Outputs, mask: NDArray[np.int64]
    ) -> Sequence[NDArray[np.float32] | AimassError]:
        """Return vectors of shape [hidden_size]."""
        hidden = outputs[HIDDEN].astype(np.float32, copy=False)  # [rows, seq, hidden_size]
        vectors = pool(hidden, mask, self.pooling)  # [rows, hidden_size]
        failed = ModelFailed(self.model, detail="the vector of this text holds values that are not numbers")
        return [vector if np.isfinite(vector).all() else failed for vector in vectors]


@dataclass(frozen=True, slots=True)
class RowHead:
    """One row of numbers for each text: an output of [rows, n], such as a classifier's logits."""

    output: str
    model: str

    def __call__(
        self, outputs: Outputs, mask: NDArray[np.int64]
    ) -> Sequence[NDArray[np.float32] | AimassError]:
        """Return arrays of shape [n]."""
        values = outputs[self.output].astype(np.float32)  # [rows, n]
        return [row if np.isfinite(row).all() else _not_numbers(self.model) for row in values]


@dataclass(frozen=True, slots=True)
class SparseHead:
    """The weight of each word of the vocabulary: SPLADE's max over tokens of log(1 + relu(logit))."""

    model: str

    def __call__(
        self, outputs: Outputs, mask: NDArray[np.int64]
    ) -> Sequence[NDArray[np.float32] | AimassError]:
        """Return weights of shape [vocab_size], none negative. Source: Formal et al., arXiv 2109.10086."""
        read: list[NDArray[np.float32] | AimassError] = []
        for row, length in zip(outputs[LOGITS], mask.sum(axis=1), strict=True):
            largest = row[:length].max(axis=0).astype(np.float32)  # [vocab_size]; log is monotonic
            weights = np.log1p(np.maximum(largest, 0))
            read.append(weights if np.isfinite(weights).all() else _not_numbers(self.model))
        return read


@dataclass(frozen=True, slots=True)
class TokenHead:
    """One row of numbers for each token: outputs of [rows, seq] or [rows, seq, n], side by side."""

    outputs: Sequence[str]
    model: str

    def __call__(
        self, outputs: Outputs, mask: NDArray[np.int64]
    ) -> Sequence[NDArray[np.float32] | AimassError]:
        """Return arrays of shape [num_tokens, n], padding cut off."""
        wide = [np.atleast_3d(outputs[name].astype(np.float32)) for name in self.outputs]
        values = np.concatenate(wide, axis=-1)  # [rows, seq, n]
        own = [row[:length].copy() for row, length in zip(values, mask.sum(axis=1), strict=True)]
        return [row if np.isfinite(row).all() else _not_numbers(self.model) for row in own]


def _not_numbers(model: str) -> ModelFailed:
    return ModelFailed(model, detail="what it gives for this input holds values that are not numbers")
