"""What an embedding returns, as plain values and one array. Knows no call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aimass.common.v1 import error_pb2
from aimass.embedding.v1 import embedding_service_pb2 as pb
from aimass.errors import FieldViolation
from aimass.usage import Timings, Usage, reply_fields
from aimass.vectors import unpack_vector
from aimass.wire import enum_word


class TextRefused(Exception):
    """One text of a call has no vector, though the call itself succeeded."""

    def __init__(self, index: int, error: ItemError) -> None:
        super().__init__(f"texts[{index}]: {error.reason}: {error.message}")
        self.index = index
        self.error = error


@dataclass(frozen=True, slots=True)
class ItemError:
    """Why one text of a call has no vector."""

    reason: str
    """The stable cause, such as `INPUT_TOO_LONG`."""
    message: str
    violations: Sequence[FieldViolation] = ()


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The vectors of the texts of one call, in their order."""

    vectors: NDArray[np.float32]  # [texts, dimensions]
    """The row of a text that failed holds NaN."""
    errors: Mapping[int, ItemError]
    """Why there is no vector, by the place of the text."""
    tokens: Sequence[int]
    """Tokens the model saw of each text, special tokens included; 0 for a text that failed."""
    truncated_tokens: Sequence[int]
    """Tokens of each text that were cut off."""
    chunks: Sequence[int]
    """Pieces each text was read in; 0 for a text that failed."""
    model: str
    model_version: str
    usage: Usage
    timings: Timings

    def require_all(self) -> NDArray[np.float32]:
        """Return the vectors, float32 `[texts, dimensions]`; raise `TextRefused` if any text has none."""
        for index, error in sorted(self.errors.items()):
            raise TextRefused(index, error)
        return self.vectors


@dataclass(frozen=True, slots=True)
class EmbeddedText:
    """The answer to one text of a stream: a vector or an error."""

    index: int
    """Place of the text in the stream, counted from 0."""
    vector: NDArray[np.float32] | None  # [dimensions]
    error: ItemError | None
    tokens: int
    truncated_tokens: int

    def require(self) -> NDArray[np.float32]:
        """Return the vector, float32 `[dimensions]`; raise `TextRefused` when there is none."""
        if self.vector is None:
            raise TextRefused(self.index, self.error or ItemError("INTERNAL", "the server gave no reason"))
        return self.vector


def embeddings_of(response_pb: pb.EmbedResponse) -> Embeddings:
    """Return the message as a value, all vectors unpacked to float32."""
    results, dimensions = response_pb.results, response_pb.dimensions
    vectors = np.full((len(results), dimensions), np.nan, np.float32)
    for row, result in zip(vectors, results, strict=True):
        if result.HasField("embedding"):
            row[:] = unpack_vector(result.embedding, response_pb.dtype, dimensions)
    return Embeddings(
        vectors=vectors,
        errors={i: item_error_of(r.error) for i, r in enumerate(results) if not r.HasField("embedding")},
        tokens=tuple(r.embedding.tokens for r in results),
        truncated_tokens=tuple(r.embedding.truncated_tokens for r in results),
        chunks=tuple(r.embedding.chunks for r in results),
        **reply_fields(response_pb),
    )


def embedded_text_of(response_pb: pb.EmbedStreamResponse) -> EmbeddedText:
    """Return the message as a value, the vector unpacked to float32."""
    result = response_pb.result
    is_embedded = result.HasField("embedding")
    return EmbeddedText(
        index=response_pb.index,
        vector=(
            unpack_vector(result.embedding, response_pb.dtype, response_pb.dimensions)
            if is_embedded
            else None
        ),
        error=None if is_embedded else item_error_of(result.error),
        tokens=result.embedding.tokens,
        truncated_tokens=result.embedding.truncated_tokens,
    )


def item_error_of(error_pb: error_pb2.ItemError) -> ItemError:
    """Return the message as a value."""
    return ItemError(
        reason=enum_word(error_pb2.ErrorReason, "ERROR_REASON_", error_pb.reason).upper(),
        message=error_pb.message,
        violations=tuple(FieldViolation(v.field, v.description) for v in error_pb.violations),
    )
