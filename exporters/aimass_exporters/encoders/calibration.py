"""Fits a classifier's scores to how often they are right, on labelled texts that it was not trained on.

Half of the texts are fitted on, the other half measured on. Pure NumPy; knows no model and no file.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from aimass.model.v1.manifest_pb2 import Calibration, OperatingPoint
from aimass_encoder.labels import softmax
from numpy.typing import NDArray

NUM_BINS = 15
PRECISIONS = (0.8, 0.85, 0.9, 0.95, 0.98, 0.99)
MIN_TEXTS = 20
"""A precision counts as reached when at least so many texts reach its threshold."""
_TEMPERATURES = np.geomspace(0.2, 10, 400)

Logits = NDArray[np.float32]
Labels = NDArray[np.int64]


def calibrate(logits: Logits, labels: Labels) -> Calibration:
    """Return what was fitted and what it gained; `logits` is [texts, labels], `labels` [texts]."""
    fitted, measured = slice(0, None, 2), slice(1, None, 2)
    temperature = best_temperature(logits[fitted], labels[fitted])
    plain = _best(logits[measured], labels[measured], 1.0)
    calibrated = _best(logits[measured], labels[measured], temperature)
    return Calibration(
        temperature=temperature,
        points=operating_points(_best(logits[fitted], labels[fitted], temperature), calibrated),
        num_fitted=len(labels[fitted]),
        num_measured=len(labels[measured]),
        accuracy=float(calibrated[1].mean()),
        error_before=calibration_error(*plain),
        error_after=calibration_error(*calibrated),
    )


def best_temperature(logits: Logits, labels: Labels) -> float:
    """Return the divisor of the logits that makes the labels most likely (Guo et al., arXiv 1706.04599)."""
    rows = np.arange(len(labels))
    losses = [-np.log(softmax(logits / t)[rows, labels] + 1e-12).mean() for t in _TEMPERATURES]
    return float(_TEMPERATURES[int(np.argmin(losses))])


def calibration_error(scores: NDArray[np.float64], is_right: NDArray[np.bool_]) -> float:
    """Return the expected difference between a best label's score and how often it is right."""
    bins = np.minimum((scores * NUM_BINS).astype(int), NUM_BINS - 1)
    gaps = [
        (bins == i).mean() * abs(scores[bins == i].mean() - is_right[bins == i].mean())
        for i in np.unique(bins)
    ]
    return float(sum(gaps))


def operating_points(
    fitted: tuple[NDArray[np.float64], NDArray[np.bool_]],
    measured: tuple[NDArray[np.float64], NDArray[np.bool_]],
) -> Iterator[OperatingPoint]:
    """Yield the least score that reaches each precision on the fitted texts, and its worth on others."""
    scores, is_right = measured
    for precision in PRECISIONS:
        if (threshold := _least_score(*fitted, precision)) is None:
            return
        reached = scores >= threshold
        if not reached.any():
            return
        yield OperatingPoint(
            precision=precision,
            threshold=threshold,
            measured_precision=float(is_right[reached].mean()),
            coverage=float(reached.mean()),
        )


def _least_score(scores: NDArray[np.float64], is_right: NDArray[np.bool_], precision: float) -> float | None:
    order = np.argsort(-scores, kind="stable")
    share_right = np.cumsum(is_right[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero((share_right >= precision) & (np.arange(1, len(order) + 1) >= MIN_TEXTS))
    return float(scores[order][enough[-1]]) if len(enough) else None


def _best(
    logits: Logits, labels: Labels, temperature: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the score of each text's best label, and whether it is right."""
    scores = softmax(logits / temperature)
    return scores.max(axis=1), scores.argmax(axis=1) == labels
