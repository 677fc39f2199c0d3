"""What a caller asks of a masked language model and what comes back. Construction is validation.

Knows no wire format and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from aimass_serving.errors import AimassError, InvalidField

from aimass_encoder.request import PhaseTimings

DEFAULT_TOP_K, MAX_TOP_K = 5, 1000
MAX_WORDS = 20_000
"""Words of one text: its masks times those of each."""


@dataclass(frozen=True, slots=True)
class FillOptions:
    """Which words to return."""

    top_k: int = DEFAULT_TOP_K
    """At most this many for each mask, best first."""
    targets: Sequence[str] = ()
    """Only these words; empty for all."""

    def __post_init__(self) -> None:
        """Refuse values outside their range, naming the field as the wire names it."""
        if not 1 <= self.top_k <= MAX_TOP_K:
            raise InvalidField("options.top_k", expected=f"a number from 1 to {MAX_TOP_K}", got=self.top_k)


@dataclass(frozen=True, slots=True)
class FillRequest:
    """Texts of one call."""

    texts: Sequence[str]
    """At least one. A text that is bad by itself fails its own result, not the call."""
    options: FillOptions = field(default_factory=FillOptions)
    deadline_s: float | None = None
    """On `time.monotonic`: past it, waiting texts are dropped and the call fails."""

    def __post_init__(self) -> None:
        """Refuse a call without texts."""
        if not self.texts:
            raise InvalidField("texts", expected="at least one text", got="none")


@dataclass(frozen=True, slots=True)
class MaskWord:
    """One word for a mask."""

    text: str
    """Without marks for parts of words."""
    token: str
    """As the vocabulary writes it."""
    token_id: int
    score: float
    """Probability among the whole vocabulary."""


@dataclass(frozen=True, slots=True)
class FilledMask:
    """The words for one mask."""

    start: int
    """First character of the mask, in Unicode code points of the text."""
    end: int
    """Character after its last one."""
    words: Sequence[MaskWord]
    """Best first."""


@dataclass(frozen=True, slots=True)
class FilledText:
    """The words for one text's masks."""

    masks: Sequence[FilledMask]
    """In the order of the text."""
    num_tokens: int
    """Tokens the model saw, over all windows, special tokens included."""
    num_windows: int


@dataclass(frozen=True, slots=True)
class FillReply:
    """One result for each text of the request, in order."""

    results: Sequence[FilledText | AimassError]
    mask_token: str
    num_tokens: int
    timings: PhaseTimings
