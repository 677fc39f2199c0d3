"""The only code that talks to ONNX Runtime, on tiny graphs."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from aimass_serving.errors import DeviceUnavailable
from aimass_serving.session import (
    _COPY_GRAPH,
    CPU_PROVIDER,
    Device,
    Session,
    SessionConfig,
    open_session,
    resolve_device,
)
from aimass_serving.testing import host_array
from onnx import TensorProto, helper


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """`present = past + step`, as a decoder writes its cache; `total` is the sum of `present`."""
    shape: list[str | int | None] = ["rows", 3]
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["past", "step"], ["present"]),
            helper.make_node("ReduceSum", ["present"], ["total"], keepdims=0),
        ],
        "cache",
        [
            helper.make_tensor_value_info("past", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("step", TensorProto.FLOAT, shape),
        ],
        [
            helper.make_tensor_value_info("total", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("present", TensorProto.FLOAT, shape),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "cache.onnx")
    return open_session(tmp_path / "cache.onnx", SessionConfig(device=Device.CPU, num_threads=1))


def test_signature_is_the_graphs(session: Session) -> None:
    assert [(i.name, i.dtype, i.shape) for i in session.inputs] == [
        ("past", np.dtype(np.float32), ("rows", 3)),
        ("step", np.dtype(np.float32), ("rows", 3)),
    ]
    assert [o.name for o in session.outputs] == ["total", "present"]
    assert session.execution_provider == CPU_PROVIDER


def test_run_takes_and_gives_host_arrays(session: Session) -> None:
    ones = np.ones((2, 3), np.float32)
    results = session.run({"past": ones, "step": 2 * ones})
    assert results["total"] == 18
    np.testing.assert_array_equal(results["present"], 3 * ones)


def test_rows_of_a_buffer_are_updated_in_place(session: Session) -> None:
    buffer = session.allocate((4, 3), np.float32)
    whole = buffer.value.numpy()
    assert whole.ctypes.data == buffer.value.data_ptr()
    whole[:] = np.arange(12, dtype=np.float32).reshape(4, 3)
    before = whole.copy()
    step, total = np.full((2, 3), 100, np.float32), np.zeros((), np.float32)
    binding = session.bind()
    binding.bind_input("past", buffer.rows(1, 2))
    binding.bind_input("step", step)
    binding.bind_output("present", buffer.rows(1, 2))
    binding.bind_output("total", total)
    binding.run()
    np.testing.assert_array_equal(whole[1:3], before[1:3] + 100)
    np.testing.assert_array_equal(whole[[0, 3]], before[[0, 3]])
    assert total == whole[1:3].sum() == 633


def test_bound_host_input_is_read_at_each_run(session: Session) -> None:
    buffer = session.allocate((1, 3), np.float32)
    buffer.value.numpy()[:] = 0
    step, total = np.ones((1, 3), np.float32), np.zeros((), np.float32)
    binding = session.bind()
    binding.bind_input("past", buffer.rows(0, 1))
    binding.bind_input("step", step)
    binding.bind_output("present", buffer.rows(0, 1))
    binding.bind_output("total", total)
    binding.run()
    step[:] = 10
    binding.run()
    np.testing.assert_array_equal(buffer.value.numpy(), [[11, 11, 11]])


def test_binding_keeps_the_host_arrays_it_was_given(session: Session) -> None:
    buffer = session.allocate((1, 3), np.float32)
    buffer.value.numpy()[:] = 0
    binding = session.bind()
    binding.bind_input("past", buffer.rows(0, 1))
    binding.bind_input("step", np.full((1, 3), 7, np.float32))
    binding.bind_output("present", buffer.rows(0, 1))
    binding.bind_output("total", np.zeros((), np.float32))
    _ = [np.full((1, 3), 9, np.float32) for _ in range(100)]
    binding.run()
    np.testing.assert_array_equal(buffer.value.numpy(), [[7, 7, 7]])


def test_rows_outside_the_buffer_are_refused(session: Session) -> None:
    buffer = session.allocate((4, 3), np.float32)
    assert buffer.rows(4, 0).shape == (0, 3)
    for start, count in [(-1, 1), (0, 5), (4, 1), (2, -1)]:
        with pytest.raises(IndexError):
            buffer.rows(start, count)


def test_array_that_is_not_contiguous_cannot_be_bound(session: Session) -> None:
    strided = np.zeros((3, 2), np.float32).T
    binding = session.bind()
    with pytest.raises(ValueError, match="C-contiguous"):
        binding.bind_input("step", strided)
    with pytest.raises(ValueError, match="C-contiguous"):
        binding.bind_output("present", strided)


def test_cuda_without_cuda_is_an_error_and_never_the_cpu(tmp_path: Path) -> None:
    with pytest.raises(DeviceUnavailable, match=r"'cuda' is not available; execution providers here: .*CPU"):
        resolve_device(SessionConfig(device=Device.CUDA))
    with pytest.raises(DeviceUnavailable):
        open_session(tmp_path / "never-read.onnx", SessionConfig(device=Device.CUDA))


def test_auto_is_the_cpu_where_there_is_no_cuda() -> None:
    assert resolve_device(SessionConfig()) is Device.CPU


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_are_copied_within_the_memory_of_the_device(session: Session, dtype: type) -> None:
    """By a graph on the session's own provider: what runs here on the CPU is what runs on CUDA."""
    buffer = session.allocate((4, 2, 3), dtype)
    rows = host_array(buffer.rows(0, 4))
    rows[...] = np.arange(24).reshape(4, 2, 3)
    session.copy(buffer.rows(0, 2), buffer.rows(2, 2))
    session.copy(buffer.rows(3, 1), buffer.rows(0, 1))
    expected = np.arange(24).reshape(4, 2, 3)[[1, 1, 0, 1]]
    np.testing.assert_array_equal(rows, expected)


def test_the_graph_that_copies_is_one_identity() -> None:
    model = onnx.load_from_string(_COPY_GRAPH)
    onnx.checker.check_model(model, full_check=True)
    [node] = model.graph.node
    assert (node.op_type, list(node.input), list(node.output)) == ("Identity", ["x"], ["y"])
