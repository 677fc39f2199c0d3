"""The fake behaves as the real session does."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from aimass_serving.testing import FakeSession
from numpy.typing import NDArray


def add_in_place(feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    total = feeds["past"].sum()
    feeds["past"][...] += feeds["step"]
    return {"total": total}


def test_fake_graph_updates_rows_of_a_buffer_in_place() -> None:
    session = FakeSession(add_in_place)
    buffer = session.allocate((4, 3), np.float32)
    total, step = np.zeros((), np.float32), np.ones((2, 3), np.float32)
    binding = session.bind()
    binding.bind_input("past", buffer.rows(1, 2))
    binding.bind_input("step", step)
    binding.bind_output("present", buffer.rows(1, 2))
    binding.bind_output("total", total)
    binding.run()
    step[:] = 5
    binding.run()
    read = session.bind()
    everything = np.zeros((4, 3), np.float32)
    read.bind_input("past", buffer.rows(0, 4))
    read.bind_input("step", np.zeros((4, 3), np.float32))
    read.bind_output("total", everything)
    read.run()
    assert total == 6
    assert everything[0, 0] == 36
    assert session.num_runs == 3


def test_fake_graph_results_are_copied_to_where_they_are_bound() -> None:
    session = FakeSession(lambda feeds: {"y": feeds["x"] * 2})
    x, y = np.array([1.0, 2.0], np.float32), np.zeros(2, np.float32)
    binding = session.bind()
    binding.bind_input("x", x)
    binding.bind_output("y", y)
    binding.run()
    np.testing.assert_array_equal(y, [2, 4])
    np.testing.assert_array_equal(session.run({"x": x})["y"], [2, 4])
