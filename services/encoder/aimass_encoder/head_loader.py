"""The bundle of an encoder with a task's head to an engine, warmed up and checked. Must not know the wire."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from aimass.model.v1 import manifest_pb2
from aimass_serving.adaptive_session import each_variant
from aimass_serving.bundle import Bundle
from aimass_serving.errors import BadBundle
from aimass_serving.service import LoadContext
from aimass_serving.session import Session

from aimass_encoder.config import EncoderConfig
from aimass_encoder.entities import LabelSet
from aimass_encoder.golden import check_golden
from aimass_encoder.labels import ProblemType
from aimass_encoder.mask_filler import MaskFiller, MaskSpec
from aimass_encoder.next_sentence import NextSentencePredictor
from aimass_encoder.question_answerer import END_LOGITS, START_LOGITS, QuestionAnswerer
from aimass_encoder.runner import LOGITS, MASK, TOKEN_IDS, TYPE_IDS, EncoderRunner, PaddedBatch
from aimass_encoder.sparse_engine import SparseEngine
from aimass_encoder.task_engine import TaskEngine
from aimass_encoder.text_bundle import check_graph, read_tokenizer, warm_up
from aimass_encoder.text_classifier import ClassifierSpec, TextClassifier
from aimass_encoder.text_encoder import TextEncoder
from aimass_encoder.token_tagger import TaggerSpec, TokenTagger
from aimass_encoder.tokenization import TextTokenizer

_PROBLEM_TYPES: Mapping[manifest_pb2.ProblemType.ValueType, ProblemType] = {
    manifest_pb2.PROBLEM_TYPE_SINGLE_LABEL: ProblemType.SINGLE_LABEL,
    manifest_pb2.PROBLEM_TYPE_MULTI_LABEL: ProblemType.MULTI_LABEL,
    manifest_pb2.PROBLEM_TYPE_REGRESSION: ProblemType.REGRESSION,
}
_MIN_MEASURED = 100
"""Texts that a precision must have been measured on to be relied on."""


@dataclass(frozen=True, slots=True)
class HeadTask:
    """How the head of one task is served."""

    outputs: Sequence[str]
    """The graph's outputs."""
    engine: Callable[[TextEncoder, TextTokenizer, Bundle], TaskEngine]
    """Makes the engine, not started. Raises `BadBundle`."""


def head_engine_on(session: Session, bundle: Bundle, context: LoadContext) -> TaskEngine:
    """Return an engine for a graph that ends in a task's head, not started."""
    manifest = bundle.manifest
    task = HEAD_TASKS[manifest.task]
    check_graph(session, bundle.ref, outputs=task.outputs)
    if manifest.encoder.max_tokens < 1:
        raise BadBundle(bundle.ref, detail="expected an encoder with max_tokens")
    runner = EncoderRunner(session, pad_token_id=manifest.tokenizer.pad_token_id)
    config = context.config(EncoderConfig)
    for _ in each_variant(session):
        replay_golden_logits(runner, bundle, task.outputs)
        warm_up(runner, config, max_tokens=manifest.encoder.max_tokens)
    tokenizer = read_tokenizer(bundle, max_tokens=manifest.encoder.max_tokens)
    encoder = TextEncoder(runner, tokenizer, model=manifest.name, config=config, permit=context.permit)
    return task.engine(encoder, tokenizer, bundle)


def _sparse_engine(encoder: TextEncoder, tokenizer: TextTokenizer, bundle: Bundle) -> SparseEngine:
    return SparseEngine(encoder, tokenizer.words(bundle.manifest.encoder.vocab_size))


def _token_tagger(encoder: TextEncoder, _tokenizer: TextTokenizer, bundle: Bundle) -> TokenTagger:
    spec = bundle.manifest.encoder
    labels, count = tuple(spec.labels), len(spec.labels)
    if not labels or len(spec.label_transitions) not in (0, count * count):
        detail = "expected an encoder with labels, and transitions between all of them or none"
        raise BadBundle(bundle.ref, detail=detail)
    transitions = np.array(spec.label_transitions, np.float32).reshape(-1, count)
    return TokenTagger(encoder, TaggerSpec(LabelSet(labels), transitions if len(transitions) else None))


def _mask_filler(encoder: TextEncoder, tokenizer: TextTokenizer, bundle: Bundle) -> MaskFiller:
    spec = bundle.manifest.encoder
    if not spec.HasField("mask_token_id") or not 0 <= spec.mask_token_id < spec.vocab_size:
        raise BadBundle(bundle.ref, detail="expected an encoder with mask_token_id below vocab_size")
    return MaskFiller(encoder, tokenizer, MaskSpec(spec.mask_token_id, spec.vocab_size))


def _question_answerer(encoder: TextEncoder, _tokenizer: TextTokenizer, _bundle: Bundle) -> QuestionAnswerer:
    return QuestionAnswerer(encoder)


def _next_sentence_predictor(
    encoder: TextEncoder, _tokenizer: TextTokenizer, _bundle: Bundle
) -> NextSentencePredictor:
    return NextSentencePredictor(encoder)


def _text_classifier(encoder: TextEncoder, _tokenizer: TextTokenizer, bundle: Bundle) -> TextClassifier:
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
        temperature=encoder.calibration.temperature or 1.0,
        points=_operating_points(encoder.calibration),
    )


def _operating_points(calibration: manifest_pb2.Calibration) -> Sequence[tuple[float, float]]:
    """Return the precisions that unseen texts showed, and the least scores that reach them.

    What was aimed at when thresholds were fitted is more than other texts then give, so it is not promised.
    """
    enough = [p for p in calibration.points if p.coverage * calibration.num_measured >= _MIN_MEASURED]
    return [(point.measured_precision, point.threshold) for point in enough]


def replay_golden_logits(runner: EncoderRunner, bundle: Bundle, outputs: Sequence[str]) -> None:
    """Run the inputs that the export recorded. Raises `BadBundle` when the logits differ too much."""
    golden = bundle.golden()
    try:
        batch = PaddedBatch(golden[TOKEN_IDS], golden[MASK], golden.get(TYPE_IDS))
        tolerance = float(golden["tolerance"])
        expected = {name: golden[name] for name in outputs}
    except KeyError as error:
        raise BadBundle(bundle.ref, detail=f"golden.npz has no array named {error}") from error
    found = runner.run(batch)
    for name, values in expected.items():
        check_golden(bundle.ref, name, found[name], values, tolerance=tolerance)


HEAD_TASKS: Mapping[manifest_pb2.Task.ValueType, HeadTask] = {
    manifest_pb2.TASK_TEXT_CLASSIFICATION: HeadTask((LOGITS,), _text_classifier),
    manifest_pb2.TASK_SPARSE_EMBEDDING: HeadTask((LOGITS,), _sparse_engine),
    manifest_pb2.TASK_TOKEN_CLASSIFICATION: HeadTask((LOGITS,), _token_tagger),
    manifest_pb2.TASK_FILL_MASK: HeadTask((LOGITS,), _mask_filler),
    manifest_pb2.TASK_NEXT_SENTENCE_PREDICTION: HeadTask((LOGITS,), _next_sentence_predictor),
    manifest_pb2.TASK_QUESTION_ANSWERING: HeadTask((START_LOGITS, END_LOGITS), _question_answerer),
}
"""Tasks whose graph ends in a head."""
