"""The bundle of a model of tables to an engine, checked. Must not know the wire."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from aimass.model.v1 import features_spec_pb2
from aimass_serving.bundle import Bundle
from aimass_serving.errors import BadBundle
from aimass_serving.service import LoadContext
from aimass_serving.session import Session

from aimass_encoder.config import EncoderConfig
from aimass_encoder.golden import check_golden
from aimass_encoder.tables.model import TableModel
from aimass_encoder.tables.runner import SCORES, TableBatch, TableRunner, feeds_of
from aimass_encoder.tables.spec import Column, TableSpec, TableTask

ROWS = "rows"
"""Golden array of the rows, as texts: `repr` of numbers, texts as they are."""
_TASKS: Mapping[features_spec_pb2.FeaturesTask.ValueType, TableTask] = {
    features_spec_pb2.FEATURES_TASK_CLASSIFIER: TableTask.CLASSIFIER,
    features_spec_pb2.FEATURES_TASK_REGRESSOR: TableTask.REGRESSOR,
    features_spec_pb2.FEATURES_TASK_CLUSTERER: TableTask.CLUSTERER,
}


def table_engine_on(session: Session, bundle: Bundle, context: LoadContext) -> TableModel:
    """Return an engine for tables, not started. Raises `BadBundle`."""
    spec = table_spec(bundle.manifest.features, bundle.ref)
    runner = TableRunner(session, spec)
    replay_golden_rows(runner, spec, bundle)
    config = context.config(EncoderConfig)
    return TableModel(runner, spec, model=bundle.manifest.name, config=config, permit=context.permit)


def table_spec(features: features_spec_pb2.FeaturesSpec, bundle: str) -> TableSpec:
    """Return what the manifest says of a table. Raises `BadBundle` where it says too little."""
    has_labels = bool(features.labels) or features.task != features_spec_pb2.FEATURES_TASK_CLASSIFIER
    if not features.columns or features.task not in _TASKS or not has_labels:
        raise BadBundle(bundle, detail="expected features with columns, a task, and labels for a classifier")
    columns = [
        Column(column.name, column.kind == features_spec_pb2.FEATURE_KIND_TEXT, column.is_lowercased)
        for column in features.columns
    ]
    return TableSpec(tuple(columns), _TASKS[features.task], tuple(features.labels), features.accepts_missing)


def replay_golden_rows(runner: TableRunner, spec: TableSpec, bundle: Bundle) -> None:
    """Run the rows that the export recorded. Raises `BadBundle` when the scores differ too much."""
    golden = bundle.golden()
    try:
        cells, expected, tolerance = golden[ROWS], golden[SCORES], float(golden["tolerance"])
    except KeyError as error:
        raise BadBundle(bundle.ref, detail=f"golden.npz has no array named {error}") from error
    rows = [
        [str(cell) if column.is_text else float(cell) for cell, column in zip(row, spec.columns, strict=True)]
        for row in cells
    ]
    batch = TableBatch(feeds_of(rows, spec), np.ones((len(rows), 1), np.int64))
    got = runner.run(batch)[SCORES]
    check_golden(bundle.ref, SCORES, got, expected, tolerance=tolerance)
