"""Runs the graph of a model of tables on batches of rows. Must not know requests or queues."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from aimass_serving.session import Session
from numpy.typing import NDArray

from aimass_encoder.runner import Outputs
from aimass_encoder.tables.spec import Column, TableSpec, TableTask

FEATURES, SCORES, CLUSTER = "features", "scores", "cluster"


def column_input(number: int) -> str:
    """Return the name of a column's input in graphs of mixed tables."""
    return f"column_{number}"


@dataclass(frozen=True, slots=True, eq=False)
class TableRow:
    """One row, checked, in the order of the model's columns."""

    cells: tuple[float | str, ...]

    @property
    def num_tokens(self) -> int:
        """Rows of one model all cost the same."""
        return 1

    @property
    def identity(self) -> Hashable:
        """Equal for rows of the same cells."""
        return self.cells


@dataclass(frozen=True, slots=True)
class TableBatch:
    """Rows as the graph's inputs."""

    feeds: dict[str, NDArray[Any]]
    mask: NDArray[np.int64]  # [rows, 1], ones

    @property
    def shown(self) -> Outputs:
        """Heads see nothing but the graph's outputs."""
        return {}


class TableRunner:
    """The graph of a model of tables, ready to run. One run at a time."""

    def __init__(self, session: Session, spec: TableSpec) -> None:
        self._session = session
        self._spec = spec

    @property
    def execution_provider(self) -> str:
        """ONNX Runtime execution provider that runs the graph."""
        return self._session.execution_provider

    def lay_out(self, rows: Sequence[TableRow], *, length: int) -> TableBatch:
        """Return the rows as arrays: one of one kind, or one for each column."""
        mask = np.ones((len(rows), length), np.int64)
        return TableBatch(feeds_of([row.cells for row in rows], self._spec), mask)

    def run(self, batch: TableBatch) -> Outputs:
        """Run the graph once; the output is `scores`, float32 [rows, n]; of clusterers n is 1."""
        outputs = self._session.run(batch.feeds)
        values = outputs[CLUSTER if self._spec.task is TableTask.CLUSTERER else SCORES]
        return {SCORES: values.astype(np.float32).reshape(len(batch.mask), -1)}

    def run_each(self, batches: Sequence[TableBatch]) -> Sequence[Outputs]:
        """Run the graph once for each batch."""
        return [self.run(batch) for batch in batches]


def feeds_of(rows: Sequence[Sequence[float | str]], spec: TableSpec) -> dict[str, NDArray[Any]]:
    """Return the inputs of a graph for checked cells: one, or one for each column of a mixed table."""
    columns = [_array([row[number] for row in rows], column) for number, column in enumerate(spec.columns)]
    if len({column.is_text for column in spec.columns}) == 1:
        return {FEATURES: np.stack(columns, axis=1)}
    return {column_input(number): values[:, None] for number, values in enumerate(columns)}


def _array(cells: Sequence[float | str], column: Column) -> NDArray[Any]:
    if not column.is_text:
        return np.array(cells, np.float32)
    return np.array([str(cell).lower() if column.is_lowercased else cell for cell in cells], object)
