"""What a caller asks of an image classifier and what comes back. Construction is validation.

Knows no wire format and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aimass_serving.errors import AimassError, InvalidField

from aimass_encoder.labels import LabelScore, ProblemType
from aimass_encoder.request import PhaseTimings


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """Images of one call."""

    images: Sequence[bytes]
    """At least one. An image that is bad by itself fails its own result, not the call."""
    top_k: int | None = None
    """At most this many labels, at least 1. None: 5 where exactly one label is right, else all."""
    threshold: float | None = None
    """Least score of a label. None takes the model's own."""
    labels: Sequence[str] = ()
    """Only these; empty for all."""
    deadline_s: float | None = None
    """On `time.monotonic`: past it, waiting images are dropped and the call fails."""

    def __post_init__(self) -> None:
        """Refuse values outside their range, naming the field as the wire names it."""
        if not self.images:
            raise InvalidField("images", expected="at least one image", got="none")
        if self.top_k is not None and self.top_k < 1:
            raise InvalidField("options.top_k", expected="at least 1", got=self.top_k)
        if self.threshold is not None and not self.threshold == self.threshold:
            raise InvalidField("options.threshold", expected="a number", got=self.threshold)


@dataclass(frozen=True, slots=True)
class ClassifiedImage:
    """One image's labels."""

    labels: Sequence[LabelScore]
    """Best first; empty when none reaches the threshold."""
    width: int
    """In pixels, as the image is looked at."""
    height: int


@dataclass(frozen=True, slots=True)
class ImageReply:
    """One result for each image of the request, in order."""

    results: Sequence[ClassifiedImage | AimassError]
    problem_type: ProblemType
    timings: PhaseTimings
