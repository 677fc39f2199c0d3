"""What a caller asks of a token classifier and what comes back. Construction is validation.

Knows no wire format and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from aimass_serving.errors import AimassError, InvalidField

from aimass_encoder.entities import Aggregation, Entity
from aimass_encoder.request import PhaseTimings


@dataclass(frozen=True, slots=True)
class TagOptions:
    """Which entities to return."""

    aggregation: Aggregation = Aggregation.SIMPLE
    labels: Sequence[str] = ()
    """Only entities of these, written without marks of place; empty for all but `O`."""
    threshold: float = 0.0
    """Least score of an entity."""
    overlap_tokens: int | None = None
    """Tokens that two windows of a long text share. None: a quarter of what the model takes."""

    def __post_init__(self) -> None:
        """Refuse values outside their range, naming the field as the wire names it."""
        if not 0 <= self.threshold <= 1:
            raise InvalidField("options.threshold", expected="a number from 0 to 1", got=self.threshold)
        if self.overlap_tokens is not None and self.overlap_tokens < 0:
            raise InvalidField("options.overlap_tokens", expected="at least 0", got=self.overlap_tokens)


@dataclass(frozen=True, slots=True)
class TagRequest:
    """Texts of one call."""

    texts: Sequence[str]
    """At least one. A text that is bad by itself fails its own result, not the call."""
    options: TagOptions = field(default_factory=TagOptions)
    deadline_s: float | None = None
    """On `time.monotonic`: past it, waiting texts are dropped and the call fails."""

    def __post_init__(self) -> None:
        """Refuse a call without texts."""
        if not self.texts:
            raise InvalidField("texts", expected="at least one text", got="none")


@dataclass(frozen=True, slots=True)
class TaggedText:
    """One text's entities."""

    entities: Sequence[Entity]
    """In the order of the text; they do not overlap."""
    num_tokens: int
    """Tokens the model saw, over all windows, special tokens included."""
    num_windows: int


@dataclass(frozen=True, slots=True)
class TagReply:
    """One result for each text of the request, in order."""

    results: Sequence[TaggedText | AimassError]
    num_tokens: int
    timings: PhaseTimings
