"""`EmbeddingService.EmbedTokens`: translates between the wire and the engine, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aimass.embedding.v1 import embedding_service_pb2 as pb
from aimass.embedding.v1 import token_embedding_pb2
from aimass.model.v1.manifest_pb2 import TASK_EMBEDDING
from aimass_serving.errors import AimassError
from aimass_serving.registry import ModelRegistry
from aimass_serving.request_context import request_context

from aimass_encoder.engine import EncoderEngine
from aimass_encoder.messages import annotate_call, item_error_pb, reply_fields
from aimass_encoder.request import EmbedOptions, VectorDtype
from aimass_encoder.served import served_engine
from aimass_encoder.task_engine import TaskEngine
from aimass_encoder.token_vectors import TextTokenVectors, TokenVectorsRequest
from aimass_encoder.vector_messages import dtype_of, truncation_of
from aimass_encoder.vectors import PackedVector, pack


class TokenVectorRpcs:
    """The part of the servicer that gives a vector for every token."""

    _registry: ModelRegistry[TaskEngine]

    async def EmbedTokens(  # noqa: N802
        self, request: pb.EmbedTokensRequest, context: Any
    ) -> pb.EmbedTokensResponse:
        """Return the vectors of the tokens of each text, in order."""
        call = request_context(context, request.request_id)
        dtype, dtype_pb = dtype_of(request.options.dtype)
        served, engine = served_engine(self._registry, request.model, TASK_EMBEDDING, EncoderEngine)
        reply = await engine.embed_tokens(
            TokenVectorsRequest(
                request.texts,
                _options(request.options),
                dtype,
                text_only=request.options.text_only,
                deadline_s=call.deadline_s,
            )
        )
        annotate_call("embed_tokens", served.name, reply.num_tokens)
        return pb.EmbedTokensResponse(
            results=[_result_pb(result, dtype) for result in reply.results],
            dimensions=reply.dimensions,
            dtype=dtype_pb,
            **reply_fields(reply, served),
        )


def _options(options: pb.EmbedTokensOptions) -> EmbedOptions:
    return EmbedOptions(
        normalize=options.normalize if options.HasField("normalize") else None,
        truncation=truncation_of(options.truncation),
        dimensions=options.dimensions if options.HasField("dimensions") else None,
        prompt_name=options.prompt_name,
    )


def _result_pb(
    result: TextTokenVectors | AimassError, dtype: VectorDtype
) -> token_embedding_pb2.EmbedTokensResult:
    if isinstance(result, AimassError):
        return token_embedding_pb2.EmbedTokensResult(error=item_error_pb(result))
    packed: Sequence[PackedVector] = pack(result.vectors, dtype) if len(result.vectors) else []
    return token_embedding_pb2.EmbedTokensResult(
        embeddings=token_embedding_pb2.TokenEmbeddings(
            vectors=b"".join(vector.content for vector in packed),
            scales=[vector.scale for vector in packed] if dtype is VectorDtype.INT8 else [],
            starts=result.offsets[:, 0].tolist(),
            ends=result.offsets[:, 1].tolist(),
            token_ids=result.token_ids.tolist(),
            tokens=result.num_tokens,
            truncated_tokens=result.num_truncated_tokens,
        )
    )
