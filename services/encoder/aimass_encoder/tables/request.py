"""What a caller asks of a model of tables and what comes back. Construction is validation.

Knows no wire format and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from aimass_serving.errors import AimassError, InvalidField

from aimass_encoder.labels import LabelScore
from aimass_encoder.request import PhaseTimings
from aimass_encoder.tables.spec import TableTask

Cell: TypeAlias = float | str | None
"""A number, a text, or nothing at all."""


@dataclass(frozen=True, slots=True)
class TableRequest:
    """Rows of one call."""

    rows: Sequence[Sequence[Cell]]
    """At least one. A row that is bad by itself fails its own result, not the call."""
    columns: Sequence[str] = ()
    """Names of the columns in the order of the rows; none for the model's own order."""
    top_k: int | None = None
    """Classifiers: at most this many labels, at least 1. None: 1."""
    labels: Sequence[str] = ()
    """Classifiers: only these; empty for all."""
    deadline_s: float | None = None
    """On `time.monotonic`: past it, waiting rows are dropped and the call fails."""

    def __post_init__(self) -> None:
        """Refuse values outside their range, naming the field as the wire names it."""
        if not self.rows:
            raise InvalidField("rows", expected="at least one row", got="none")
        if self.top_k is not None and self.top_k < 1:
            raise InvalidField("options.top_k", expected="at least 1", got=self.top_k)


@dataclass(frozen=True, slots=True)
class RowAnswer:
    """What a model says of one row: one of the three."""

    labels: Sequence[LabelScore] = ()
    """Classifiers: best first."""
    values: Sequence[float] = ()
    """Regressors: one for each target."""
    cluster: int | None = None
    """Clusterers: from 0."""


@dataclass(frozen=True, slots=True)
class TableReply:
    """One result for each row of the request, in order."""

    results: Sequence[RowAnswer | AimassError]
    task: TableTask
    columns: Sequence[str]
    """The model's, in its own order."""
    timings: PhaseTimings
