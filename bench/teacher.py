"""What quantisation costs a language model, from logits on text it did not write. Pure arrays, no model.

Every position of the text is predicted from the true tokens before it (teacher forcing).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


@dataclass(slots=True)
class Loss:
    """Sums over the positions seen so far. Owned by one measurement."""

    nll: float = 0.0
    kl: float = 0.0
    num_agreeing: int = 0
    num_positions: int = 0

    def add(self, got: Logits, reference: Logits, following: NDArray[np.int64]) -> None:
        """Add positions: logits [positions, vocab] of both, and the token [positions] that follows each."""
        got_logp, reference_logp = log_probabilities(got), log_probabilities(reference)
        self.nll -= float(got_logp[np.arange(len(following)), following].sum())
        self.kl += float((np.exp(reference_logp) * (reference_logp - got_logp)).sum())
        self.num_agreeing += int((got.argmax(-1) == reference.argmax(-1)).sum())
        self.num_positions += len(following)

    @property
    def perplexity(self) -> float:
        """Of the text under the model."""
        return float(np.exp(self.nll / self.num_positions))

    @property
    def mean_kl(self) -> float:
        """Kullback-Leibler divergence from the reference, in nats a position."""
        return self.kl / self.num_positions

    @property
    def top1_agreement(self) -> float:
        """Share of positions at which the best token is the reference's."""
        return self.num_agreeing / self.num_positions


def log_probabilities(logits: Logits) -> NDArray[np.float64]:
    """Return the natural logarithms of the softmax over the last axis."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(-1, keepdims=True)), np.float64)
