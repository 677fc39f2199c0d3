"""A parity record exists only when every measure is within its bound."""

from __future__ import annotations

import math

import pytest
from aimass_exporters.bundles.parity import ParityReport
from aimass_exporters.errors import ParityFailed


def test_measures_within_their_bounds_make_a_record() -> None:
    report = ParityReport()
    report.at_most("difference", 0.5, bound=0.5, num_samples=3)
    report.at_least("agreement", 0.9, bound=0.9, num_samples=4)
    record = report.record()
    assert [(m.name, m.value, m.num_samples) for m in record.measures] == [
        ("difference", 0.5, 3),
        ("agreement", 0.9, 4),
    ]
    assert "transformers" in record.reference


def test_each_measure_out_of_bounds_is_named_with_its_bound() -> None:
    report = ParityReport()
    report.at_most("difference", 0.6, bound=0.5, num_samples=1)
    report.at_least("agreement", 0.8, bound=0.9, num_samples=1)
    with pytest.raises(
        ParityFailed, match=r"difference is 0\.6, expected at most 0\.5; agreement is 0\.8.*at least 0\.9"
    ):
        report.record()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_measure_that_is_no_number_fails(value: float) -> None:
    report = ParityReport()
    report.at_most("difference", value, bound=1.0, num_samples=1)
    with pytest.raises(ParityFailed):
        report.record()


def test_nothing_measured_is_no_proof() -> None:
    with pytest.raises(ParityFailed, match="nothing was measured"):
        ParityReport().record()
