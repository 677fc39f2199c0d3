"""Logits to scores to labels: pure functions."""

from __future__ import annotations

import numpy as np
from aimass_encoder.labels import ProblemType, ranked, scores_of, sigmoid, softmax
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

LOGITS = hnp.arrays(np.float32, st.integers(1, 8), elements=st.floats(-1e4, 1e4, width=32))
LABELS = [f"label {i}" for i in range(8)]


@given(LOGITS)
def test_single_label_scores_add_up_to_one_and_keep_the_order(logits: NDArray[np.float32]) -> None:
    scores = softmax(logits)
    assert abs(scores.sum() - 1) < 1e-9
    assert (np.diff(scores[np.argsort(logits, kind="stable")]) >= 0).all()


@given(LOGITS)
def test_multi_label_scores_are_between_zero_and_one_and_symmetric(logits: NDArray[np.float32]) -> None:
    scores = sigmoid(logits)
    assert ((scores >= 0) & (scores <= 1)).all()
    np.testing.assert_allclose(scores + sigmoid(-logits), 1)


@given(LOGITS, st.one_of(st.none(), st.integers(1, 8)), st.one_of(st.none(), st.floats(0, 1)))
def test_ranked_labels_are_the_best_that_reach_the_threshold(
    logits: NDArray[np.float32], top_k: int | None, threshold: float | None
) -> None:
    scores = scores_of(logits, ProblemType.SINGLE_LABEL)
    labels = ranked(scores, LABELS, top_k=top_k, threshold=threshold)
    reached = sorted((s for s in scores if threshold is None or s >= threshold), reverse=True)
    assert [label.score for label in labels] == reached[:top_k]
    assert all(scores[label.index] == label.score for label in labels)
    assert all(LABELS[label.index] == label.label for label in labels)


def test_regression_gives_logits_and_only_the_asked_for_labels_are_ranked() -> None:
    scores = scores_of(np.array([-3.0, 7.5, 9.0], np.float32), ProblemType.REGRESSION)
    (best, other) = ranked(scores, LABELS, top_k=None, threshold=None, among=("label 0", "label 1"))
    assert (best.label, best.score) == ("label 1", 7.5)
    assert (other.label, other.score) == ("label 0", -3.0)
