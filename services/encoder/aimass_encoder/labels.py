"""Logits to scores, and scores to the labels that are asked for. Pure; knows no model and no text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from aimass_serving.errors import InvalidField
from numpy.typing import NDArray

Values = NDArray[np.float64]


class ProblemType(StrEnum):
    """How logits become scores."""

    SINGLE_LABEL = "single_label"
    """Exactly one label is right: softmax."""
    MULTI_LABEL = "multi_label"
    """Any number of labels is right: a sigmoid each."""
    REGRESSION = "regression"
    """Logits are the answer."""


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One label and what the model gives it."""

    label: str
    score: float
    """0 to 1, but for regression."""
    index: int
    """Place of the label among the model's."""


def softmax(logits: NDArray[np.floating]) -> Values:
    """Return probabilities over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    powers = np.exp(shifted)
    probabilities: Values = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def sigmoid(logits: NDArray[np.floating]) -> Values:
    """Return 1 / (1 + exp(-x)), without overflow."""
    values = logits.astype(np.float64)
    small = np.exp(-np.abs(values))
    return np.where(values >= 0, 1 / (1 + small), small / (1 + small))


def scores_of(logits: NDArray[np.floating], problem_type: ProblemType) -> Values:
    """Return scores [..., labels] of logits [..., labels]."""
    match problem_type:
        case ProblemType.SINGLE_LABEL:
            return softmax(logits)
        case ProblemType.MULTI_LABEL:
            return sigmoid(logits)
        case ProblemType.REGRESSION:
            return logits.astype(np.float64)


def check_labels(asked: Sequence[str], known: Sequence[str]) -> None:
    """Raise `InvalidField` for a label that the model does not have."""
    for i, label in enumerate(asked):
        if label not in known:
            names = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
            raise InvalidField(f"options.labels[{i}]", expected=f"one of {names or 'none'}", got=label)


def ranked(
    scores: Values,
    labels: Sequence[str],
    *,
    top_k: int | None,
    threshold: float | None,
    among: Collection[str] = (),
) -> Sequence[LabelScore]:
    """Return the labels by score, best first; of equal scores the first label comes first.

    At most `top_k`, at least `threshold`, and only those named in `among` unless it is empty.
    """
    order = np.argsort(-scores, kind="stable").tolist()
    chosen = [
        LabelScore(labels[i], float(scores[i]), i)
        for i in order
        if (not among or labels[i] in among) and (threshold is None or scores[i] >= threshold)
    ]
    return chosen[:top_k]
