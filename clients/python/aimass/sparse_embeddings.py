"""What a sparse embedding returns, as plain values. Knows no call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aimass.classifications import Answers
from aimass.embedding.v1 import embedding_service_pb2 as pb
from aimass.embeddings import item_error_of
from aimass.usage import reply_fields


@dataclass(frozen=True, slots=True)
class SparseText:
    """The weights of one text's words."""

    weights: Mapping[int, float]
    """By place in the vocabulary, heaviest first; each above 0."""
    words: Mapping[int, str]
    """What stands in those places."""
    tokens: int
    truncated_tokens: int

    def dot(self, other: SparseText) -> float:
        """Return how alike two texts are: the sum over shared words of the product of their weights."""
        return sum(weight * other.weights.get(place, 0.0) for place, weight in self.weights.items())


@dataclass(frozen=True, slots=True)
class SparseEmbeddings(Answers[SparseText]):
    """The sparse vectors of the texts of one call, in their order."""

    vocabulary_size: int


def sparse_embeddings_of(response_pb: pb.EmbedSparseResponse) -> SparseEmbeddings:
    """Return the message as a value."""
    return SparseEmbeddings(
        results=[
            item_error_of(r.error) if r.HasField("error") else _sparse_text_of(r.embedding)
            for r in response_pb.results
        ],
        **reply_fields(response_pb),
        vocabulary_size=response_pb.vocabulary_size,
    )


def _sparse_text_of(embedding_pb: pb.SparseEmbedding) -> SparseText:
    return SparseText(
        dict(zip(embedding_pb.indices, embedding_pb.weights, strict=True)),
        dict(zip(embedding_pb.indices, embedding_pb.words, strict=True)),
        embedding_pb.tokens,
        embedding_pb.truncated_tokens,
    )
