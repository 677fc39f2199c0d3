"""What a model of tables reads and gives, and whether a row is fit for it. Knows no wire and no graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from aimass_serving.errors import InvalidField

_LARGEST = float(np.finfo(np.float32).max)


class TableTask(StrEnum):
    """What a model gives for a row."""

    CLASSIFIER = "classifier"
    REGRESSOR = "regressor"
    CLUSTERER = "clusterer"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    name: str
    is_text: bool
    is_lowercased: bool = False
    """Whether texts are put in lower case before the graph reads them."""


@dataclass(frozen=True, slots=True)
class TableSpec:
    """What a model of tables reads and gives."""

    columns: Sequence[Column]
    task: TableTask
    labels: Sequence[str] = ()
    """Classifiers: in the order of the scores."""
    accepts_missing: bool = False
    """Whether NaN may stand for a missing number."""

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return [column.name for column in self.columns]

    def order_of(self, names: Sequence[str]) -> Sequence[int]:
        """Return, for each column of the model, its place among `names`; none stands for the model's order.

        Raises `InvalidField` for a column that the model does not know, and for one too many or too few.
        """
        if not names:
            return range(len(self.columns))
        known = self.names
        for place, name in enumerate(names):
            if name not in known:
                expected = f"one of {', '.join(known[:20])}" + (", ..." if len(known) > 20 else "")
                raise InvalidField(f"columns[{place}]", expected=expected, got=name)
            if name in names[:place]:
                raise InvalidField(f"columns[{place}]", expected="each column once", got=name)
        if missing := [name for name in known if name not in names]:
            expected = f"all {len(known)} columns, also {', '.join(missing[:20])}"
            raise InvalidField("columns", expected=expected, got=f"{len(names)} columns")
        return [list(names).index(name) for name in known]

    def check_row(self, cells: Sequence[float | str | None], order: Sequence[int], *, field: str) -> None:
        """Raise `InvalidField`, which names the row and the column, when a row is not fit for the model."""
        if len(cells) != len(self.columns):
            expected = f"{len(self.columns)} values, one for each column ({', '.join(self.names[:20])})"
            raise InvalidField(f"{field}.values", expected=expected, got=f"{len(cells)} values")
        for column, place in zip(self.columns, order, strict=True):
            self._check_cell(cells[place], column, field=f"{field}.values[{place}]")

    def _check_cell(self, cell: float | str | None, column: Column, *, field: str) -> None:
        where = f"in column {column.name!r}"
        if column.is_text:
            if not isinstance(cell, str):
                raise InvalidField(field, expected=f"a text {where}", got=cell)
            return
        if cell is None or isinstance(cell, str):
            raise InvalidField(field, expected=f"a number {where}", got=cell)
        if math.isnan(cell) and self.accepts_missing:
            return
        if not abs(cell) <= _LARGEST:  # NaN is not
            missing = " or NaN for a missing one" if self.accepts_missing else ""
            raise InvalidField(field, expected=f"a finite float32 number{missing} {where}", got=cell)
