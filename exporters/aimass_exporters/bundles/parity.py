"""Measurements against PyTorch, each with the bound it is held to, gathered into the manifest's parity
record.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import transformers
from aimass.model.v1.manifest_pb2 import ParityMeasure, ParityRecord

from aimass_exporters.errors import ParityFailed

_AT_MOST, _AT_LEAST = ParityMeasure.COMPARISON_AT_MOST, ParityMeasure.COMPARISON_AT_LEAST


@dataclass(slots=True)
class ParityReport:
    """What was measured so far. Owned by one export."""

    subject: str = ""
    """What is measured, where it is not the model itself: failures begin with it."""
    measures: list[ParityMeasure] = field(default_factory=list)

    def at_most(self, name: str, value: float, *, bound: float, num_samples: int) -> None:
        """Add a number that must not be above its bound."""
        self._add(name, value, bound, _AT_MOST, num_samples)

    def at_least(self, name: str, value: float, *, bound: float, num_samples: int) -> None:
        """Add a number that must not be below its bound."""
        self._add(name, value, bound, _AT_LEAST, num_samples)

    def _add(
        self,
        name: str,
        value: float,
        bound: float,
        comparison: ParityMeasure.Comparison.ValueType,
        num_samples: int,
    ) -> None:
        self.measures.append(
            ParityMeasure(name=name, value=value, bound=bound, comparison=comparison, num_samples=num_samples)
        )

    def record(self, *, reference: str | None = None) -> ParityRecord:
        """Return the manifest's record. Raises `ParityFailed` when a measure is out of bounds or is not a
        number. `reference` is what was measured against; None is PyTorch on the CPU.
        """
        failures = [self.subject + _shown(measure) for measure in self.measures if not _is_met(measure)]
        if failures or not self.measures:
            raise ParityFailed(failures=failures or ["nothing was measured"])
        torch_version = torch.__version__.split("+")[0]
        in_torch = f"transformers {transformers.__version__}, torch {torch_version}, fp32 on the CPU"
        return ParityRecord(reference=reference or in_torch, measures=self.measures)


def _is_met(measure: ParityMeasure) -> bool:
    if measure.comparison == _AT_MOST:
        return measure.value <= measure.bound
    return measure.value >= measure.bound


def _shown(measure: ParityMeasure) -> str:
    side = "at most" if measure.comparison == _AT_MOST else "at least"
    return f"{measure.name} is {measure.value:.3g}, expected {side} {measure.bound:.3g}"
