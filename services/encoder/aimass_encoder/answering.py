"""What a caller asks of a question-answering model and what comes back. Construction is validation.

Knows no wire format and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from aimass_serving.errors import AimassError, InvalidField

from aimass_encoder.answer_spans import Answer
from aimass_encoder.request import PhaseTimings

MAX_TOP_K, MAX_ANSWER_TOKENS = 100, 512


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """Which answers to return."""

    top_k: int = 1
    """At most this many of each input, best first."""
    max_answer_tokens: int = 15
    """Longest answer."""
    allow_no_answer: bool = False
    """Whether "no answer" may be among the answers."""
    overlap_tokens: int | None = None
    """Tokens of the context that two windows share. None: 128, or half of the room if that is less."""

    def __post_init__(self) -> None:
        """Refuse values outside their range, naming the field as the wire names it."""
        for name, largest in (("top_k", MAX_TOP_K), ("max_answer_tokens", MAX_ANSWER_TOKENS)):
            value = getattr(self, name)
            if not 1 <= value <= largest:
                raise InvalidField(f"options.{name}", expected=f"a number from 1 to {largest}", got=value)
        if self.overlap_tokens is not None and self.overlap_tokens < 0:
            raise InvalidField("options.overlap_tokens", expected="at least 0", got=self.overlap_tokens)


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    """Questions of one call, each with its context."""

    inputs: Sequence[tuple[str, str]]
    """At least one pair of a question and a context. A bad one fails its own result, not the call."""
    options: AnswerOptions = field(default_factory=AnswerOptions)
    deadline_s: float | None = None
    """On `time.monotonic`: past it, waiting texts are dropped and the call fails."""

    def __post_init__(self) -> None:
        """Refuse a call without questions."""
        if not self.inputs:
            raise InvalidField("inputs", expected="at least one input", got="none")


@dataclass(frozen=True, slots=True)
class AnsweredQuestion:
    """The answers to one question."""

    answers: Sequence[Answer]
    """Best first."""
    no_answer_score: float
    """Least over the windows."""
    num_tokens: int
    """Tokens the model saw, over all windows, special tokens included."""
    num_windows: int


@dataclass(frozen=True, slots=True)
class AnswerReply:
    """One result for each input of the request, in order."""

    results: Sequence[AnsweredQuestion | AimassError]
    num_tokens: int
    timings: PhaseTimings
