"""What a caller asks of a sparse encoder and what comes back. Construction is validation.

Knows no wire format and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from aimass_serving.errors import AimassError, InvalidField
from numpy.typing import NDArray

from aimass_encoder.request import PhaseTimings, Truncation


@dataclass(frozen=True, slots=True)
class SparseRequest:
    """Texts of one call."""

    texts: Sequence[str]
    """At least one. A text that is bad by itself fails its own result, not the call."""
    truncation: Truncation = Truncation.END
    """What to do with a text longer than the model takes."""
    top_k: int | None = None
    """At most this many words of a text, at least 1; None for all with a weight above 0."""
    deadline_s: float | None = None
    """On `time.monotonic`: past it, waiting texts are dropped and the call fails."""

    def __post_init__(self) -> None:
        """Refuse values outside their range, naming the field as the wire names it."""
        if not self.texts:
            raise InvalidField("texts", expected="at least one text", got="none")
        if self.top_k is not None and self.top_k < 1:
            raise InvalidField("options.top_k", expected="at least 1", got=self.top_k)


@dataclass(frozen=True, slots=True)
class SparseText:
    """The words of one text, heaviest first."""

    indices: NDArray[np.int64]  # [words]
    weights: NDArray[np.float32]  # [words], each above 0
    words: Sequence[str]
    num_tokens: int
    num_truncated_tokens: int


@dataclass(frozen=True, slots=True)
class SparseReply:
    """One result for each text of the request, in order."""

    results: Sequence[SparseText | AimassError]
    vocabulary_size: int
    num_tokens: int
    timings: PhaseTimings


def heaviest(weights: NDArray[np.float32], top_k: int | None) -> NDArray[np.int64]:
    """Return the places of the weights above 0, heaviest first; of equal ones the first comes first."""
    order = np.argsort(-weights, kind="stable")[: int((weights > 0).sum())]
    return order[:top_k]
