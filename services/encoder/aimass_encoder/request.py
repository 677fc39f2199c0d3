"""What a caller asks of an encoder and what comes back, in the encoder's own words.

Construction is validation: an instance that exists is in range, as far as that can be known without a model.
Knows no wire format and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from aimass_serving.errors import AimassError, InvalidField
from numpy.typing import NDArray


class Truncation(StrEnum):
    """What happens to a text longer than the model takes."""

    NONE = "none"
    """Refuse it."""
    END = "end"
    """Keep the beginning."""
    START = "start"
    """Keep the end."""
    WINDOWS = "windows"
    """Keep all of it: it is read in overlapping windows. Only for tasks that do so."""


class VectorDtype(StrEnum):
    """How the numbers of a vector are packed."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    BINARY = "binary"


@dataclass(frozen=True, slots=True)
class EmbedOptions:
    """What vectors are to be like."""

    normalize: bool | None = None
    """Scale vectors to length 1; None takes the model's own setting."""
    truncation: Truncation = Truncation.END
    """What to do with a text longer than the model takes."""
    dimensions: int | None = None
    """Leading dimensions to keep; None keeps all. At least 1; the model sets the upper bound."""
    prompt_name: str = ""
    """Name of one of the model's prompts; empty for none."""
    chunk_overlap: int | None = None
    """Split long texts instead of cutting them; tokens that a piece shares with the one before. None cuts."""

    def __post_init__(self) -> None:
        """Refuse values outside their range, naming the field as the wire names it."""
        if self.dimensions is not None and self.dimensions < 1:
            raise InvalidField("options.dimensions", expected="at least 1", got=self.dimensions)


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """Texts of one call."""

    texts: Sequence[str]
    """At least one. A text that is bad by itself fails its own result, not the call."""
    options: EmbedOptions = field(default_factory=EmbedOptions)
    deadline_s: float | None = None
    """On `time.monotonic`: past it, waiting texts are dropped and the call fails."""
    field_name: str = "texts[{index}]"
    """How the wire names text number `index`, for error messages."""

    def __post_init__(self) -> None:
        """Refuse a call without texts."""
        if not self.texts:
            raise InvalidField("texts", expected="at least one text", got="none")

    def field_of(self, index: int) -> str:
        """Return the wire's name of text number `index`."""
        return self.field_name.format(index=index)


@dataclass(frozen=True, slots=True)
class EmbeddedText:
    """One text's vector."""

    vector: NDArray[np.float32]  # [dimensions]
    num_tokens: int
    """Tokens the model saw, special tokens included."""
    num_truncated_tokens: int
    """Tokens that were cut off."""
    num_chunks: int = 1
    """Pieces the text was read in."""


@dataclass(frozen=True, slots=True)
class PhaseTimings:
    """How long each phase of a call took, in milliseconds of wall time."""

    tokenize_ms: float
    queue_ms: float
    """From the end of tokenisation to the start of the call's first batch."""
    compute_ms: float
    """From the start of the call's first batch to the end of its last."""
    total_ms: float


@dataclass(frozen=True, slots=True)
class EmbedReply:
    """One result for each text of the request, in order."""

    results: Sequence[EmbeddedText | AimassError]
    dimensions: int
    timings: PhaseTimings

    @property
    def num_tokens(self) -> int:
        """Tokens the model saw, over all texts."""
        return sum(r.num_tokens for r in self.results if isinstance(r, EmbeddedText))
