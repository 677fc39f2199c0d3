"""What comparing texts asks and returns, as plain values and one array. Knows no call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from aimass.embedding.v1 import embedding_service_pb2 as pb
from aimass.embedding.v1 import ranking_pb2
from aimass.embedding_options import Truncation, set_long_texts
from aimass.embeddings import ItemError, item_error_of
from aimass.usage import Timings, Usage, reply_fields
from aimass.wire import enum_word, set_fields


class SimilarityMetric(StrEnum):
    """How two vectors are compared."""

    UNSPECIFIED = "unspecified"
    COSINE = "cosine"
    DOT = "dot"


class RankingMethod(StrEnum):
    """What decided about the order of documents."""

    UNSPECIFIED = "unspecified"
    CROSS_ENCODER = "cross_encoder"
    """The model read the query and each document together."""
    BI_ENCODER = "bi_encoder"
    """An embedding model: the cosine of two vectors. Cheaper, and less exact."""


class RelevanceScore(StrEnum):
    """What a document's score is."""

    UNSPECIFIED = "unspecified"
    SIGMOID = "sigmoid"
    """Cross-encoders: 0 to 1."""
    RAW = "raw"
    """Cross-encoders: the number that the model gives."""
    COSINE = "cosine"
    """Embedding models: -1 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarityOptions:
    """How texts are compared."""

    metric: SimilarityMetric = SimilarityMetric.COSINE
    truncation: Truncation = Truncation.END
    chunk_overlap: int | None = None
    """Split texts longer than the model takes into pieces that share this many tokens."""
    dimensions: int | None = None
    """Keep this many leading dimensions (Matryoshka)."""
    query_prompt_name: str | None = None
    document_prompt_name: str | None = None

    def message(self) -> pb.SimilarityOptions:
        """Return the options as a message; raise `InvalidRequest` when a value fits no field."""
        metric = ranking_pb2.SimilarityMetric.Value(f"SIMILARITY_METRIC_{self.metric.name}")
        options_pb = pb.SimilarityOptions(metric=metric)
        names = ("dimensions", "query_prompt_name", "document_prompt_name")
        set_fields(options_pb, self, names, path="options.")
        set_long_texts(options_pb, self.truncation, self.chunk_overlap)
        return options_pb


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankOptions:
    """What a re-ranking returns."""

    top_n: int | None = None
    """Only this many documents, the best."""
    score: RelevanceScore = RelevanceScore.UNSPECIFIED
    """UNSPECIFIED: as the method has it."""
    truncation: Truncation = Truncation.END
    chunk_overlap: int | None = None
    """Split documents longer than the model takes into pieces that share this many tokens."""
    query_prompt_name: str | None = None
    document_prompt_name: str | None = None
    return_documents: bool = False

    def message(self) -> pb.RerankOptions:
        """Return the options as a message; raise `InvalidRequest` when a value fits no field."""
        score = ranking_pb2.RelevanceScore.Value(f"RELEVANCE_SCORE_{self.score.name}")
        options_pb = pb.RerankOptions(score=score)
        names = ("top_n", "query_prompt_name", "document_prompt_name", "return_documents")
        set_fields(options_pb, self, names, path="options.")
        set_long_texts(options_pb, self.truncation, self.chunk_overlap)
        return options_pb


@dataclass(frozen=True, slots=True)
class TextOutcome:
    """How a text was read."""

    tokens: int
    truncated_tokens: int
    chunks: int
    """Pieces it was read in."""


@dataclass(frozen=True, slots=True)
class Similarities:
    """How near texts are to texts."""

    scores: NDArray[np.float32]  # [queries, documents]
    """NaN where either text failed."""
    queries: Sequence[TextOutcome | ItemError]
    documents: Sequence[TextOutcome | ItemError]
    metric: SimilarityMetric
    model: str
    model_version: str
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """One document and its score."""

    index: int
    """Place among the documents of the call, counted from 0."""
    score: float
    truncated_tokens: int
    chunks: int
    document: str | None
    """The text, when it was asked for."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Documents by how well they answer a query, the best first."""

    results: Sequence[RankedDocument]
    errors: Mapping[int, ItemError]
    """Why a document has no score, by its place."""
    method: RankingMethod
    score: RelevanceScore
    model: str
    model_version: str
    usage: Usage
    timings: Timings


def similarities_of(response_pb: pb.SimilarityResponse) -> Similarities:
    """Return the message as a value."""
    shape = len(response_pb.queries), len(response_pb.documents)
    return Similarities(
        scores=np.array(response_pb.scores, np.float32).reshape(shape),
        queries=[_outcome_of(text) for text in response_pb.queries],
        documents=[_outcome_of(text) for text in response_pb.documents],
        metric=SimilarityMetric(
            enum_word(ranking_pb2.SimilarityMetric, "SIMILARITY_METRIC_", response_pb.metric)
        ),
        **reply_fields(response_pb),
    )


def ranking_of(response_pb: pb.RerankResponse) -> Ranking:
    """Return the message as a value."""
    return Ranking(
        results=[_ranked_of(document) for document in response_pb.results],
        errors={failed.index: item_error_of(failed.error) for failed in response_pb.errors},
        method=RankingMethod(enum_word(ranking_pb2.RankingMethod, "RANKING_METHOD_", response_pb.method)),
        score=RelevanceScore(enum_word(ranking_pb2.RelevanceScore, "RELEVANCE_SCORE_", response_pb.score)),
        **reply_fields(response_pb),
    )


def _outcome_of(text_pb: ranking_pb2.TextOutcome) -> TextOutcome | ItemError:
    if text_pb.HasField("error"):
        return item_error_of(text_pb.error)
    return TextOutcome(text_pb.tokens, text_pb.truncated_tokens, text_pb.chunks)


def _ranked_of(document_pb: ranking_pb2.RankedDocument) -> RankedDocument:
    return RankedDocument(
        index=document_pb.index,
        score=document_pb.score,
        truncated_tokens=document_pb.truncated_tokens,
        chunks=document_pb.chunks,
        document=document_pb.document if document_pb.HasField("document") else None,
    )
