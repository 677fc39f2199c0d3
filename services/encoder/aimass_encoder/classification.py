"""What a caller asks of a text classifier and what comes back. Construction is validation.

Knows no wire format and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from aimass_serving.errors import AimassError, InvalidField

from aimass_encoder.labels import LabelScore, ProblemType
from aimass_encoder.request import PhaseTimings, Truncation
from aimass_encoder.tokenization import TextInput


@dataclass(frozen=True, slots=True)
class ClassifyOptions:
    """Which labels to return."""

    top_k: int | None = None
    """At most this many, at least 1. None: 1 where exactly one label is right, else all."""
    threshold: float | None = None
    """Least score of a label. None takes the model's own."""
    labels: Sequence[str] = ()
    """Only these; empty for all."""
    truncation: Truncation = Truncation.END
    """What to do with a text longer than the model takes."""
    min_precision: float | None = None
    """Instead of a threshold: how often a best label is to be right, above 0 and at most 1."""

    def __post_init__(self) -> None:
        """Refuse values outside their range, naming the field as the wire names it."""
        if self.top_k is not None and self.top_k < 1:
            raise InvalidField("options.top_k", expected="at least 1", got=self.top_k)
        if self.threshold is not None and not self.threshold == self.threshold:
            raise InvalidField("options.threshold", expected="a number", got=self.threshold)
        if self.min_precision is not None and not 0 < self.min_precision <= 1:
            raise InvalidField(
                "options.min_precision", expected="above 0 and at most 1", got=self.min_precision
            )
        if self.min_precision is not None and self.threshold is not None:
            raise InvalidField(
                "options.min_precision", expected="none beside a threshold", got=self.min_precision
            )


@dataclass(frozen=True, slots=True)
class ClassifyRequest:
    """Texts, or pairs of texts, of one call."""

    inputs: Sequence[TextInput]
    """At least one. An input that is bad by itself fails its own result, not the call."""
    options: ClassifyOptions = field(default_factory=ClassifyOptions)
    deadline_s: float | None = None
    """On `time.monotonic`: past it, waiting texts are dropped and the call fails."""

    def __post_init__(self) -> None:
        """Refuse a call without texts."""
        if not self.inputs:
            raise InvalidField("inputs", expected="at least one input", got="none")

    def field_of(self, index: int) -> str:
        """Return the wire's name of the text of input number `index`."""
        return f"inputs[{index}]" + (".text" if isinstance(self.inputs[index], str) else "")


@dataclass(frozen=True, slots=True)
class ClassifiedText:
    """One text's labels."""

    labels: Sequence[LabelScore]
    """Best first; empty when none reaches the threshold."""
    num_tokens: int
    """Tokens the model saw, special tokens included."""
    num_truncated_tokens: int
    """Tokens that were cut off."""


@dataclass(frozen=True, slots=True)
class ClassifyReply:
    """One result for each input of the request, in order."""

    results: Sequence[ClassifiedText | AimassError]
    problem_type: ProblemType
    num_tokens: int
    timings: PhaseTimings
