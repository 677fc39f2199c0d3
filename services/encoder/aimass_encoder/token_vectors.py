"""What a caller asks of the vectors of tokens and what comes back. Construction is validation.

Knows no wire format and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from aimass_serving.errors import AimassError, InvalidField
from numpy.typing import NDArray

from aimass_encoder.request import EmbedOptions, PhaseTimings, VectorDtype
from aimass_encoder.tokenization import TokenizedText

MAX_PACKED_BYTES = 32 * 2**20
"""Of one reply."""
MAX_FLOAT_BYTES = 128 * 2**20
"""What one call may hold in memory before packing."""
_BITS = {VectorDtype.FLOAT32: 32, VectorDtype.FLOAT16: 16, VectorDtype.INT8: 8, VectorDtype.BINARY: 1}


@dataclass(frozen=True, slots=True)
class TokenVectorsRequest:
    """Texts of one call."""

    texts: Sequence[str]
    """At least one. A text that is bad by itself fails its own result, not the call."""
    options: EmbedOptions = field(default_factory=EmbedOptions)
    """Of them, `chunk_overlap` is not for tokens; `normalize` is of each token, and None means yes."""
    dtype: VectorDtype = VectorDtype.FLOAT32
    """How the numbers will travel: decides how many tokens a call may have."""
    text_only: bool = False
    """Leave out special tokens and those of the prompt."""
    deadline_s: float | None = None
    """On `time.monotonic`: past it, waiting texts are dropped and the call fails."""

    def __post_init__(self) -> None:
        """Refuse a call without texts."""
        if not self.texts:
            raise InvalidField("texts", expected="at least one text", got="none")

    def max_tokens(self, hidden_size: int) -> int:
        """Return how many tokens all texts together may have, so that the reply can be held and sent."""
        packed_bits = (self.options.dimensions or hidden_size) * _BITS[self.dtype]
        return min(MAX_PACKED_BYTES * 8 // packed_bits, MAX_FLOAT_BYTES // (4 * hidden_size))


@dataclass(frozen=True, slots=True)
class TextTokenVectors:
    """The vectors of one text's tokens."""

    vectors: NDArray[np.float32]  # [tokens, dimensions]
    offsets: NDArray[np.int64]  # [tokens, 2]
    """Start and end in characters of the caller's text; equal for special tokens and those of the prompt."""
    token_ids: NDArray[np.int64]  # [tokens]
    num_tokens: int
    """Tokens the model saw, special tokens included."""
    num_truncated_tokens: int


@dataclass(frozen=True, slots=True)
class TokenVectorsReply:
    """One result for each text of the request, in order."""

    results: Sequence[TextTokenVectors | AimassError]
    dimensions: int
    num_tokens: int
    timings: PhaseTimings


def own_offsets(text: TokenizedText, prompt: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return where tokens stand in the text without its prompt, [tokens, 2], and which belong to the text.

    A token that begins in the prompt and ends in the text begins at 0. `text` has spans.
    """
    assert text.spans is not None, "asked for with the tokens"
    is_own = (text.spans.parts >= 0) & (text.spans.offsets[:, 1] > len(prompt))
    offsets = np.maximum(text.spans.offsets - len(prompt), 0)
    return np.where(is_own[:, None], offsets, 0), is_own
