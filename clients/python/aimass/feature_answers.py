"""What a model of tables is asked and says of rows, as plain values. Knows no call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from aimass.classification.v1 import classification_service_pb2 as pb
from aimass.classification.v1 import features_pb2
from aimass.classifications import Answers, LabelScore
from aimass.common.v1 import usage_pb2
from aimass.embeddings import item_error_of
from aimass.usage import timings_of, usage_of
from aimass.wire import enum_word, set_fields

Cell: TypeAlias = float | str
"""What stands in one column of a row."""


class EstimatorKind(StrEnum):
    """What a model of tables gives for a row."""

    UNSPECIFIED = "unspecified"
    CLASSIFIER = "classifier"
    REGRESSOR = "regressor"
    CLUSTERER = "clusterer"


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureOptions:
    """Which labels to return, of classifiers. What is None takes the server's default."""

    top_k: int | None = None
    """At most this many, best first."""
    labels: Sequence[str] = ()
    """Only these of the model's labels; empty for all."""

    def message(self) -> pb.ClassifyFeaturesOptions:
        """Return the options as a message; raise `InvalidRequest` when a value fits no field."""
        options_pb = pb.ClassifyFeaturesOptions()
        set_fields(options_pb, self, ("top_k", "labels"), path="options.")
        return options_pb


@dataclass(frozen=True, slots=True)
class FeatureAnswer:
    """What a model says of one row: one of the three."""

    labels: Sequence[LabelScore]
    """Classifiers: best first, with probabilities."""
    values: Sequence[float]
    """Regressors: one number for each target."""
    cluster: int | None
    """Clusterers: from 0."""


@dataclass(frozen=True, slots=True)
class FeatureAnswers(Answers[FeatureAnswer]):
    """What a model says of the rows of one call, in their order."""

    kind: EstimatorKind
    columns: Sequence[str]
    """The model's columns in its own order."""


def feature_row(cells: Sequence[Cell]) -> features_pb2.FeatureRow:
    """Return a row as it travels."""
    return features_pb2.FeatureRow(values=[_value(cell) for cell in cells])


def _value(cell: Cell) -> features_pb2.FeatureValue:
    if isinstance(cell, str):
        return features_pb2.FeatureValue(text=cell)
    return features_pb2.FeatureValue(number=cell)


def feature_answers_of(response_pb: pb.ClassifyFeaturesResponse) -> FeatureAnswers:
    """Return the message as a value."""
    return FeatureAnswers(
        results=[
            item_error_of(r.error) if r.HasField("error") else _answer_of(r.answer)
            for r in response_pb.results
        ],
        model=response_pb.model,
        model_version=response_pb.model_version,
        usage=usage_of(usage_pb2.Usage()),
        timings=timings_of(response_pb.timings),
        kind=EstimatorKind(enum_word(features_pb2.EstimatorKind, "ESTIMATOR_KIND_", response_pb.kind)),
        columns=tuple(response_pb.columns),
    )


def _answer_of(answer_pb: pb.FeatureAnswer) -> FeatureAnswer:
    return FeatureAnswer(
        labels=[LabelScore(s.label, s.score, s.index) for s in answer_pb.labels],
        values=tuple(answer_pb.values),
        cluster=answer_pb.cluster if answer_pb.HasField("cluster") else None,
    )
