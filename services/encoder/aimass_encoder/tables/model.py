"""Rows in, answers out: checks rows, has batches computed, reads labels, numbers and clusters.

Must not know the wire.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
from aimass_serving.errors import AimassError, InvalidField
from numpy.typing import NDArray

from aimass_encoder.config import EncoderConfig
from aimass_encoder.head import RowHead
from aimass_encoder.labels import check_labels, ranked
from aimass_encoder.pipeline import BatchPipeline, EncodeTimes
from aimass_encoder.tables.request import Cell, RowAnswer, TableReply, TableRequest
from aimass_encoder.tables.runner import SCORES, TableRow, TableRunner
from aimass_encoder.tables.spec import TableSpec, TableTask
from aimass_encoder.task_engine import TaskEngine
from aimass_encoder.text_encoder import good, merged, phase_timings


class TableModel(TaskEngine):
    """One model of tables."""

    def __init__(
        self,
        runner: TableRunner,
        spec: TableSpec,
        *,
        model: str,
        config: EncoderConfig,
        permit: AbstractContextManager[None],
    ) -> None:
        pipeline = BatchPipeline(runner, config.table_limits, model=model, permit=permit)
        super().__init__(
            pipeline, execution_provider=runner.execution_provider, max_batch_items=config.max_table_rows
        )
        self.spec = spec
        self._head = RowHead(SCORES, model)

    async def answer(self, request: TableRequest) -> TableReply:
        """Return one result for each row, in order; a bad row has an error in its place.

        Raises `InvalidField` for columns or labels this model does not have or too many rows, `Overloaded`,
        `DeadlineExceeded`, `Draining`.
        """
        arrived_ns = time.time_ns()
        order = self._check(request)
        self.pipeline.check_admission(deadline_s=request.deadline_s)
        rows = [self._row(cells, order, f"rows[{i}]") for i, cells in enumerate(request.rows)]
        readings, times = await self._compute(good(rows), request.deadline_s)
        answers = [r if isinstance(r, AimassError) else self._answer(r, request) for r in readings]
        timings = phase_timings(arrived_ns, times, time.time_ns())
        return TableReply(merged(rows, answers), self.spec.task, self.spec.names, timings)

    def _check(self, request: TableRequest) -> Sequence[int]:
        if len(request.rows) > self._max_batch_items:
            expected = f"at most {self._max_batch_items} rows"
            raise InvalidField("rows", expected=expected, got=len(request.rows))
        check_labels(request.labels, self.spec.labels)
        return self.spec.order_of(request.columns)

    def _row(self, cells: Sequence[Cell], order: Sequence[int], field: str) -> TableRow | AimassError:
        try:
            self.spec.check_row(cells, order, field=field)
        except InvalidField as error:
            return error
        return TableRow(tuple(cell for cell in (cells[place] for place in order) if cell is not None))

    async def _compute(
        self, rows: Sequence[TableRow], deadline_s: float | None
    ) -> tuple[Sequence[NDArray[np.float32] | AimassError], EncodeTimes]:
        if not rows:
            return [], EncodeTimes.none()
        return await self.pipeline.run(rows, self._head, deadline_s=deadline_s)

    def _answer(self, scores: NDArray[np.float32], request: TableRequest) -> RowAnswer:
        match self.spec.task:
            case TableTask.CLUSTERER:
                return RowAnswer(cluster=int(scores[0]))
            case TableTask.REGRESSOR:
                return RowAnswer(values=scores.tolist())
            case TableTask.CLASSIFIER:
                top_k = request.top_k or (len(request.labels) or 1)
                probabilities = scores.astype(np.float64)
                return RowAnswer(
                    labels=ranked(
                        probabilities, self.spec.labels, top_k=top_k, threshold=None, among=request.labels
                    )
                )
