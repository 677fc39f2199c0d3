"""The embedding service in Python. Knows the RPCs and their messages, and nothing of connections."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import ClassVar, Self

from aimass.channel import Connection, ConnectionOptions, ServiceClient
from aimass.embedding.v1 import embedding_service_pb2 as pb
from aimass.embedding.v1 import embedding_service_pb2_grpc as pb_grpc
from aimass.embedding_options import EmbeddingOptions, Truncation
from aimass.embeddings import EmbeddedText, Embeddings, embedded_text_of, embeddings_of
from aimass.response_stream import ResponseStream
from aimass.sparse_embeddings import SparseEmbeddings, sparse_embeddings_of
from aimass.wire import refusing


class EmbeddingStream:
    """The answers of one stream of texts, in the order of the texts. Use it in a `with` block.

    Leaving it early, however that happens, cancels the call.
    """

    def __init__(self, responses: ResponseStream[pb.EmbedStreamResponse]) -> None:
        self._responses = responses

    def __iter__(self) -> Iterator[EmbeddedText]:
        return self

    def __next__(self) -> EmbeddedText:
        """Return the answer to the next text; raise `RpcError` when the call fails."""
        return embedded_text_of(next(self._responses))

    def close(self) -> None:
        """Cancel the call if it still runs. Safe to repeat."""
        self._responses.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


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
        with refusing("model"):
            request.model = model
        with refusing("request_id"):
            request.request_id = request_id
        for index, text in enumerate([texts] if isinstance(texts, str) else texts):
            with refusing(f"texts[{index}]"):
                request.texts.append(text)
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
        request.options.truncation = pb.Truncation.Value(f"TRUNCATION_{truncation.name}")
        with refusing("model"):
            request.model = model
        with refusing("request_id"):
            request.request_id = request_id
        if top_k is not None:
            with refusing("options.top_k"):
                request.options.top_k = top_k
        for index, text in enumerate([texts] if isinstance(texts, str) else texts):
            with refusing(f"texts[{index}]"):
                request.texts.append(text)
        return sparse_embeddings_of(
            self._connection.call(self._stub.EmbedSparse, request, deadline_s=deadline_s)
        )

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
        with refusing("model"):
            config.model = model
        with refusing("request_id"):
            config.request_id = request_id
        requests = _stream_requests(config, texts)
        responses = self._connection.open_stream(self._stub.EmbedStream, requests, deadline_s=deadline_s)
        return EmbeddingStream(responses)


def _stream_requests(config: pb.EmbedStreamConfig, texts: Iterable[str]) -> Iterator[pb.EmbedStreamRequest]:
    yield pb.EmbedStreamRequest(config=config)
    for text in texts:
        yield pb.EmbedStreamRequest(text=text)
