"""Smoothed norms compute what they did, leave smaller errors to integers, and change for nobody else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from aimass_exporters.graphs.external_file import save_graph
from aimass_exporters.graphs.graph_quantization import WeightBits, quantize_model
from aimass_exporters.graphs.norm_smoothing import smooth_norms
from aimass_exporters.progress import SilentProgress
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

WIDTH, INNER, LOUD = 64, 48, 5
NORMS = {
    "LayerNormalization": ["x", "gamma", "beta"],
    "SimplifiedLayerNormalization": ["x", "gamma"],
    "SkipLayerNormalization": ["x", "x", "gamma", "beta", "bias"],
    "SkipSimplifiedLayerNormalization": ["x", "x", "gamma", "bias"],
}
FEEDS = [
    {"x": np.random.default_rng(seed).normal(size=(1, 9, WIDTH)).astype(np.float32)} for seed in range(4)
]


def _norm(kind: str = "SimplifiedLayerNormalization", output: str = "normed") -> NodeProto:
    domain = "com.microsoft" if kind.startswith("Skip") else ""
    return helper.make_node(kind, NORMS[kind], [output], domain=domain, epsilon=1e-5)


def _product(weight: str = "gate", output: str = "y", taken: str = "normed") -> NodeProto:
    return helper.make_node("MatMul", [taken, weight], [output])


def _constants() -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(3)
    shapes = {"gate": (WIDTH, INNER), "up": (WIDTH, INNER), "down": (INNER, WIDTH)}
    constants = {name: random.normal(size=shape) for name, shape in shapes.items()}
    constants |= {name: random.normal(size=WIDTH) for name in ("gamma", "beta", "bias")}
    constants["gamma"][LOUD] = 60.0
    return {name: array.astype(np.float32) for name, array in constants.items()}


def _written(folder: Path, nodes: Sequence[NodeProto], outputs: Sequence[str] = ("y",)) -> Path:
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "seq", WIDTH])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in _constants().items() if name in read],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    return save_graph(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "float.onnx")


def _run(path: Path) -> NDArray[np.float32]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([np.asarray(session.run(None, feed)[0]) for feed in FEEDS])


def _weights(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _saved(model: onnx.ModelProto, folder: Path) -> Path:
    return save_graph(model, folder / "smooth.onnx")


@pytest.mark.parametrize("kind", NORMS)
def test_a_smoothed_norm_and_its_readers_compute_the_same(tmp_path: Path, kind: str) -> None:
    nodes = [_norm(kind), _product("gate", "gated"), _product("up", "widened")]
    path = _written(tmp_path, [*nodes, helper.make_node("Mul", ["gated", "widened"], ["y"])])
    smooth = smooth_norms(path, FEEDS)
    assert [n.op_type for n in smooth.graph.node] == [kind, "MatMul", "MatMul", "Mul"]
    assert not np.allclose(_weights(smooth)["gate"], _constants()["gate"])
    np.testing.assert_allclose(_run(_saved(smooth, tmp_path)), _run(path), rtol=1e-4, atol=2e-2)
    assert {p.name for p in tmp_path.iterdir()} == {
        f"{name}.onnx{end}" for name in ("float", "smooth") for end in ("", ".data")
    }


@pytest.mark.parametrize("is_transposed", [True, False])
def test_products_with_a_bias_are_readers_too(tmp_path: Path, is_transposed: bool) -> None:
    weight = "down" if is_transposed else "gate"
    flat = helper.make_node("Squeeze", ["x"], ["rows"])
    norm = helper.make_node("LayerNormalization", ["rows", "gamma", "beta"], ["normed"])
    product = helper.make_node("Gemm", ["normed", weight], ["y"], transB=int(is_transposed))
    path = _written(tmp_path, [flat, norm, product])
    smooth = smooth_norms(path, FEEDS)
    assert not np.allclose(_weights(smooth)[weight], _constants()[weight])
    np.testing.assert_allclose(_run(_saved(smooth, tmp_path)), _run(path), rtol=1e-4, atol=2e-2)


def test_a_channel_that_reaches_far_costs_the_others_fewer_levels(tmp_path: Path) -> None:
    path = _written(tmp_path, [_norm(), _product()])
    expected = _run(path)

    def error(model: onnx.ModelProto) -> float:
        target = tmp_path / "integer.onnx"
        quantize_model(model, target, WeightBits(body=8), SilentProgress())
        return float(np.abs(_run(target) - expected).mean())

    assert error(smooth_norms(path, FEEDS)) < error(onnx.load(path)) / 2


@pytest.mark.parametrize(
    ("others", "outputs"),
    [
        ([helper.make_node("Sigmoid", ["normed"], ["z"])], ["y", "z"]),
        ([_product("gate", "z", taken="x")], ["y", "z"]),
        ([], ["y", "normed"]),
    ],
    ids=["another reader", "weights that another product reads", "an output"],
)
def test_a_norm_stays_when_not_all_its_readers_can_make_up_for_it(
    tmp_path: Path, others: list[NodeProto], outputs: list[str]
) -> None:
    path = _written(tmp_path, [_norm(), _product(), *others], outputs)
    kept, expected = _weights(smooth_norms(path, FEEDS)), _constants()
    assert sorted(kept) == ["gamma", "gate"]
    assert all(np.array_equal(kept[name], expected[name]) for name in kept)


def test_norms_with_one_constant_are_smoothed_each_by_itself(tmp_path: Path) -> None:
    nodes = [_norm(), _product("gate", "a"), _product("down", "next", taken="a")]
    second = helper.make_node("SimplifiedLayerNormalization", ["next", "gamma"], ["last"], epsilon=1e-5)
    path = _written(tmp_path, [*nodes, second, _product("up", "z", taken="last")], ["z"])
    smooth = smooth_norms(path, FEEDS)
    first, last = (_weights(smooth)[f"{name}.smoothed.1"] for name in ("normed", "last"))
    assert not np.allclose(first, last)
    np.testing.assert_allclose(_run(_saved(smooth, tmp_path)), _run(path), rtol=1e-4, atol=2e-2)
