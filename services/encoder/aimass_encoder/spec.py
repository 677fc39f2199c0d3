"""What an embedding model is, in the encoder's own words. Must not know where that was written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aimass_encoder.pooling import Pooling


@dataclass(frozen=True, slots=True)
class EmbeddingSpec:
    """How a model turns texts into vectors."""

    hidden_size: int
    """Numbers in a vector."""
    max_tokens: int
    """Longest text, special tokens included."""
    pooling: Pooling
    normalize: bool
    """Whether vectors are scaled to length 1 unless a request says otherwise."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Texts that are put before a text, by name."""
