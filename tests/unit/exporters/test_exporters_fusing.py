"""Fused graphs compute what the graphs before them did, with fewer operators."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from aimass_exporters.graphs.fusing import fuse_operators
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

WIDTH, INNER = 8, 12
GENERATOR = np.random.default_rng(3)
Shape = Sequence[str | int | None]


def _matrix(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(GENERATOR.normal(size=shape).astype(np.float32), name)


def _norm(x: str, y: str, *, is_rms: bool) -> NodeProto:
    if is_rms:
        return helper.make_node("SimplifiedLayerNormalization", [x, "gamma"], [y], axis=-1, epsilon=1e-5)
    return helper.make_node("LayerNormalization", [x, "gamma", "beta"], [y], axis=-1, epsilon=1e-5)


def _layer(*, is_rms: bool, gate: str = "gate", up: str = "up") -> list[NodeProto]:
    """Return a feed-forward layer on a residual stream, between two norms."""
    return [
        helper.make_node("Add", ["x", "attended"], ["stream"]),
        _norm("stream", "normed", is_rms=is_rms),
        helper.make_node("MatMul", ["normed", gate], ["gated"]),
        helper.make_node("Sigmoid", ["gated"], ["opened"]),
        helper.make_node("MatMul", ["normed", up], ["widened"]),
        helper.make_node("Mul", ["opened", "widened"], ["inner"]),
        helper.make_node("MatMul", ["inner", "down"], ["narrowed"]),
        helper.make_node("Add", ["stream", "narrowed"], ["next"]),
        _norm("next", "y", is_rms=is_rms),
    ]


def _model(nodes: Sequence[NodeProto]) -> onnx.ModelProto:
    shape: Shape = ["batch", "seq", WIDTH]
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "attended", "y")
    }
    constants = [
        _matrix("gate", WIDTH, INNER),
        _matrix("up", WIDTH, INNER),
        _matrix("down", INNER, WIDTH),
        _matrix("gamma", WIDTH),
        _matrix("beta", WIDTH),
    ]
    graph = helper.make_graph(nodes, "layer", [values["x"], values["attended"]], [values["y"]], constants)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    # As PyTorch's exporter does, state the shapes that no product changes.
    stated = {"stream", "normed", "narrowed", "next"}.intersection(o for node in nodes for o in node.output)
    graph.value_info.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in stated)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _fused(model: onnx.ModelProto) -> onnx.ModelProto:
    fused = ir.from_proto(model)
    fuse_operators(fused)
    return ir.to_proto(fused)


def _operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def _run(model: onnx.ModelProto) -> NDArray[np.float32]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {
        name: np.random.default_rng(5).normal(size=(2, 3, WIDTH)).astype(np.float32)
        for name in ("x", "attended")
    }
    return np.asarray(session.run(None, feeds)[0])


@pytest.mark.parametrize("is_rms", [True, False])
def test_a_fused_layer_computes_the_same_with_fewer_operators(is_rms: bool) -> None:
    model = _model(_layer(is_rms=is_rms))
    fused = _fused(model)
    skip = "SkipSimplifiedLayerNormalization" if is_rms else "SkipLayerNormalization"
    assert _operators(fused) == [skip, "MatMul", "Split", "Sigmoid", "Mul", "MatMul", skip]
    np.testing.assert_allclose(_run(fused), _run(model), atol=1e-6)


def test_products_that_share_their_matrix_with_others_stay_apart() -> None:
    model = _model(_layer(is_rms=True, gate="up", up="up"))
    fused = _fused(model)
    assert _operators(fused).count("MatMul") == 3
    np.testing.assert_allclose(_run(fused), _run(model), atol=1e-6)


@pytest.mark.parametrize(("last", "is_idle"), [([0, 0, WIDTH], True), ([0, -1, WIDTH // 2], False)])
def test_only_reshaping_that_comes_back_to_its_start_is_dropped(last: list[int], is_idle: bool) -> None:
    model = _model(
        [
            helper.make_node("Add", ["x", "attended"], ["stream"]),
            helper.make_node("Reshape", ["stream", "heads"], ["split"]),
            helper.make_node("Reshape", ["split", "last"], ["merged"]),
            helper.make_node("Sigmoid", ["merged"], ["opened"]),
            helper.make_node("Reshape", ["opened", "whole"], ["y"]),
        ]
    )
    for name, shape in (("heads", [0, 0, 2, WIDTH // 2]), ("last", last), ("whole", [2, 3, WIDTH])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(shape), name))
    merged: Shape = ["batch", "seq", WIDTH] if is_idle else ["batch", "pairs", WIDTH // 2]
    model.graph.value_info.append(helper.make_tensor_value_info("merged", TensorProto.FLOAT, merged))
    fused = _fused(model)
    assert _operators(fused).count("Reshape") == (1 if is_idle else 3)
    np.testing.assert_allclose(_run(fused), _run(model), atol=1e-6)
