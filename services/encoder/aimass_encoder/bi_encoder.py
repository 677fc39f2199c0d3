"""Texts compared by their vectors. Must not know the wire, nor how vectors come about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from aimass_serving.errors import AimassError
from numpy.typing import NDArray

from aimass_encoder.prompted import PromptedTexts
from aimass_encoder.ranking import (
    RankingMethod,
    ReadText,
    RerankReply,
    RerankRequest,
    SimilarityMetric,
    SimilarityReply,
    SimilarityRequest,
    best_first,
)
from aimass_encoder.request import EmbeddedText, EmbedOptions, EmbedReply

_METHOD = RankingMethod.BI_ENCODER
_PROMPT_FIELDS = ("options.query_prompt_name", "options.document_prompt_name")


class Embedder(Protocol):
    """Turns texts into vectors."""

    async def embed_prompted(self, texts: PromptedTexts, options: EmbedOptions) -> EmbedReply:
        """Return one result for each text, in order; a bad text has an error in its place."""


async def similarity(embedder: Embedder, request: SimilarityRequest) -> SimilarityReply:
    """Compare each query with each document. Raises what the embedder does."""
    options = EmbedOptions(
        normalize=True if request.metric is SimilarityMetric.COSINE else None,
        truncation=request.truncation,
        dimensions=request.dimensions,
        chunk_overlap=request.chunk_overlap,
    )
    num_queries = len(request.queries)
    fields = [f"queries[{i}]" for i in range(num_queries)]
    fields += [f"documents[{i}]" for i in range(len(request.documents))]
    texts = PromptedTexts(
        [*request.queries, *request.documents],
        [request.query_prompt_name] * num_queries + [request.document_prompt_name] * len(request.documents),
        fields,
        list_field="documents" if request.documents else "queries",
        prompt_fields=_PROMPT_FIELDS,
        num_queries=num_queries,
        deadline_s=request.deadline_s,
    )
    reply = await embedder.embed_prompted(texts, options)
    queries, documents = reply.results[:num_queries], reply.results[num_queries:] or reply.results
    return SimilarityReply(
        scores=_rows(queries, reply.dimensions) @ _rows(documents, reply.dimensions).T,
        queries=[_read(result) for result in queries],
        documents=[_read(result) for result in documents],
        num_tokens=reply.num_tokens,
        timings=reply.timings,
    )


async def rerank_by_vectors(embedder: Embedder, request: RerankRequest) -> RerankReply:
    """Return the documents by the cosine of their vector and the query's.

    Raises what the embedder does, `InvalidField` for options that embedding models do not have, and the
    error of a query that cannot be read.
    """
    score, num_documents = request.score_by(_METHOD), len(request.documents)
    texts = PromptedTexts(
        [request.query, *request.documents],
        [request.query_prompt_name] + [request.document_prompt_name] * num_documents,
        ["query", *(f"documents[{i}]" for i in range(num_documents))],
        list_field="documents",
        prompt_fields=_PROMPT_FIELDS,
        num_queries=1,
        deadline_s=request.deadline_s,
    )
    options = EmbedOptions(normalize=True, truncation=request.truncation, chunk_overlap=request.chunk_overlap)
    reply = await embedder.embed_prompted(texts, options)
    query, documents = reply.results[0], reply.results[1:]
    if isinstance(query, AimassError):
        raise query
    cosines = _rows(documents, reply.dimensions) @ query.vector  # [documents]
    scored = [
        document if isinstance(document, AimassError) else (float(cosine), _embedded(document))
        for document, cosine in zip(documents, cosines, strict=True)
    ]
    ranked, errors = best_first(scored, request.top_n)
    return RerankReply(ranked, errors, _METHOD, score, reply.num_tokens, reply.timings)


def _rows(results: Sequence[EmbeddedText | AimassError], dimensions: int) -> NDArray[np.float32]:
    """Return the vectors as [results, dimensions]; the row of an error is NaN."""
    rows = np.full((len(results), dimensions), np.nan, np.float32)
    for row, result in zip(rows, results, strict=True):
        if isinstance(result, EmbeddedText):
            row[:] = result.vector
    return rows


def _read(result: EmbeddedText | AimassError) -> ReadText | AimassError:
    return result if isinstance(result, AimassError) else _embedded(result)


def _embedded(text: EmbeddedText) -> ReadText:
    return ReadText(text.num_tokens, text.num_truncated_tokens, text.num_chunks)
