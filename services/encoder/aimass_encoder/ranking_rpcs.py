"""`EmbeddingService.Similarity` and `.Rerank`: between the wire and the engines, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aimass.embedding.v1 import embedding_service_pb2 as pb
from aimass.embedding.v1 import ranking_pb2
from aimass.model.v1.manifest_pb2 import TASK_EMBEDDING
from aimass_serving.errors import AimassError, WrongTask
from aimass_serving.registry import ModelRegistry, ServedModel, task_name
from aimass_serving.request_context import request_context

from aimass_encoder.engine import EncoderEngine
from aimass_encoder.messages import annotate_call, chosen, item_error_pb, reply_fields
from aimass_encoder.ranking import (
    RankedDocument,
    RankingMethod,
    ReadText,
    RelevanceScore,
    RerankRequest,
    SimilarityMetric,
    SimilarityRequest,
)
from aimass_encoder.served import served_engine
from aimass_encoder.task_engine import TaskEngine
from aimass_encoder.text_classifier import TextClassifier
from aimass_encoder.vector_messages import chunk_overlap, truncation_of

_METRICS: Mapping[int, SimilarityMetric] = {
    ranking_pb2.SIMILARITY_METRIC_UNSPECIFIED: SimilarityMetric.COSINE,
    ranking_pb2.SIMILARITY_METRIC_COSINE: SimilarityMetric.COSINE,
    ranking_pb2.SIMILARITY_METRIC_DOT: SimilarityMetric.DOT,
}
_METHODS: Mapping[RankingMethod, ranking_pb2.RankingMethod.ValueType] = {
    RankingMethod.CROSS_ENCODER: ranking_pb2.RANKING_METHOD_CROSS_ENCODER,
    RankingMethod.BI_ENCODER: ranking_pb2.RANKING_METHOD_BI_ENCODER,
}
_SCORES: Mapping[int, RelevanceScore | None] = {
    ranking_pb2.RELEVANCE_SCORE_UNSPECIFIED: None,
    ranking_pb2.RELEVANCE_SCORE_SIGMOID: RelevanceScore.SIGMOID,
    ranking_pb2.RELEVANCE_SCORE_RAW: RelevanceScore.RAW,
    ranking_pb2.RELEVANCE_SCORE_COSINE: RelevanceScore.COSINE,
}


class RankingRpcs:
    """The part of the servicer that compares texts."""

    _registry: ModelRegistry[TaskEngine]

    async def Similarity(  # noqa: N802
        self, request: pb.SimilarityRequest, context: Any
    ) -> pb.SimilarityResponse:
        """Compare each query with each document."""
        call = request_context(context, request.request_id)
        asked = similarity_request(request, deadline_s=call.deadline_s)
        served, engine = served_engine(self._registry, request.model, TASK_EMBEDDING, EncoderEngine)
        reply = await engine.similarity(asked)
        annotate_call("similarity", served.name, reply.num_tokens)
        return pb.SimilarityResponse(
            scores=reply.scores.ravel(),
            queries=[_outcome_pb(text) for text in reply.queries],
            documents=[_outcome_pb(text) for text in reply.documents],
            metric=ranking_pb2.SimilarityMetric.Value(f"SIMILARITY_METRIC_{asked.metric.name}"),
            **reply_fields(reply, served),
        )

    async def Rerank(self, request: pb.RerankRequest, context: Any) -> pb.RerankResponse:  # noqa: N802
        """Return the documents by how well they answer the query."""
        call = request_context(context, request.request_id)
        asked = rerank_request(request, deadline_s=call.deadline_s)
        served, engine = self._ranking_engine(request.model)
        reply = await engine.rerank(asked)
        annotate_call("rerank", served.name, reply.num_tokens)
        return pb.RerankResponse(
            results=[_ranked_pb(document, request) for document in reply.ranked],
            errors=[
                ranking_pb2.DocumentError(index=index, error=item_error_pb(error))
                for index, error in reply.errors
            ],
            method=_METHODS[reply.method],
            score=ranking_pb2.RelevanceScore.Value(f"RELEVANCE_SCORE_{reply.score.name}"),
            **reply_fields(reply, served),
        )

    def _ranking_engine(self, model: str) -> tuple[ServedModel[TaskEngine], TextClassifier | EncoderEngine]:
        served = self._registry.get(model)
        engine = served.engine
        if not isinstance(engine, TextClassifier | EncoderEngine):
            expected = "re-ranking (a classifier with one logit, or an embedding model)"
            raise WrongTask(model, expected=expected, got=task_name(served.ref.task))
        return served, engine


def similarity_request(request: pb.SimilarityRequest, *, deadline_s: float | None) -> SimilarityRequest:
    """Return the engine's request. Raises `InvalidField`."""
    options = request.options
    return SimilarityRequest(
        request.queries,
        request.documents,
        metric=chosen(_METRICS, options.metric, "options.metric", ranking_pb2.SimilarityMetric),
        truncation=truncation_of(options.truncation),
        chunk_overlap=chunk_overlap(options),
        dimensions=options.dimensions if options.HasField("dimensions") else None,
        query_prompt_name=options.query_prompt_name,
        document_prompt_name=options.document_prompt_name,
        deadline_s=deadline_s,
    )


def rerank_request(request: pb.RerankRequest, *, deadline_s: float | None) -> RerankRequest:
    """Return the engine's request. Raises `InvalidField`."""
    options = request.options
    return RerankRequest(
        request.query,
        request.documents,
        top_n=options.top_n if options.HasField("top_n") else None,
        score=chosen(_SCORES, options.score, "options.score", ranking_pb2.RelevanceScore),
        truncation=truncation_of(options.truncation),
        chunk_overlap=chunk_overlap(options),
        query_prompt_name=options.query_prompt_name,
        document_prompt_name=options.document_prompt_name,
        deadline_s=deadline_s,
    )


def _outcome_pb(text: ReadText | AimassError) -> ranking_pb2.TextOutcome:
    if isinstance(text, AimassError):
        return ranking_pb2.TextOutcome(error=item_error_pb(text))
    return ranking_pb2.TextOutcome(
        tokens=text.num_tokens, truncated_tokens=text.num_truncated_tokens, chunks=text.num_chunks
    )


def _ranked_pb(document: RankedDocument, request: pb.RerankRequest) -> ranking_pb2.RankedDocument:
    return ranking_pb2.RankedDocument(
        index=document.index,
        score=document.score,
        truncated_tokens=document.read.num_truncated_tokens,
        chunks=document.read.num_chunks,
        document=request.documents[document.index] if request.options.return_documents else None,
    )
