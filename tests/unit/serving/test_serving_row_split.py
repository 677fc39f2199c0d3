"""Batches whose rows run side by side: the same numbers, in order, and no error lost."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from aimass_serving.row_split import RowSplitSession, parts_of
from aimass_serving.testing import FakeSession
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


@given(num_rows=st.integers(0, 20), num_parts=st.integers(1, 6))
def test_parts_hold_every_row_once_and_none_is_empty(num_rows: int, num_parts: int) -> None:
    feeds = {"x": np.arange(num_rows), "y": np.arange(num_rows) * 2}
    parts = parts_of(feeds, num_parts)
    sizes = [len(part["x"]) for part in parts]
    assert len(parts) == max(1, min(num_parts, num_rows))
    assert max(sizes) - min(sizes) <= 1
    for name, array in feeds.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)


def test_the_parts_of_a_batch_run_at_the_same_time_and_come_back_in_order() -> None:
    both_running = threading.Barrier(2, timeout=10)

    def graph(feeds: Arrays) -> Arrays:
        both_running.wait()
        return {"y": feeds["x"] * 10}

    session = RowSplitSession(FakeSession(graph), num_parts=2)
    np.testing.assert_array_equal(session.run({"x": np.arange(5)})["y"], np.arange(5) * 10)


def test_a_single_row_runs_alone() -> None:
    inner = FakeSession(lambda feeds: {"y": feeds["x"] + 1})
    assert RowSplitSession(inner, num_parts=4).run({"x": np.array([3])})["y"] == [4]
    assert inner.num_runs == 1


@pytest.mark.parametrize("bad_row", [0, 3])
def test_a_part_that_fails_fails_the_run_when_all_parts_are_over(bad_row: int) -> None:
    finished = []

    def graph(feeds: Arrays) -> Arrays:
        if bad_row in feeds["x"]:
            raise ValueError("broken")
        finished.append(True)
        return {"y": feeds["x"]}

    session = RowSplitSession(FakeSession(graph), num_parts=2)
    with pytest.raises(ValueError, match="broken"):
        session.run({"x": np.arange(4)})
    assert finished == [True]
