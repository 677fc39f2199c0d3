"""Batches that run side by side: each once, in order, and no error lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from aimass_serving.lanes import LaneSession
from aimass_serving.testing import FakeSession
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


@given(sizes=st.lists(st.integers(0, 5), max_size=12), num_lanes=st.integers(1, 5))
def test_every_batch_runs_once_and_comes_back_in_its_place(sizes: list[int], num_lanes: int) -> None:
    inner = FakeSession(lambda feeds: {"y": feeds["x"] * 10})
    batches = [{"x": np.full(size, number)} for number, size in enumerate(sizes)]
    results = LaneSession(inner, num_lanes=num_lanes).run_each(batches)
    assert [r["y"].tolist() for r in results] == [[number * 10] * size for number, size in enumerate(sizes)]
    assert inner.num_runs == len(sizes)


def test_batches_run_at_the_same_time() -> None:
    both_running = threading.Barrier(2, timeout=10)

    def graph(feeds: Arrays) -> Arrays:
        both_running.wait()
        return feeds

    LaneSession(FakeSession(graph), num_lanes=2).run_each([{"x": np.ones(1)}, {"x": np.ones(1)}])


def test_the_largest_begins_first_and_no_lane_idles_while_a_batch_waits() -> None:
    begun: list[int] = []

    def graph(feeds: Arrays) -> Arrays:
        begun.append(len(feeds["x"]))
        time.sleep(0.01 * len(feeds["x"]))
        return feeds

    LaneSession(FakeSession(graph), num_lanes=2).run_each([{"x": np.ones(n)} for n in (2, 20, 4, 3)])
    assert begun == [20, 4, 3, 2]  # the other lane does all the small ones


def test_a_single_batch_runs_in_one_lane() -> None:
    inner = FakeSession(lambda feeds: {"y": feeds["x"] + 1})
    assert LaneSession(inner, num_lanes=4).run({"x": np.array([3])})["y"] == [4]
    assert inner.num_runs == 1


@pytest.mark.parametrize("bad", [0, 1])
def test_a_batch_that_fails_fails_the_run_when_every_lane_is_free(bad: int) -> None:
    finished = []
    both_running = threading.Barrier(2, timeout=10)

    def graph(feeds: Arrays) -> Arrays:
        both_running.wait()
        if bad in feeds["x"]:
            raise ValueError("broken")
        time.sleep(0.05)
        finished.append(True)
        return feeds

    session = LaneSession(FakeSession(graph), num_lanes=2)
    with pytest.raises(ValueError, match="broken"):
        session.run_each([{"x": np.array([0])}, {"x": np.array([1])}])
    assert finished == [True]
