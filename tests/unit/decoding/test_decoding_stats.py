"""Percentiles of the histogram."""

from __future__ import annotations

import numpy as np
from aimass_decoding.stats import Histogram
from hypothesis import given
from hypothesis import strategies as st


def test_an_empty_histogram_is_all_zero() -> None:
    assert Histogram().summary() == {"count": 0, "p50": 0, "p95": 0, "max": 0}


@given(st.lists(st.floats(0.2, 50_000), min_size=1))
def test_percentiles_are_bounds_within_a_factor_of_the_square_root_of_two(durations: list[float]) -> None:
    histogram = Histogram()
    for duration in durations:
        histogram.record(duration)
    for share in (0.5, 0.95):
        exact = float(np.quantile(durations, share, method="inverted_cdf"))
        assert exact * 0.999 <= histogram.percentile(share) <= exact * 1.4143
    assert histogram.summary()["max"] == max(durations)
    assert histogram.summary()["count"] == len(durations)


def test_durations_beyond_the_last_bucket_are_kept_by_their_maximum() -> None:
    histogram = Histogram()
    histogram.record(1e6)
    assert histogram.percentile(0.5) == 1e6
