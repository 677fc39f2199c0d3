"""What vectors are to be like. Knows no text and no call."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from aimass.embedding.v1 import embedding_service_pb2 as pb
from aimass.vectors import VectorDtype, dtype_pb
from aimass.wire import refusing, set_fields


class Truncation(StrEnum):
    """What happens to a text longer than the model takes."""

    NONE = "none"
    """It is refused with INPUT_TOO_LONG."""
    END = "end"
    """Its beginning is kept."""
    START = "start"
    """Its end is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingOptions:
    """What vectors are to be like. What is None takes the model's own default."""

    normalize: bool | None = None
    """Scale vectors to length 1."""
    truncation: Truncation = Truncation.END
    dimensions: int | None = None
    """Keep this many leading dimensions (Matryoshka), then normalise."""
    dtype: VectorDtype = VectorDtype.FLOAT32
    """How the numbers travel. They arrive as float32 whatever this says."""
    prompt_name: str | None = None
    """Name of one of the model's prompts, such as `query`, put before each text."""
    chunk_overlap: int | None = None
    """Split texts longer than the model takes, instead of cutting them, into pieces that share this many
    tokens; the vector is the mean over the pieces."""

    def message(self) -> pb.EmbedOptions:
        """Return the options as a message; raise `InvalidRequest` when a value fits no field."""
        options_pb = pb.EmbedOptions(dtype=dtype_pb(self.dtype))
        set_fields(options_pb, self, ("normalize", "dimensions", "prompt_name"), path="options.")
        set_long_texts(options_pb, self.truncation, self.chunk_overlap)
        return options_pb


def set_long_texts(
    options_pb: pb.EmbedOptions | pb.SimilarityOptions | pb.RerankOptions,
    truncation: Truncation,
    chunk_overlap: int | None,
) -> None:
    """Say what happens to long texts: with a `chunk_overlap` they are split, and `truncation` has no say."""
    if chunk_overlap is None:
        options_pb.truncation = truncation_pb(truncation)
        return
    with refusing("options.chunking.overlap_tokens"):
        options_pb.chunking.SetInParent()
        options_pb.chunking.overlap_tokens = chunk_overlap


def truncation_pb(truncation: Truncation) -> pb.Truncation.ValueType:
    """Return what is to be cut as it travels."""
    return pb.Truncation.Value(f"TRUNCATION_{truncation.name}")
