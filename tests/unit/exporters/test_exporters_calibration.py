"""Calibration: what is fitted, what it gains, and the labelled texts it is fitted on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from aimass_encoder.labels import softmax
from aimass_exporters.encoders.calibration import (
    MIN_TEXTS,
    best_temperature,
    calibrate,
    calibration_error,
)
from aimass_exporters.encoders.labelled_measures import spans_of
from aimass_exporters.errors import InvalidCheckpoint
from aimass_exporters.sources.labelled import (
    LABELLED_FILE,
    LabelledText,
    LabelledWords,
    labelled_texts,
    labelled_words,
    write_labelled,
)
from numpy.typing import NDArray

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


def drawn(num_texts: int, *, sureness: float) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return logits and labels drawn by them; the logits are then `sureness` times what they should be."""
    rng = np.random.default_rng(5)
    logits = rng.normal(scale=1.5, size=(num_texts, 3))
    labels = np.array([rng.choice(3, p=p) for p in softmax(logits)])
    return (logits * sureness).astype(np.float32), labels


@pytest.mark.parametrize("sureness", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_what_made_scores_too_sure(sureness: float) -> None:
    assert best_temperature(*drawn(20_000, sureness=sureness)) == pytest.approx(sureness, rel=0.05)


def test_calibration_lowers_the_error_and_leaves_the_answers() -> None:
    logits, labels = drawn(4000, sureness=3.0)
    fitted = calibrate(logits, labels)
    assert fitted.error_before > 0.15
    assert fitted.error_after < 0.04
    assert fitted.accuracy == pytest.approx((logits[1::2].argmax(1) == labels[1::2]).mean())
    assert (fitted.num_fitted, fitted.num_measured) == (2000, 2000)


def test_each_threshold_is_the_least_score_that_reaches_its_precision() -> None:
    logits, labels = drawn(4000, sureness=1.0)
    fitted = calibrate(logits, labels)
    scores = softmax(logits[::2] / fitted.temperature)
    best, is_right = scores.max(1), scores.argmax(1) == labels[::2]
    assert len(fitted.points) >= 4
    for point in fitted.points:
        assert is_right[best >= point.threshold].mean() >= point.precision
        lower = sorted(s for s in best if s < point.threshold)
        assert all(is_right[best >= s].mean() < point.precision for s in lower)
        assert (best >= point.threshold).sum() >= MIN_TEXTS
        assert point.measured_precision == pytest.approx(point.precision, abs=0.06)
    thresholds = [point.threshold for point in fitted.points]
    assert thresholds == sorted(thresholds)


def test_the_error_is_the_mean_gap_between_being_sure_and_being_right() -> None:
    scores = np.array([0.9, 0.9, 0.6, 0.6])
    assert calibration_error(scores, np.array([True, False, True, True])) == pytest.approx(0.4)
    assert calibration_error(np.ones(3), np.ones(3, bool)) == 0


def test_labelled_texts_come_back_as_they_were_written(tmp_path: Path) -> None:
    assert labelled_texts(tmp_path) == []
    texts = [LabelledText("schön 🙂\nzwei Zeilen", "good"), LabelledText("", "bad")]
    write_labelled(tmp_path, texts)
    assert labelled_texts(tmp_path) == texts
    words = [LabelledWords(("東京", "is"), ("B-loc", "O"))]
    write_labelled(tmp_path, words)
    assert labelled_words(tmp_path) == words


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON a line"), ('{"text": "a"}', "line 1 .* has no text and label"), ("[]", "line 1")],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / LABELLED_FILE).write_text(content)
    with pytest.raises(InvalidCheckpoint, match=message):
        labelled_texts(tmp_path)


def test_entities_of_labelled_words_are_whole() -> None:
    tags = ["O", "B-a", "I-a", "I-b", "B-b", "O", "I-a"]
    assert list(spans_of(tags)) == [(1, 3, "a"), (3, 4, "b"), (4, 5, "b"), (6, 7, "a")]
