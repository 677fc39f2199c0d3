"""A text encoder in PyTorch with the head of its task, float32, and what the service must know of both."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from aimass.model.v1.manifest_pb2 import (
    PROBLEM_TYPE_MULTI_LABEL,
    PROBLEM_TYPE_REGRESSION,
    PROBLEM_TYPE_SINGLE_LABEL,
    EncoderSpec,
    ProblemType,
)
from numpy.typing import NDArray
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForNextSentencePrediction,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from aimass_exporters.bundles.text_tokenizer import TextTokenizer, read_tokenizer
from aimass_exporters.encoders.bigru_tagger import GRAPH_PRECISIONS
from aimass_exporters.encoders.encoder_parity import PASSAGES
from aimass_exporters.encoders.lac_encoder import (
    CHINESE_PASSAGES,
    MAX_TOKENS,
    character_tokenizer,
    lac_tagger,
)
from aimass_exporters.encoders.sentence_encoder import longest_input
from aimass_exporters.errors import InvalidCheckpoint, UnsupportedModel
from aimass_exporters.precision import Precision
from aimass_exporters.sources.catalogue import Reader, TaskName
from aimass_exporters.sources.intent_head import load_intent_classifier
from aimass_exporters.sources.lac_package import LacPackage
from aimass_exporters.sources.pretrained import load_pretrained
from aimass_exporters.sources.source import Source

_PROBLEM_TYPES: Mapping[str | None, ProblemType.ValueType] = {
    None: PROBLEM_TYPE_SINGLE_LABEL,
    "single_label_classification": PROBLEM_TYPE_SINGLE_LABEL,
    "multi_label_classification": PROBLEM_TYPE_MULTI_LABEL,
    "regression": PROBLEM_TYPE_REGRESSION,
}


@dataclass(frozen=True, slots=True)
class HeadKind:
    """How the head of a task is loaded and exported."""

    loader: Any
    """The Auto class of transformers."""
    optimum_task: str
    """optimum's name of what the graph computes."""
    outputs: Sequence[str] = ("logits",)
    """The graph's outputs."""
    reads_pairs: bool = False
    """Whether inputs are pairs of texts."""
    is_token_level: bool = False
    """Whether outputs have one row a token."""
    is_vocabulary_wide: bool = False
    """Whether outputs have one number a word of the vocabulary."""


HEADS: Mapping[TaskName, HeadKind] = {
    TaskName.TEXT_CLASSIFICATION: HeadKind(AutoModelForSequenceClassification, "text-classification"),
    TaskName.TOKEN_CLASSIFICATION: HeadKind(
        AutoModelForTokenClassification, "token-classification", is_token_level=True
    ),
    TaskName.FILL_MASK: HeadKind(
        AutoModelForMaskedLM, "fill-mask", is_token_level=True, is_vocabulary_wide=True
    ),
    TaskName.SPARSE_EMBEDDING: HeadKind(
        AutoModelForMaskedLM, "fill-mask", is_token_level=True, is_vocabulary_wide=True
    ),
    TaskName.QUESTION_ANSWERING: HeadKind(
        AutoModelForQuestionAnswering,
        "question-answering",
        ("start_logits", "end_logits"),
        reads_pairs=True,
        is_token_level=True,
    ),
    # optimum has no name for this task; a graph with two logits a pair is what it calls classification.
    TaskName.NEXT_SENTENCE_PREDICTION: HeadKind(
        AutoModelForNextSentencePrediction, "text-classification", reads_pairs=True
    ),
}
NEXT_SENTENCE_LABELS = ("is_next", "not_next")


@dataclass(frozen=True, slots=True)
class TaskEncoder:
    """A model in evaluation mode: also the reference that parity is measured against."""

    model: PreTrainedModel
    text: TextTokenizer
    spec: EncoderSpec
    kind: HeadKind
    folder: Path | None = None
    """Where labelled texts may lie beside the weights."""
    precisions: Collection[Precision] = tuple(Precision)
    """Those that the graph can be written in."""
    passages: Sequence[str] = PASSAGES
    """Texts that it is compared with PyTorch on."""
    original: Callable[[str], NDArray[np.float32]] | None = None
    """Gives the logits of a text as the model came, where it came as a graph and `model` was made of it."""


def load_task_encoder(source: Source, task: TaskName) -> TaskEncoder:
    """Load a Hugging Face folder whose weights hold the task's head, the intent classifier, or LAC.

    Raises `InvalidCheckpoint`, also when the head's weights are not there, or `UnsupportedModel`.
    """
    if source.reader is Reader.LAC:
        return _lac(source.path, task)
    if source.reader is Reader.INTENT_HEAD:
        model, folder = load_intent_classifier(source.path)
    elif source.reader is Reader.FOLDER:
        folder = source.path
        model = load_pretrained(HEADS[task].loader, folder, weights="weights of the task's head")
    else:
        raise UnsupportedModel(source.reader, because="encoders are read from Hugging Face folders only")
    text = read_tokenizer(folder)
    spec = EncoderSpec(hidden_size=model.config.hidden_size, max_tokens=longest_input(folder, model))
    _describe_head(spec, task, model, text)
    return TaskEncoder(model, text, spec, HEADS[task], folder)


def _lac(folder: Path, task: TaskName) -> TaskEncoder:
    package = LacPackage(folder)
    model, text = lac_tagger(package), character_tokenizer(package)
    if task is not TaskName.TOKEN_CLASSIFICATION:
        raise UnsupportedModel(model.config.model_type, because=f"it is for {TaskName.TOKEN_CLASSIFICATION}")
    spec = EncoderSpec(
        hidden_size=model.config.hidden_size,
        max_tokens=MAX_TOKENS,
        label_transitions=package.transitions().ravel().tolist(),
    )
    _describe_head(spec, task, model, text)
    return TaskEncoder(
        model,
        text,
        spec,
        HEADS[task],
        precisions=GRAPH_PRECISIONS,
        passages=CHINESE_PASSAGES,
        original=package.logits,
    )


def _describe_head(spec: EncoderSpec, task: TaskName, model: PreTrainedModel, text: TextTokenizer) -> None:
    config: Any = model.config
    if task in (TaskName.TEXT_CLASSIFICATION, TaskName.TOKEN_CLASSIFICATION):
        spec.labels.extend(config.id2label[i] for i in range(config.num_labels))
        spec.problem_type = _problem_type(config, task)
        if isinstance(threshold := getattr(config, "threshold", None), float):
            spec.threshold = threshold
    elif task is TaskName.NEXT_SENTENCE_PREDICTION:
        spec.labels.extend(NEXT_SENTENCE_LABELS)
        spec.problem_type = PROBLEM_TYPE_SINGLE_LABEL
    elif HEADS[task].is_vocabulary_wide:
        spec.vocab_size = config.vocab_size
        if (mask := text.special_tokens.get("mask_token")) is not None:
            spec.mask_token_id = text.tokenizer.token_to_id(mask)
        elif task is TaskName.FILL_MASK:
            raise InvalidCheckpoint(config.model_type, detail="its tokenizer has no mask token")


def _problem_type(config: Any, task: TaskName) -> ProblemType.ValueType:
    if config.problem_type not in _PROBLEM_TYPES:
        raise UnsupportedModel(config.model_type, because=f"its problem type is {config.problem_type!r}")
    if config.problem_type is None and config.num_labels == 1 and task is TaskName.TEXT_CLASSIFICATION:
        return PROBLEM_TYPE_REGRESSION
    return _PROBLEM_TYPES[config.problem_type]
