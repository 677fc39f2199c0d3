"""The vectors of texts' tokens, asked for and returned as plain values and arrays. Knows no call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aimass.classifications import Answers
from aimass.embedding.v1 import embedding_service_pb2 as pb
from aimass.embedding.v1 import token_embedding_pb2
from aimass.embedding_options import Truncation, truncation_pb
from aimass.embeddings import item_error_of
from aimass.usage import reply_fields
from aimass.vectors import VectorDtype, dtype_pb, unpack_vector
from aimass.wire import set_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEmbeddingOptions:
    """What the vectors of tokens are to be like. What is None takes the server's default."""

    normalize: bool | None = None
    """Scale each token's vector to length 1; None means yes."""
    truncation: Truncation = Truncation.END
    dimensions: int | None = None
    """Keep this many leading dimensions, then normalise."""
    dtype: VectorDtype = VectorDtype.FLOAT32
    """How the numbers travel. They arrive as float32 whatever this says."""
    prompt_name: str | None = None
    text_only: bool = False
    """Leave out the special tokens and those of the prompt."""

    def message(self) -> pb.EmbedTokensOptions:
        """Return the options as a message; raise `InvalidRequest` when a value fits no field."""
        options_pb = pb.EmbedTokensOptions(
            truncation=truncation_pb(self.truncation), dtype=dtype_pb(self.dtype), text_only=self.text_only
        )
        set_fields(options_pb, self, ("normalize", "dimensions", "prompt_name"), path="options.")
        return options_pb


@dataclass(frozen=True, slots=True)
class TextTokenEmbeddings:
    """The vectors of one text's tokens."""

    vectors: NDArray[np.float32]  # [tokens, dimensions]
    offsets: Sequence[tuple[int, int]]
    """Where each token stands in the text: `text[start:end]`; equal for special tokens and the prompt's."""
    token_ids: Sequence[int]
    tokens: int
    """Tokens the model saw, special tokens included."""
    truncated_tokens: int


@dataclass(frozen=True, slots=True)
class TokenEmbeddings(Answers[TextTokenEmbeddings]):
    """The vectors of the tokens of each text of one call."""

    dimensions: int


def token_embeddings_of(response_pb: pb.EmbedTokensResponse) -> TokenEmbeddings:
    """Return the message as a value, all vectors unpacked to float32."""
    return TokenEmbeddings(
        results=[
            item_error_of(r.error) if r.HasField("error") else _text_of(r.embeddings, response_pb)
            for r in response_pb.results
        ],
        **reply_fields(response_pb),
        dimensions=response_pb.dimensions,
    )


def _text_of(
    text_pb: token_embedding_pb2.TokenEmbeddings, response_pb: pb.EmbedTokensResponse
) -> TextTokenEmbeddings:
    num_vectors, dimensions = len(text_pb.starts), response_pb.dimensions
    num_bytes = len(text_pb.vectors) // num_vectors if num_vectors else 0
    scales = text_pb.scales or [0.0] * num_vectors
    vectors = np.zeros((num_vectors, dimensions), np.float32)
    for row, scale in enumerate(scales):
        packed = text_pb.vectors[row * num_bytes : (row + 1) * num_bytes]
        vectors[row] = unpack_vector(pb.Embedding(vector=packed, scale=scale), response_pb.dtype, dimensions)
    return TextTokenEmbeddings(
        vectors,
        list(zip(text_pb.starts, text_pb.ends, strict=True)),
        list(text_pb.token_ids),
        text_pb.tokens,
        text_pb.truncated_tokens,
    )
