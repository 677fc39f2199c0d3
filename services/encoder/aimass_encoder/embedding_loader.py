"""An embedding model's bundle to an engine, warmed up and checked. Must not know the wire."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from aimass.model.v1 import manifest_pb2
from aimass_serving.adaptive_session import each_variant
from aimass_serving.bundle import Bundle
from aimass_serving.errors import BadBundle
from aimass_serving.service import LoadContext
from aimass_serving.session import Session

from aimass_encoder.config import EncoderConfig
from aimass_encoder.engine import EncoderEngine
from aimass_encoder.golden import check_golden
from aimass_encoder.head import PoolingHead
from aimass_encoder.pooling import Pooling, l2_normalize
from aimass_encoder.runner import HIDDEN, EncoderRunner, PaddedBatch
from aimass_encoder.spec import EmbeddingSpec
from aimass_encoder.text_bundle import check_graph, read_tokenizer, warm_up

_POOLINGS: Mapping[manifest_pb2.Pooling.ValueType, Pooling] = {
    manifest_pb2.POOLING_CLS: Pooling.CLS,
    manifest_pb2.POOLING_MEAN: Pooling.MEAN,
    manifest_pb2.POOLING_LAST: Pooling.LAST,
}


def embedding_engine_on(session: Session, bundle: Bundle, context: LoadContext) -> EncoderEngine:
    """Return an engine for embeddings, not started."""
    spec = embedding_spec(bundle)
    check_graph(session, bundle.ref, outputs=(HIDDEN,))
    runner = EncoderRunner(session, pad_token_id=bundle.manifest.tokenizer.pad_token_id)
    config = context.config(EncoderConfig)
    for _ in each_variant(session):
        replay_golden(runner, bundle, spec)
        warm_up(runner, config, max_tokens=spec.max_tokens)
    tokenizer = read_tokenizer(bundle, max_tokens=spec.max_tokens)
    return EncoderEngine(
        runner, tokenizer, spec, model=bundle.manifest.name, config=config, permit=context.permit
    )


def embedding_spec(bundle: Bundle) -> EmbeddingSpec:
    """Return what the manifest says of an embedding model. Raises `BadBundle` where it says too little."""
    encoder = bundle.manifest.encoder
    if encoder.pooling not in _POOLINGS or encoder.hidden_size < 1 or encoder.max_tokens < 1:
        raise BadBundle(bundle.ref, detail="expected an encoder with pooling, hidden_size and max_tokens")
    return EmbeddingSpec(
        hidden_size=encoder.hidden_size,
        max_tokens=encoder.max_tokens,
        pooling=_POOLINGS[encoder.pooling],
        normalize=encoder.normalize,
        prompts=dict(encoder.prompts),
    )


def replay_golden(runner: EncoderRunner, bundle: Bundle, spec: EmbeddingSpec) -> None:
    """Run the inputs that the export recorded. Raises `BadBundle` when the vectors differ too much."""
    golden = bundle.golden()
    try:
        batch = PaddedBatch(golden["input_ids"].astype(np.int64), golden["attention_mask"].astype(np.int64))
        expected, tolerance = golden["vectors"], float(golden["tolerance"])
    except KeyError as error:
        raise BadBundle(bundle.ref, detail=f"golden.npz has no array named {error}") from error
    read = PoolingHead(spec.pooling, bundle.ref)(runner.run(batch), batch.mask)
    vectors = np.stack([v if isinstance(v, np.ndarray) else np.full(spec.hidden_size, np.nan) for v in read])
    got = l2_normalize(vectors) if spec.normalize else vectors
    check_golden(bundle.ref, "vectors", got, expected, tolerance=tolerance)
