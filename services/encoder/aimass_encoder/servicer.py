"""`EmbeddingService`: translates between the wire and the engine, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import grpc
from aimass.classification.v1.classification_service_pb2_grpc import (
    add_ClassificationServiceServicer_to_server,
)
from aimass.common.v1 import usage_pb2
from aimass.embedding.v1 import embedding_service_pb2 as pb
from aimass.embedding.v1.embedding_service_pb2_grpc import (
    EmbeddingServiceServicer,
    add_EmbeddingServiceServicer_to_server,
)
from aimass.model.v1.manifest_pb2 import TASK_EMBEDDING, TASK_SPARSE_EMBEDDING
from aimass_serving.errors import (
    AimassError,
    InputTooLong,
    InvalidField,
    InvalidFields,
    ModelFailed,
    Overloaded,
)
from aimass_serving.registry import ModelRegistry
from aimass_serving.request_context import RequestContext, request_context

from aimass_encoder import classification_servicer
from aimass_encoder.classification_servicer import ClassificationServicer
from aimass_encoder.engine import EncoderEngine
from aimass_encoder.messages import annotate_call, item_error_pb, timings_pb
from aimass_encoder.ranking_rpcs import RankingRpcs
from aimass_encoder.request import (
    EmbeddedText,
    EmbedOptions,
    EmbedRequest,
    VectorDtype,
)
from aimass_encoder.served import served_engine
from aimass_encoder.sparse import SparseRequest, SparseText
from aimass_encoder.sparse_engine import SparseEngine
from aimass_encoder.stream import in_order
from aimass_encoder.task_engine import TaskEngine
from aimass_encoder.token_vector_rpcs import TokenVectorRpcs
from aimass_encoder.vector_messages import dtype_of, embed_options, result_pbs, truncation_of

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["EmbeddingService"].full_name

ITEM_ERRORS = (InvalidFields, InputTooLong, ModelFailed, Overloaded)
"""What fails one text of a stream; anything else ends the stream."""


def register(server: grpc.aio.Server, registry: ModelRegistry[TaskEngine]) -> Sequence[str]:
    """Add the servicers of the encoder service; return their full names."""
    add_EmbeddingServiceServicer_to_server(EmbeddingServicer(registry), server)
    add_ClassificationServiceServicer_to_server(ClassificationServicer(registry), server)
    return [SERVICE_NAME, classification_servicer.SERVICE_NAME]


class EmbeddingServicer(RankingRpcs, TokenVectorRpcs, EmbeddingServiceServicer):
    """Answers with the vectors of the engines in the registry."""

    def __init__(self, registry: ModelRegistry[TaskEngine]) -> None:
        self._registry = registry

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:  # noqa: N802
        """Return one result for each text, in order. One bad text fails its own result, not the call."""
        call = request_context(context, request.request_id)
        dtype, dtype_pb = dtype_of(request.options.dtype)
        served, engine = served_engine(self._registry, request.model, TASK_EMBEDDING, EncoderEngine)
        reply = await engine.embed(
            EmbedRequest(request.texts, embed_options(request.options), deadline_s=call.deadline_s)
        )
        annotate_call("embeddings", served.name, reply.num_tokens)
        return pb.EmbedResponse(
            results=result_pbs(reply.results, dtype),
            dimensions=reply.dimensions,
            dtype=dtype_pb,
            model=served.name,
            model_version=served.version,
            usage=usage_pb2.Usage(input_tokens=reply.num_tokens),
            timings=timings_pb(reply.timings),
        )

    async def EmbedSparse(  # noqa: N802
        self, request: pb.EmbedSparseRequest, context: Any
    ) -> pb.EmbedSparseResponse:
        """Return the weights of the words of each text, in order."""
        call = request_context(context, request.request_id)
        served, engine = served_engine(self._registry, request.model, TASK_SPARSE_EMBEDDING, SparseEngine)
        reply = await engine.embed(sparse_request(request, deadline_s=call.deadline_s))
        annotate_call("embeddings", served.name, reply.num_tokens)
        return pb.EmbedSparseResponse(
            results=[sparse_result_pb(result) for result in reply.results],
            vocabulary_size=reply.vocabulary_size,
            model=served.name,
            model_version=served.version,
            usage=usage_pb2.Usage(input_tokens=reply.num_tokens),
            timings=timings_pb(reply.timings),
        )

    async def EmbedStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.EmbedStreamRequest], context: Any
    ) -> AsyncIterator[pb.EmbedStreamResponse]:
        """Embed texts as they arrive; answer in order. A bad text fails its own answer, not the stream."""
        config = await _first_config(request_iterator)
        call = request_context(context, config.request_id)
        stream = self._open(config, call)
        texts = _numbered_texts(request_iterator)
        try:
            async with aclosing(in_order(texts, stream.embed, window=stream.engine.stream_window)) as answers:
                async for answer in answers:
                    yield answer
        finally:
            annotate_call("embeddings", config.model, stream.num_tokens)

    def _open(self, config: pb.EmbedStreamConfig, call: RequestContext) -> _EmbedStream:
        """Check the configuration of a stream; its fields are named from the stream's first message."""
        try:
            dtype, dtype_pb = dtype_of(config.options.dtype)
            options = embed_options(config.options)
            _, engine = served_engine(self._registry, config.model, TASK_EMBEDDING, EncoderEngine)
            engine.check_options(options)
        except InvalidFields as error:
            raise InvalidFields(replace(v, field=f"config.{v.field}") for v in error.violations) from error
        return _EmbedStream(engine, options, dtype, dtype_pb, deadline_s=call.deadline_s)


class _EmbedStream:
    """One stream: everything its texts share."""

    def __init__(
        self,
        engine: EncoderEngine,
        options: EmbedOptions,
        dtype: VectorDtype,
        dtype_pb: pb.VectorDtype.ValueType,
        *,
        deadline_s: float | None,
    ) -> None:
        self.engine = engine
        self._options = options
        self._dtype = dtype
        self._dtype_pb = dtype_pb
        self._deadline_s = deadline_s
        self.num_tokens = 0
        """Tokens the model saw so far."""

    async def embed(self, numbered: tuple[int, str]) -> pb.EmbedStreamResponse:
        index, text = numbered
        try:
            reply = await self.engine.embed(
                EmbedRequest([text], self._options, deadline_s=self._deadline_s, field_name="text")
            )
            self.num_tokens += reply.num_tokens
            results: Sequence[EmbeddedText | AimassError] = reply.results
        except ITEM_ERRORS as error:
            results = [error]
        (result,) = result_pbs(results, self._dtype)
        return pb.EmbedStreamResponse(
            index=index,
            result=result,
            dimensions=self._options.dimensions or self.engine.limits.dimensions,
            dtype=self._dtype_pb,
        )


def sparse_request(request: pb.EmbedSparseRequest, *, deadline_s: float | None) -> SparseRequest:
    """Return the engine's request. Raises `InvalidField`."""
    options = request.options
    return SparseRequest(
        request.texts,
        truncation=truncation_of(options.truncation),
        top_k=options.top_k if options.HasField("top_k") else None,
        deadline_s=deadline_s,
    )


def sparse_result_pb(result: SparseText | AimassError) -> pb.EmbedSparseResult:
    """Return one text's sparse vector as it travels."""
    if isinstance(result, AimassError):
        return pb.EmbedSparseResult(error=item_error_pb(result))
    return pb.EmbedSparseResult(
        embedding=pb.SparseEmbedding(
            indices=result.indices.tolist(),
            weights=result.weights.tolist(),
            words=result.words,
            tokens=result.num_tokens,
            truncated_tokens=result.num_truncated_tokens,
        )
    )


async def _first_config(requests: AsyncIterator[pb.EmbedStreamRequest]) -> pb.EmbedStreamConfig:
    first = await anext(requests, None)
    kind = first.WhichOneof("request") if first is not None else None
    if first is None or kind != "config":
        raise InvalidField("config", expected="the configuration in the first message", got=kind or "nothing")
    return first.config


async def _numbered_texts(requests: AsyncIterator[pb.EmbedStreamRequest]) -> AsyncIterator[tuple[int, str]]:
    index = 0
    async for request in requests:
        kind = request.WhichOneof("request")
        if kind != "text":
            raise InvalidField("text", expected="a text in every message after the first", got=kind)
        yield index, request.text
        index += 1
