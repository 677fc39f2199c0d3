"""A bundle on disk to an engine that takes requests, warmed up and checked. The only reader of the manifest.

Must not know the wire.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

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
from aimass_encoder.labels import ProblemType
from aimass_encoder.pooling import Pooling, l2_normalize
from aimass_encoder.runner import HIDDEN, LOGITS, MASK, TOKEN_IDS, TYPE_IDS, EncoderRunner, PaddedBatch
from aimass_encoder.sparse_engine import SparseEngine
from aimass_encoder.spec import EmbeddingSpec
from aimass_encoder.task_engine import TaskEngine
from aimass_encoder.text_classifier import ClassifierSpec, TextClassifier
from aimass_encoder.text_encoder import TextEncoder
from aimass_encoder.tokenization import TextTokenizer

GRAPH_ROLE = "encoder"

_POOLINGS: Mapping[manifest_pb2.Pooling.ValueType, Pooling] = {
    manifest_pb2.POOLING_CLS: Pooling.CLS,
    manifest_pb2.POOLING_MEAN: Pooling.MEAN,
    manifest_pb2.POOLING_LAST: Pooling.LAST,
}
_PROBLEM_TYPES: Mapping[manifest_pb2.ProblemType.ValueType, ProblemType] = {
    manifest_pb2.PROBLEM_TYPE_SINGLE_LABEL: ProblemType.SINGLE_LABEL,
    manifest_pb2.PROBLEM_TYPE_MULTI_LABEL: ProblemType.MULTI_LABEL,
    manifest_pb2.PROBLEM_TYPE_REGRESSION: ProblemType.REGRESSION,
}
HEAD_OUTPUTS: Mapping[manifest_pb2.Task.ValueType, Sequence[str]] = {
    manifest_pb2.TASK_TEXT_CLASSIFICATION: (LOGITS,),
    manifest_pb2.TASK_SPARSE_EMBEDDING: (LOGITS,),
}
"""Tasks whose graph ends in a head, and its outputs."""


def load_engine(bundle: Bundle, context: LoadContext) -> TaskEngine:
    """Return a started engine. Blocking. Raises `BadBundle` when the golden outputs do not come out."""
    return engine_on(open_session(bundle.graph(GRAPH_ROLE), context.session_config), bundle, context)


def engine_on(session: Session, bundle: Bundle, context: LoadContext) -> TaskEngine:
    """Return a started engine that runs on an open session. Blocking; errors as `load_engine`."""
    is_head = bundle.manifest.task in HEAD_OUTPUTS
    engine = (
        head_engine_on(session, bundle, context) if is_head else embedding_engine_on(session, bundle, context)
    )
    engine.start()
    return engine


def embedding_engine_on(session: Session, bundle: Bundle, context: LoadContext) -> EncoderEngine:
    """Return an engine for embeddings, not started."""
    spec = embedding_spec(bundle)
    _check_graph(session, bundle.ref, outputs=(HIDDEN,))
    runner = EncoderRunner(session, pad_token_id=bundle.manifest.tokenizer.pad_token_id)
    replay_golden(runner, bundle, spec)
    config = context.config(EncoderConfig)
    _warm_up(runner, config, max_tokens=spec.max_tokens)
    tokenizer = _read_tokenizer(bundle, max_tokens=spec.max_tokens)
    return EncoderEngine(
        runner, tokenizer, spec, model=bundle.manifest.name, config=config, permit=context.permit
    )


def head_engine_on(session: Session, bundle: Bundle, context: LoadContext) -> TaskEngine:
    """Return an engine for a graph that ends in a task's head, not started."""
    manifest = bundle.manifest
    _check_graph(session, bundle.ref, outputs=HEAD_OUTPUTS[manifest.task])
    if manifest.encoder.max_tokens < 1:
        raise BadBundle(bundle.ref, detail="expected an encoder with max_tokens")
    runner = EncoderRunner(session, pad_token_id=manifest.tokenizer.pad_token_id)
    replay_golden_logits(runner, bundle)
    config = context.config(EncoderConfig)
    _warm_up(runner, config, max_tokens=manifest.encoder.max_tokens)
    tokenizer = _read_tokenizer(bundle, max_tokens=manifest.encoder.max_tokens)
    encoder = TextEncoder(runner, tokenizer, model=manifest.name, config=config, permit=context.permit)
    if manifest.task == manifest_pb2.TASK_SPARSE_EMBEDDING:
        return SparseEngine(encoder, tokenizer.words(manifest.encoder.vocab_size))
    return TextClassifier(encoder, classifier_spec(bundle))


def classifier_spec(bundle: Bundle) -> ClassifierSpec:
    """Return what the manifest says of a classifier. Raises `BadBundle` where it says too little."""
    encoder = bundle.manifest.encoder
    if not encoder.labels or encoder.problem_type not in _PROBLEM_TYPES:
        raise BadBundle(bundle.ref, detail="expected an encoder with labels and problem_type")
    return ClassifierSpec(
        tuple(encoder.labels),
        _PROBLEM_TYPES[encoder.problem_type],
        encoder.threshold if encoder.HasField("threshold") else None,
    )


def replay_golden_logits(runner: EncoderRunner, bundle: Bundle) -> None:
    """Run the inputs that the export recorded. Raises `BadBundle` when the logits differ too much."""
    golden = bundle.golden()
    try:
        batch = PaddedBatch(golden[TOKEN_IDS], golden[MASK], golden.get(TYPE_IDS))
        tolerance = float(golden["tolerance"])
        expected = {name: golden[name] for name in HEAD_OUTPUTS[bundle.manifest.task]}
    except KeyError as error:
        raise BadBundle(bundle.ref, detail=f"golden.npz has no array named {error}") from error
    outputs = runner.run(batch)
    for name, values in expected.items():
        got = outputs[name]
        difference = float(np.abs(got - values).max()) if got.shape == values.shape else np.inf
        if not difference <= tolerance:  # NaN is not
            detail = f"golden {name} differ by {difference:.3g}, expected at most {tolerance:.3g}"
            raise BadBundle(bundle.ref, detail=detail)


def _warm_up(runner: EncoderRunner, config: EncoderConfig, *, max_tokens: int) -> None:
    limits = config.batch_limits(runner.execution_provider, max_tokens=max_tokens)
    runner.warm_up(warm_up_shapes(limits, max_tokens=max_tokens))


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


def _check_graph(session: Session, bundle: str, *, outputs: Collection[str]) -> None:
    inputs, found = {i.name for i in session.inputs}, {o.name for o in session.outputs}
    if not {TOKEN_IDS, MASK} <= inputs <= {TOKEN_IDS, MASK, TYPE_IDS}:
        raise BadBundle(bundle, detail=f"expected a graph of {TOKEN_IDS} and {MASK}, got {sorted(inputs)}")
    if not set(outputs) <= found:
        expected = " and ".join(outputs)
        raise BadBundle(bundle, detail=f"expected a graph with output {expected}, got {sorted(found)}")


def _read_tokenizer(bundle: Bundle, *, max_tokens: int) -> TextTokenizer:
    file = bundle.file(bundle.manifest.tokenizer.file)
    try:
        return TextTokenizer.from_file(file, max_tokens=max_tokens)
    except Exception as error:  # the library raises bare Exception
        raise BadBundle(bundle.ref, detail=f"{file.name} is not a tokeniser") from error
