"""Between the wire and the engine's words, for all RPCs of `EmbeddingService`: options and vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from aimass.embedding.v1 import embedding_service_pb2 as pb
from aimass_serving.errors import AimassError, InvalidField

from aimass_encoder.messages import chosen, item_error_pb
from aimass_encoder.request import EmbeddedText, EmbedOptions, Truncation, VectorDtype
from aimass_encoder.vectors import PackedVector, pack

_TRUNCATIONS: Mapping[int, Truncation] = {
    pb.TRUNCATION_UNSPECIFIED: Truncation.END,
    pb.TRUNCATION_NONE: Truncation.NONE,
    pb.TRUNCATION_END: Truncation.END,
    pb.TRUNCATION_START: Truncation.START,
}
_DTYPES: Mapping[int, tuple[VectorDtype, pb.VectorDtype.ValueType]] = {
    pb.VECTOR_DTYPE_UNSPECIFIED: (VectorDtype.FLOAT32, pb.VECTOR_DTYPE_FLOAT32),
    pb.VECTOR_DTYPE_FLOAT32: (VectorDtype.FLOAT32, pb.VECTOR_DTYPE_FLOAT32),
    pb.VECTOR_DTYPE_FLOAT16: (VectorDtype.FLOAT16, pb.VECTOR_DTYPE_FLOAT16),
    pb.VECTOR_DTYPE_INT8: (VectorDtype.INT8, pb.VECTOR_DTYPE_INT8),
    pb.VECTOR_DTYPE_BINARY: (VectorDtype.BINARY, pb.VECTOR_DTYPE_BINARY),
}


def dtype_of(number: int) -> tuple[VectorDtype, pb.VectorDtype.ValueType]:
    """Return how numbers are to be packed, and how the answer says it. Raises `InvalidField`."""
    return chosen(_DTYPES, number, "options.dtype", pb.VectorDtype)


def truncation_of(number: int) -> Truncation:
    """Return what is to be cut. Raises `InvalidField`."""
    return chosen(_TRUNCATIONS, number, "options.truncation", pb.Truncation)


def chunk_overlap(options: pb.EmbedOptions | pb.SimilarityOptions | pb.RerankOptions) -> int | None:
    """Return the overlap of pieces, None when long texts are not to be split. Raises `InvalidField`."""
    if not options.HasField("chunking"):
        return None
    if options.truncation != pb.TRUNCATION_UNSPECIFIED:
        got = pb.Truncation.Name(options.truncation)
        raise InvalidField(
            "options.truncation", expected="unset beside chunking, which cuts nothing", got=got
        )
    overlap = options.chunking.overlap_tokens
    if overlap < 0:  # the upper bound is the model's
        raise InvalidField("options.chunking.overlap_tokens", expected="at least 0", got=overlap)
    return overlap


def embed_options(options: pb.EmbedOptions) -> EmbedOptions:
    """Return the engine's options. Raises `InvalidField`."""
    return EmbedOptions(
        normalize=options.normalize if options.HasField("normalize") else None,
        truncation=truncation_of(options.truncation),
        dimensions=options.dimensions if options.HasField("dimensions") else None,
        prompt_name=options.prompt_name,
        chunk_overlap=chunk_overlap(options),
    )


def result_pbs(results: Sequence[EmbeddedText | AimassError], dtype: VectorDtype) -> Sequence[pb.EmbedResult]:
    """Return the results as they travel, vectors packed."""
    texts = [result for result in results if isinstance(result, EmbeddedText)]
    packed = iter(pack(np.stack([t.vector for t in texts]), dtype) if texts else [])
    return [
        pb.EmbedResult(embedding=_embedding_pb(result, next(packed)))
        if isinstance(result, EmbeddedText)
        else pb.EmbedResult(error=item_error_pb(result))
        for result in results
    ]


def _embedding_pb(text: EmbeddedText, packed: PackedVector) -> pb.Embedding:
    return pb.Embedding(
        vector=packed.content,
        scale=packed.scale,
        tokens=text.num_tokens,
        truncated_tokens=text.num_truncated_tokens,
        chunks=text.num_chunks,
    )
