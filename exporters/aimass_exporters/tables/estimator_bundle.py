"""A fitted scikit-learn estimator into a verified bundle: from Python, where the caller made the object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from aimass.model.v1.features_spec_pb2 import (
    FEATURE_KIND_NUMBER,
    FEATURE_KIND_TEXT,
    FEATURES_TASK_CLASSIFIER,
    FeatureColumn,
    FeaturesSpec,
)
from aimass.model.v1.manifest_pb2 import (
    PRECISION_FP32,
    TASK_FEATURE_CLASSIFICATION,
    ModelManifest,
    ParityRecord,
)
from aimass_encoder.tables.loader import ROWS, table_spec
from aimass_encoder.tables.runner import SCORES, TableRow, TableRunner
from aimass_serving.session import Device, SessionConfig, open_session
from numpy.typing import ArrayLike, NDArray

from aimass_exporters.bundles.draft import bundle_name, draft_folder, publish
from aimass_exporters.bundles.manifest_writer import SCHEMA_VERSION, describe_graph, toolchain
from aimass_exporters.bundles.parity import ParityReport
from aimass_exporters.errors import InvalidExportOption
from aimass_exporters.tables.estimator_graph import kind_of, write_estimator_graph

GRAPH_FILE, GOLDEN_FILE = "encoder.onnx", "golden.npz"
MIN_ROWS = 10
_MAX_DIFFERENCE = 1e-4
"""Of probabilities, and of numbers in standard deviations of the predictions: the graph computes in float32,
scikit-learn in float64."""
_MIN_SHARE = 0.99
"""Rows within that, and of equal answers: a number next to a tree's threshold may fall to its other side."""
_MAX_ACCURACY_LOSS = 0.005
_NUM_GOLDEN = 16


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Rows on which graph and estimator are compared."""

    rows: Sequence[Sequence[float | str]]
    columns: Sequence[str]
    targets: Sequence[Any] | None
    """The right answers, where known."""


def export_estimator(
    estimator: Any,
    rows: ArrayLike,
    *,
    name: str,
    store: Path,
    columns: Sequence[str] | None = None,
    targets: Sequence[Any] | None = None,
    licence: str = "unknown",
) -> Path:
    """Export a fitted estimator into the store; return the folder of its bundle, a new version of `name`.

    `rows` are at least 10 rows of features, as the estimator takes them: numbers, texts (one text a row may
    stand by itself), or both. The graph must agree with the estimator on them; NaN among them makes the
    service take missing numbers. With `targets`, the right answers, accuracy is measured too. Without
    `columns` the estimator's own names are taken, or `x0`, `x1`, ... Raises an `ExportError`, and then has
    written nothing.
    """
    evaluation = _evaluation(estimator, np.asarray(rows), columns, targets)
    with draft_folder(store) as draft:
        described = ModelManifest(
            schema_version=SCHEMA_VERSION,
            name=bundle_name(name),
            task=TASK_FEATURE_CLASSIFICATION,
            family=type(estimator).__name__,
            precision=PRECISION_FP32,
            licence=licence,
            source=type(estimator).__name__,
            toolchain={**toolchain(), **{tool: version(tool) for tool in ("scikit-learn", "skl2onnx")}},
            features=_features(estimator, evaluation),
        )
        described.exported_at.GetCurrentTime()
        graph = write_estimator_graph(estimator, described.features, draft / GRAPH_FILE)
        described.graphs.append(describe_graph("encoder", graph))
        described.parity.CopyFrom(_measure(estimator, described.features, evaluation, draft))
        return publish(draft, described, store)


def _evaluation(
    estimator: Any, rows: NDArray[Any], columns: Sequence[str] | None, targets: Sequence[Any] | None
) -> Evaluation:
    table = rows[:, None] if rows.ndim == 1 else rows
    if table.ndim != 2 or len(table) < MIN_ROWS:
        raise InvalidExportOption("rows", expected=f"a table of at least {MIN_ROWS} rows", got=rows.shape)
    if targets is not None and len(targets) != len(table):
        raise InvalidExportOption("targets", expected=f"{len(table)}, one for each row", got=len(targets))
    own = getattr(estimator, "feature_names_in_", None)
    names = columns or (own if own is not None else [f"x{i}" for i in range(table.shape[1])])
    if len(names) != table.shape[1] or len(set(names)) != len(names):
        expected = f"{table.shape[1]} different names, one for each column"
        raise InvalidExportOption("columns", expected=expected, got=list(names))
    return Evaluation(table.tolist(), [str(name) for name in names], targets)


def _features(estimator: Any, evaluation: Evaluation) -> FeaturesSpec:
    kind = kind_of(estimator)
    by_column = list(zip(*evaluation.rows, strict=True))
    spec = FeaturesSpec(task=kind.task, labels=kind.labels)
    for name, cells in zip(evaluation.columns, by_column, strict=True):
        texts = {isinstance(cell, str) for cell in cells}
        if len(texts) > 1:
            raise InvalidExportOption("rows", expected=f"numbers or texts in column {name!r}", got="both")
        spec.columns.append(
            FeatureColumn(name=name, kind=FEATURE_KIND_TEXT if texts == {True} else FEATURE_KIND_NUMBER)
        )
    spec.accepts_missing = any(cell != cell for row in evaluation.rows for cell in row)
    return spec


def _measure(estimator: Any, features: FeaturesSpec, evaluation: Evaluation, draft: Path) -> ParityRecord:
    """Compare graph and estimator on the rows; write the golden rows."""
    spec = table_spec(features, type(estimator).__name__)
    config = SessionConfig(device=Device.CPU, num_threads=1)
    runner = TableRunner(open_session(draft / GRAPH_FILE, config), spec)
    rows = [TableRow(tuple(row)) for row in evaluation.rows]
    got = runner.run(runner.lay_out(rows, length=1))[SCORES].astype(np.float64)  # [rows, n]
    expected = _reference(estimator, features, evaluation)
    report, num_rows = ParityReport(), len(rows)
    scale = 1.0 if features.task == FEATURES_TASK_CLASSIFIER else max(float(expected.std()), 1e-9)
    near = (
        np.abs(got - expected).max(axis=1) <= _MAX_DIFFERENCE * scale if got.shape == expected.shape else []
    )
    share = float(np.mean(near)) if len(near) else 0.0
    report.at_least(f"share_within_{_MAX_DIFFERENCE:g}", share, bound=_MIN_SHARE, num_samples=num_rows)
    if features.task == FEATURES_TASK_CLASSIFIER and got.shape == expected.shape:
        same = float((got.argmax(axis=1) == expected.argmax(axis=1)).mean())
        report.at_least("label_agreement", same, bound=_MIN_SHARE, num_samples=num_rows)
        _measure_accuracy(got, expected, features, evaluation, report)
    golden = {
        ROWS: np.array([[str(cell) for cell in row] for row in evaluation.rows[:_NUM_GOLDEN]]),
        SCORES: got[:_NUM_GOLDEN].astype(np.float32),
    }
    tolerance = np.array(10 * _MAX_DIFFERENCE * scale)
    np.savez(draft / GOLDEN_FILE, allow_pickle=False, **golden, tolerance=tolerance)
    return report.record(reference=f"scikit-learn {version('scikit-learn')}, float64 on the CPU")


def _reference(estimator: Any, features: FeaturesSpec, evaluation: Evaluation) -> NDArray[np.float64]:
    """Return what scikit-learn gives, [rows, n]."""
    has_text = any(column.kind == FEATURE_KIND_TEXT for column in features.columns)
    table = np.array(evaluation.rows, object if has_text else np.float64)
    is_text_only = has_text and len(features.columns) == 1
    given = table[:, 0] if is_text_only else table
    answers = (
        estimator.predict_proba(given)
        if features.task == FEATURES_TASK_CLASSIFIER
        else estimator.predict(given)
    )
    return np.asarray(answers, np.float64).reshape(len(table), -1)


def _measure_accuracy(
    got: NDArray[np.float64],
    expected: NDArray[np.float64],
    features: FeaturesSpec,
    evaluation: Evaluation,
    report: ParityReport,
) -> None:
    if evaluation.targets is None:
        return
    labels, targets = np.array(features.labels), np.array([str(target) for target in evaluation.targets])
    ours, theirs = (float((labels[scores.argmax(axis=1)] == targets).mean()) for scores in (got, expected))
    bound = theirs - _MAX_ACCURACY_LOSS
    report.at_least("accuracy", ours, bound=bound, num_samples=len(targets))
