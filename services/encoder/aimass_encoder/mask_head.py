"""The best words for the masked places of each text, off a masked language model's outputs.

Only those places are read: the logits of all of them would be a vocabulary for each token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from aimass_serving.errors import AimassError, ModelFailed
from numpy.typing import NDArray

from aimass_encoder.labels import softmax
from aimass_encoder.runner import LOGITS, TOKEN_IDS, Outputs


@dataclass(frozen=True, slots=True, eq=False)
class MaskReading:
    """The best words for the masks of one row."""

    places: NDArray[np.int64]  # [masks], places of the masks in the row
    token_ids: NDArray[np.int64]  # [masks, k], best first
    scores: NDArray[np.float64]  # [masks, k], probabilities among the whole vocabulary


@dataclass(frozen=True, slots=True, eq=False)
class MaskHead:
    """Reads the masks of each row."""

    mask_token_id: int
    vocab_size: int
    """Tokens that have a word; logits behind them are padding of the vocabulary and never chosen."""
    top_k: int
    targets: NDArray[np.int64] | None  # [targets]
    """Only these tokens; None for all."""
    model: str

    def __call__(self, outputs: Outputs, mask: NDArray[np.int64]) -> Sequence[MaskReading | AimassError]:
        """Return one reading for each row."""
        rows = zip(outputs[LOGITS], outputs[TOKEN_IDS], mask.sum(axis=1), strict=True)
        return [self._read(logits[:length], token_ids[:length]) for logits, token_ids, length in rows]

    def _read(self, logits: NDArray[np.float32], token_ids: NDArray[np.int64]) -> MaskReading | AimassError:
        places = np.flatnonzero(token_ids == self.mask_token_id)
        own = logits[places].astype(np.float32)  # [masks, vocab]
        if not np.isfinite(own).all():
            return ModelFailed(
                self.model, detail="what it gives for this text holds values that are not numbers"
            )
        chosen = np.arange(self.vocab_size) if self.targets is None else self.targets
        scores = softmax(own)[:, chosen] if len(places) else np.zeros((0, len(chosen)))
        best = _largest(scores, min(self.top_k, len(chosen)))
        return MaskReading(places, chosen[best], np.take_along_axis(scores, best, axis=1))


def _largest(scores: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return the places of the largest of each row, best first: [rows, count]."""
    some = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(scores, some, axis=1), axis=1, kind="stable")
    return np.take_along_axis(some, order, axis=1)
