"""The embedding service in Python. Knows the RPCs and their messages, and nothing of connections."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

from aimass.channel import Connection, ConnectionOptions, ServiceClient
from aimass.embedding.v1 import embedding_service_pb2 as pb
from aimass.embedding.v1 import embedding_service_pb2_grpc as pb_grpc
from aimass.embedding_options import EmbeddingOptions, Truncation, truncation_pb
from aimass.embeddings import EmbeddedText, Embeddings, embedded_text_of, embeddings_of
from aimass.rankings import (
    Ranking,
    RerankOptions,
    Similarities,
    SimilarityOptions,
    ranking_of,
    similarities_of,
)
from aimass.response_stream import CallStream
from aimass.sparse_embeddings import SparseEmbeddings, sparse_embeddings_of
from aimass.token_embeddings import TokenEmbeddingOptions, TokenEmbeddings, token_embeddings_of
from aimass.wire import extend_texts, refusing, set_model


class EmbeddingStream(CallStream[pb.EmbedStreamResponse]):
    """The answers of one stream of texts, in the order of the texts. Use it in a `with` block.

    Leaving it early, however that happens, cancels the call.
    """

    def __iter__(self) -> Iterator[EmbeddedText]:
        return self

    def __next__(self) -> EmbeddedText:
        """Return the answer to the next text; raise `RpcError` when the call fails."""
        return embedded_text_of(next(self._responses))


class EmbeddingClient(ServiceClient):
    """Turns texts into vectors. Thread-safe; close it, or use it in a `with` block.

    Every method raises `aimass.errors.RpcError` or one of its kinds. `deadline_s` counts from the call, in
    seconds, and replaces the one of the connection's options.
    """

    DEFAULT_ADDRESS: ClassVar[str] = "localhost:50052"

    def __init__(
        self, target: str | Connection | None = None, options: ConnectionOptions | None = None
    ) -> None:
        super().__init__(target, options)
        self._stub = pb_grpc.EmbeddingServiceStub(self._connection.channel)

    def embed(
        self,
        texts: Sequence[str],
        *,
        model: str,
        options: EmbeddingOptions | None = None,
        request_id: str = "",
        deadline_s: float | None = None,
    ) -> Embeddings:
        """Return the vectors of the texts, float32 `[texts, dimensions]`, and why some may have none."""
        request = pb.EmbedRequest(options=(options or EmbeddingOptions()).message())
        set_model(request, model, request_id)
        extend_texts(request.texts, texts, "texts")
        return embeddings_of(self._connection.call(self._stub.Embed, request, deadline_s=deadline_s))

    def embed_sparse(
        self,
        texts: Sequence[str],
        *,
        model: str,
        top_k: int | None = None,
        truncation: Truncation = Truncation.END,
        request_id: str = "",
        deadline_s: float | None = None,
    ) -> SparseEmbeddings:
        """Return the weights of each text's words (SPLADE): at most `top_k` of a text, the heaviest."""
        request = pb.EmbedSparseRequest()
        request.options.truncation = truncation_pb(truncation)
        set_model(request, model, request_id)
        if top_k is not None:
            with refusing("options.top_k"):
                request.options.top_k = top_k
        extend_texts(request.texts, texts, "texts")
        return sparse_embeddings_of(
            self._connection.call(self._stub.EmbedSparse, request, deadline_s=deadline_s)
        )

    def embed_tokens(
        self,
        texts: Sequence[str],
        *,
        model: str,
        options: TokenEmbeddingOptions | None = None,
        request_id: str = "",
        deadline_s: float | None = None,
    ) -> TokenEmbeddings:
        """Return a vector for every token of each text (late interaction), and where the tokens stand."""
        request = pb.EmbedTokensRequest(options=(options or TokenEmbeddingOptions()).message())
        set_model(request, model, request_id)
        extend_texts(request.texts, texts, "texts")
        return token_embeddings_of(
            self._connection.call(self._stub.EmbedTokens, request, deadline_s=deadline_s)
        )

    def similarity(
        self,
        queries: Sequence[str],
        documents: Sequence[str] = (),
        *,
        model: str,
        options: SimilarityOptions | None = None,
        request_id: str = "",
        deadline_s: float | None = None,
    ) -> Similarities:
        """Return how near each query is to each document, or, without documents, to each other query."""
        request = pb.SimilarityRequest(options=(options or SimilarityOptions()).message())
        set_model(request, model, request_id)
        extend_texts(request.queries, queries, "queries")
        extend_texts(request.documents, documents, "documents")
        return similarities_of(self._connection.call(self._stub.Similarity, request, deadline_s=deadline_s))

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        model: str,
        options: RerankOptions | None = None,
        request_id: str = "",
        deadline_s: float | None = None,
    ) -> Ranking:
        """Return the documents by how well they answer the query, the best first."""
        request = pb.RerankRequest(options=(options or RerankOptions()).message())
        set_model(request, model, request_id)
        with refusing("query"):
            request.query = query
        extend_texts(request.documents, documents, "documents")
        return ranking_of(self._connection.call(self._stub.Rerank, request, deadline_s=deadline_s))

    def embed_stream(
        self,
        texts: Iterable[str],
        *,
        model: str,
        options: EmbeddingOptions | None = None,
        request_id: str = "",
        deadline_s: float | None = None,
    ) -> EmbeddingStream:
        """Embed texts as they come and return the answers in their order.

        `texts` is read by another thread, no faster than the server takes them.
        """
        config = pb.EmbedStreamConfig(options=(options or EmbeddingOptions()).message())
        set_model(config, model, request_id)
        requests = _stream_requests(config, texts)
        responses = self._connection.open_live_stream(self._stub.EmbedStream, requests, deadline_s=deadline_s)
        return EmbeddingStream(responses)


def _stream_requests(config: pb.EmbedStreamConfig, texts: Iterable[str]) -> Iterator[pb.EmbedStreamRequest]:
    yield pb.EmbedStreamRequest(config=config)
    for text in texts:
        yield pb.EmbedStreamRequest(text=text)
