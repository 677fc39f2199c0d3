"""One graph at several numbers of threads behaves as one session, and takes the one that is fastest."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from aimass.model.v1.manifest_pb2 import PRECISION_FP32, PRECISION_INT8, Precision
from aimass_serving import adaptive_session
from aimass_serving.adaptive_session import (
    AdaptiveSession,
    as_one,
    each_variant,
    kind_of,
    open_adaptive_session,
    open_lane_session,
    thread_counts,
    thread_use,
)
from aimass_serving.session import Device, SessionConfig, TensorInfo, open_session, open_thread_variants
from aimass_serving.testing import FakeSession, host_array
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CPU = SessionConfig(device=Device.CPU)


class Variants:
    """Two fake variants that add one to `x` in place; a fake clock passes while they run."""

    def __init__(self, *, seconds: tuple[float, float]) -> None:
        self.seconds = list(seconds)
        self.now_s = 0.0
        self.session = AdaptiveSession({2: self._variant(0), 1: self._variant(1)}, clock=lambda: self.now_s)

    def _variant(self, index: int) -> FakeSession:
        def graph(feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            self.now_s += self.seconds[index]
            return {"y": feeds["x"] + 1}

        info = TensorInfo("x", np.dtype(np.float32), ("rows", 2))
        return FakeSession(graph, inputs=[info])


def test_the_faster_variant_takes_over_and_back() -> None:
    variants = Variants(seconds=(0.01, 0.02))
    binding = variants.session.bind()
    memory = variants.session.allocate((4, 2), np.float32)
    binding.bind_input("x", memory.rows(1, 2))
    binding.bind_output("y", memory.rows(1, 2))
    for _ in range(200):
        binding.run()
    quiet = variants.session.thread_use
    variants.seconds = [0.04, 0.02]
    for _ in range(200):
        binding.run()
    busy = variants.session.thread_use
    assert quiet.num_runs[2] > 180
    assert quiet.num_changes == 0
    assert busy.num_runs[1] > 180
    assert busy.num_changes == 1
    values = host_array(memory.rows(0, 4))
    assert (values[1:3] == 400).all(), "whichever variant ran, it worked on the same memory"
    assert (values[[0, 3]] == 0).all()


def test_runs_on_host_arrays_choose_too() -> None:
    variants = Variants(seconds=(0.02, 0.01))
    for _ in range(200):
        result = variants.session.run({"x": np.zeros((1, 2), np.float32)})
    assert (result["y"] == 1).all()
    assert variants.session.thread_use.num_runs[1] > 180


def test_kinds_are_exact_where_shapes_are_small() -> None:
    kinds = [kind_of((rows, 1)) for rows in (1, 2, 3, 4, 5, 7, 10, 13)]
    assert len(set(kinds)) == len(kinds)
    assert kind_of((1, 120)) == kind_of((1, 128)) != kind_of((1, 64))


def test_thread_counts_are_all_cores_or_half_of_them() -> None:
    assert thread_counts(CPU, num_cores=8) == (8, 4)
    assert thread_counts(CPU, num_cores=2) == (2, 1)
    assert thread_counts(CPU, num_cores=1) == (1,)
    assert thread_counts(SessionConfig(device=Device.CPU, num_threads=3), num_cores=8) == (3,)
    assert thread_counts(SessionConfig(device=Device.CPU, adapt_threads=False), num_cores=8) == (8,)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """`y = x @ weights`, the weights 64 by 64 in a file of their own."""
    weights = np.random.default_rng(2).normal(size=(64, 64)).astype(np.float32)
    body = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weights"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 64])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = tmp_path / "product.onnx"
    onnx.save(model, path, save_as_external_data=True, location="product.onnx.data", size_threshold=0)
    return path


def test_variants_with_shared_weights_give_the_numbers_of_the_graph(graph: Path) -> None:
    x = np.random.default_rng(3).normal(size=(5, 64)).astype(np.float32)
    expected = open_session(graph, CPU).run({"x": x})["y"]
    for session in open_thread_variants(graph, CPU, [2, 1]):
        np.testing.assert_array_equal(session.run({"x": x})["y"], expected)


def mapped_graphs() -> set[tuple[str, bool]]:
    """Return the packed graphs that this process maps: inode, and whether the file is deleted."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {(line.split()[4], line.endswith("(deleted)")) for line in lines if "aimass-graph-" in line}


def test_weights_of_several_variants_are_mapped_from_one_file(graph: Path) -> None:
    before = mapped_graphs()
    sessions = open_thread_variants(graph, CPU, [2, 1])
    mapped = mapped_graphs() - before
    assert len(sessions) == 2
    assert len({inode for inode, _ in mapped}) == 1, "one file, by its inode"
    assert all(is_deleted for _, is_deleted in mapped), "nothing stays behind in the folder"


def test_without_room_for_the_weights_the_threads_stay_fixed(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    monkeypatch.setattr(adaptive_session, "usable_cores", lambda: 2)
    with caplog.at_level(logging.WARNING):
        session = open_adaptive_session(graph, CPU, precision=PRECISION_FP32)
    assert thread_use(session) is None
    assert "the number of threads stays 2" in caplog.text
    assert session.run({"x": np.zeros((1, 64), np.float32)})["y"].shape == (1, 64)


def test_with_two_cores_the_session_adapts(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptive_session, "usable_cores", lambda: 2)
    session = open_adaptive_session(graph, CPU, precision=PRECISION_FP32)
    session.run({"x": np.zeros((1, 64), np.float32)})
    use = thread_use(session)
    assert use is not None
    assert use.num_runs == {2: 1, 1: 0}


@pytest.mark.parametrize(("precision", "is_shared"), [(PRECISION_FP32, True), (PRECISION_INT8, False)])
def test_integer_weights_are_packed_by_each_variant_for_itself(
    graph: Path, precision: Precision.ValueType, is_shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptive_session, "usable_cores", lambda: 2)
    before = mapped_graphs()
    session = open_adaptive_session(graph, CPU, precision=precision)
    assert thread_use(session) is not None
    assert bool(mapped_graphs() - before) == is_shared


def test_every_variant_can_be_checked_and_warmed_up_before_one_is_chosen() -> None:
    variants = Variants(seconds=(0.01, 0.02))
    used_s = []
    for _ in each_variant(variants.session):
        before_s = variants.now_s
        variants.session.run({"x": np.zeros((1, 2), np.float32)})
        used_s.append(round(variants.now_s - before_s, 3))
    assert used_s == [0.01, 0.02]
    assert variants.session.thread_use.num_runs == {2: 0, 1: 0}, "warming up teaches nothing"
    variants.session.run({"x": np.zeros((1, 2), np.float32)})
    assert variants.session.thread_use.num_runs == {2: 1, 1: 0}


def test_a_session_without_variants_is_checked_once(graph: Path) -> None:
    assert len(list(each_variant(open_session(graph, CPU)))) == 1


def test_batches_side_by_side_give_the_numbers_of_the_graph(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptive_session, "usable_cores", lambda: 2)
    batches = [np.random.default_rng(n).normal(size=(n, 64)).astype(np.float32) for n in (5, 1, 3)]
    expected = [open_session(graph, CPU).run({"x": x})["y"] for x in batches]
    session = open_lane_session(graph, CPU)
    results = [session.run_each([{"x": x} for x in batches]) for _ in each_variant(session)]
    assert len(results) == 2
    for result in results:
        for values, numbers in zip(result, expected, strict=True):
            np.testing.assert_allclose(values["y"], numbers, atol=1e-6)


def test_batches_that_run_together_are_one_kind_by_all_their_rows_and_the_longest() -> None:
    assert as_one([(3, 16), (2, 20)]) == (5, 20)
    assert as_one([(8,), (1,)]) == (9,)
    assert as_one([(), ()]) == ()


def test_there_are_no_lanes_where_the_number_of_threads_is_given(graph: Path) -> None:
    session = open_lane_session(graph, SessionConfig(device=Device.CPU, num_threads=2))
    assert thread_use(session) is None
