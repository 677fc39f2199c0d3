"""A bundle on disk to an engine that takes requests, warmed up and checked. The only reader of the manifest.

Must not know the wire.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from aimass.model.v1 import manifest_pb2
from aimass_serving.bundle import Bundle
from aimass_serving.errors import BadBundle
from aimass_serving.service import LoadContext
from aimass_serving.session import Session, open_session

from aimass_encoder.batcher import BatchLimits
from aimass_encoder.config import EncoderConfig
from aimass_encoder.engine import EncoderEngine
from aimass_encoder.head import PoolingHead
from aimass_encoder.pooling import Pooling, l2_normalize
from aimass_encoder.runner import HIDDEN, MASK, TOKEN_IDS, TYPE_IDS, EncoderRunner, PaddedBatch
from aimass_encoder.spec import EmbeddingSpec
from aimass_encoder.tokenization import TextTokenizer

GRAPH_ROLE = "encoder"

_POOLINGS: Mapping[manifest_pb2.Pooling.ValueType, Pooling] = {
    manifest_pb2.POOLING_CLS: Pooling.CLS,
    manifest_pb2.POOLING_MEAN: Pooling.MEAN,
    manifest_pb2.POOLING_LAST: Pooling.LAST,
}


def load_engine(bundle: Bundle, context: LoadContext) -> EncoderEngine:
    """Return a started engine. Blocking. Raises `BadBundle` when the golden vectors do not come out."""
    return engine_on(open_session(bundle.graph(GRAPH_ROLE), context.session_config), bundle, context)


def engine_on(session: Session, bundle: Bundle, context: LoadContext) -> EncoderEngine:
    """Return a started engine that runs on an open session. Blocking; errors as `load_engine`."""
    spec = embedding_spec(bundle)
    _check_graph(session, bundle.ref)
    runner = EncoderRunner(session, pad_token_id=bundle.manifest.tokenizer.pad_token_id)
    replay_golden(runner, bundle, spec)
    config = context.config(EncoderConfig)
    limits = config.batch_limits(session.execution_provider, max_tokens=spec.max_tokens)
    runner.warm_up(warm_up_shapes(limits, max_tokens=spec.max_tokens))
    tokenizer = _read_tokenizer(bundle, max_tokens=spec.max_tokens)
    engine = EncoderEngine(
        runner, tokenizer, spec, model=bundle.manifest.name, config=config, permit=context.permit
    )
    engine.start()
    return engine


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
    difference = float(np.abs((l2_normalize(vectors) if spec.normalize else vectors) - expected).max())
    if not difference <= tolerance:  # NaN is not
        detail = f"golden vectors differ by {difference:.3g}, expected at most {tolerance:.3g}"
        raise BadBundle(bundle.ref, detail=detail)


def warm_up_shapes(limits: BatchLimits, *, max_tokens: int) -> list[tuple[int, int]]:
    """Return the `(rows, length)` to run before traffic, each a full batch.

    On CUDA every padded length, since kernels are chosen by shape; on the CPU the extremes, which take all
    the memory that will ever be needed.
    """
    longest, multiple = limits.padded(max_tokens), limits.length_multiple
    lengths = range(multiple, longest + 1, multiple) if multiple > 1 else (1, longest)
    return [(min(limits.max_batch_rows, limits.max_batch_tokens // length), length) for length in lengths]


def _check_graph(session: Session, bundle: str) -> None:
    inputs, outputs = {i.name for i in session.inputs}, {o.name for o in session.outputs}
    if not {TOKEN_IDS, MASK} <= inputs <= {TOKEN_IDS, MASK, TYPE_IDS}:
        raise BadBundle(bundle, detail=f"expected a graph of {TOKEN_IDS} and {MASK}, got {sorted(inputs)}")
    if HIDDEN not in outputs:
        raise BadBundle(bundle, detail=f"expected a graph with output {HIDDEN}, got {sorted(outputs)}")


def _read_tokenizer(bundle: Bundle, *, max_tokens: int) -> TextTokenizer:
    file = bundle.file(bundle.manifest.tokenizer.file)
    try:
        return TextTokenizer.from_file(file, max_tokens=max_tokens)
    except Exception as error:  # the library raises bare Exception
        raise BadBundle(bundle.ref, detail=f"{file.name} is not a tokeniser") from error
