"""A fitted scikit-learn estimator as an ONNX graph, with the service's names. Knows no rows and no bundle."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from aimass.model.v1.features_spec_pb2 import (
    FEATURE_KIND_NUMBER,
    FEATURE_KIND_TEXT,
    FEATURES_TASK_CLASSIFIER,
    FEATURES_TASK_CLUSTERER,
    FEATURES_TASK_REGRESSOR,
    FeatureColumn,
    FeaturesSpec,
    FeaturesTask,
)
from aimass_encoder.tables.runner import CLUSTER, FEATURES, SCORES, column_input
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.base import is_classifier, is_clusterer, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from aimass_exporters.errors import UnsupportedModel

_OPSET = {"": 21, "ai.onnx.ml": 3}
_LOWER = b"LOWER"


@dataclass(frozen=True, slots=True)
class EstimatorKind:
    """What an estimator gives for a row."""

    task: FeaturesTask.ValueType
    labels: Sequence[str]
    """Classifiers: in the order of the probabilities."""


def kind_of(estimator: Any) -> EstimatorKind:
    """Return what a fitted estimator gives. Raises `UnsupportedModel`."""
    family = type(estimator).__name__
    try:
        check_is_fitted(estimator)
    except (NotFittedError, TypeError) as error:
        raise UnsupportedModel(family, because="it is no fitted estimator of scikit-learn") from error
    if is_classifier(estimator):
        return EstimatorKind(FEATURES_TASK_CLASSIFIER, _labels(estimator, family))
    if is_regressor(estimator):
        return EstimatorKind(FEATURES_TASK_REGRESSOR, ())
    if is_clusterer(estimator) and hasattr(estimator, "predict"):
        return EstimatorKind(FEATURES_TASK_CLUSTERER, ())
    raise UnsupportedModel(family, because="it is no classifier, regressor or clusterer that can predict")


def _labels(estimator: Any, family: str) -> Sequence[str]:
    if not hasattr(estimator, "predict_proba"):
        raise UnsupportedModel(family, because="it gives no probabilities")
    if isinstance(estimator.classes_, list):
        raise UnsupportedModel(family, because="it answers several questions at once (multi-output)")
    return [str(label) for label in estimator.classes_.tolist()]


def write_estimator_graph(estimator: Any, spec: FeaturesSpec, path: Path) -> Path:
    """Write the graph to `path`, with the inputs and the output that `FeaturesSpec` describes; return `path`.

    Marks the columns whose texts are put in lower case, which the service does: the operator for it needs
    locales that not every machine has. Raises `UnsupportedModel`.
    """
    options = {id(estimator): {"zipmap": False}} if spec.task == FEATURES_TASK_CLASSIFIER else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of converters about the versions they know
            graph = to_onnx(
                estimator, initial_types=_inputs(spec.columns), options=options, target_opset=_OPSET
            )
    except Exception as error:  # converters raise whatever they meet
        first_line = " ".join(str(error).split())[:200]
        because = f"skl2onnx cannot convert it: {type(error).__name__}: {first_line}"
        raise UnsupportedModel(type(estimator).__name__, because=because) from error
    if _take_out_lower_case(graph.graph):
        for column in spec.columns:
            column.is_lowercased = column.kind == FEATURE_KIND_TEXT
    _keep_one_output(graph.graph, spec.task)
    onnx.save(graph, path)
    return path


def _inputs(columns: Sequence[FeatureColumn]) -> list[tuple[str, Any]]:
    kinds = {column.kind for column in columns}
    if len(kinds) == 1:
        tensor = FloatTensorType if kinds == {FEATURE_KIND_NUMBER} else StringTensorType
        return [(FEATURES, tensor([None, len(columns)]))]
    return [
        (
            column_input(number),
            (FloatTensorType if column.kind == FEATURE_KIND_NUMBER else StringTensorType)([None, 1]),
        )
        for number, column in enumerate(columns)
    ]


def _take_out_lower_case(graph: onnx.GraphProto) -> bool:
    """Let operators that change the case of texts do nothing; return whether one wanted lower case."""
    wants_lower = False
    for node in graph.node:
        if node.op_type != "StringNormalizer":
            continue
        for attribute in node.attribute:
            if attribute.name == "case_change_action":
                wants_lower |= attribute.s == _LOWER
                attribute.s = b"NONE"
            elif attribute.name == "locale":
                attribute.s = b"C"
        if not any(attribute.name == "locale" for attribute in node.attribute):
            node.attribute.append(onnx.helper.make_attribute("locale", "C"))
    return wants_lower


def _keep_one_output(graph: onnx.GraphProto, task: FeaturesTask.ValueType) -> None:
    """Leave the output that the service reads, under the service's name."""
    is_first = task != FEATURES_TASK_CLASSIFIER  # a classifier gives its label first, then probabilities
    kept = graph.output[0 if is_first else 1]
    name = CLUSTER if task == FEATURES_TASK_CLUSTERER else SCORES
    source = kept.name
    described = onnx.ValueInfoProto()
    described.CopyFrom(kept)
    described.name = name
    for node in graph.node:  # a name of the converter's own must not stand in the way
        for names in (node.input, node.output):
            names[:] = [f"{other}_inner" if other == name else other for other in names]
    source = f"{source}_inner" if source == name else source
    graph.node.append(onnx.helper.make_node("Identity", [source], [name]))
    del graph.output[:]
    graph.output.append(described)
