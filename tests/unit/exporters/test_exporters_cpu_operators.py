"""Rewritten nodes give what the fused ones gave; nodes that are not understood stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from aimass_exporters.graphs.cpu_operators import ATTENTION_OPSET, use_cpu_operators
from onnx import NodeProto, TensorProto, helper, numpy_helper

HIDDEN, HEADS, BATCH, SEQ = 8, 2, 3, 5
DOMAIN = "com.microsoft"
RNG = np.random.default_rng(0)
HIDDEN_INPUTS = ("x", "k", "v")
WEIGHTS = {
    "gamma": RNG.normal(size=HIDDEN).astype(np.float32),
    "beta": RNG.normal(size=HIDDEN).astype(np.float32),
    "bias": RNG.normal(size=HIDDEN).astype(np.float32),
    "packed": RNG.normal(size=3 * HIDDEN).astype(np.float32),
}
MASK = (np.arange(SEQ) < np.array([[5], [2], [1]])).astype(np.int64)
FEEDS = {
    **{name: RNG.normal(size=(BATCH, SEQ, HIDDEN)).astype(np.float32) for name in HIDDEN_INPUTS},
    "attention_mask": MASK,
}


def _model(nodes: list[NodeProto], *, opset: int = 18, outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    shape: list[str | int | None] = ["batch", "seq", HIDDEN]
    graph = helper.make_graph(
        nodes,
        "fused",
        [
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in HIDDEN_INPUTS),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "seq"]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in WEIGHTS.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def _run(model: onnx.ModelProto) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, FEEDS))


def _node(operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> NodeProto:
    return helper.make_node(operator, inputs, outputs, name=operator, domain=DOMAIN, **attributes)


def _operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("inputs", [["x", "k", "gamma"], ["x", "k", "gamma", "beta", "bias"]])
def test_a_norm_after_a_sum_is_two_nodes_with_the_same_result(inputs: list[str]) -> None:
    model = _model([_node("SkipLayerNormalization", inputs, ["y"], epsilon=1e-5)])
    expected = _run(model)
    use_cpu_operators(model)
    assert _operators(model) == ["Sum", "LayerNormalization"]
    np.testing.assert_allclose(_run(model), expected, atol=1e-5)


def test_the_sum_before_a_norm_is_still_there_for_its_reader() -> None:
    outputs = ["y", "", "", "total"]
    norm = _node("SkipLayerNormalization", ["x", "k", "gamma", "beta"], outputs, epsilon=1e-5)
    model = _model([norm], outputs=("y", "total"))
    expected = _run(model)
    use_cpu_operators(model)
    for found, wanted in zip(_run(model), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("bias", ["", "packed"])
@pytest.mark.parametrize("mask", ["", "mask"])
def test_attention_gives_what_the_fused_operator_gave(bias: str, mask: str) -> None:
    cast = helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.INT32)
    attention = _node("MultiHeadAttention", ["x", "k", "v", bias, mask], ["y"], num_heads=HEADS)
    model = _model([cast, attention])
    expected = _run(model)
    use_cpu_operators(model)
    assert "Attention" in _operators(model)
    assert "MultiHeadAttention" not in _operators(model)
    np.testing.assert_allclose(_run(model), expected, atol=1e-5)


def test_attention_with_a_position_bias_stays() -> None:
    scores = numpy_helper.from_array(np.zeros((1, 1, SEQ, SEQ), np.float32), "scores")
    attention = _node("MultiHeadAttention", ["x", "k", "v", "", "", "scores"], ["y"], num_heads=HEADS)
    model = _model([attention])
    model.graph.initializer.append(scores)
    use_cpu_operators(model)
    assert _operators(model) == ["MultiHeadAttention"]


def test_a_mask_that_no_input_of_the_graph_gives_stays() -> None:
    lengths = [
        helper.make_node("Cast", ["attention_mask"], ["as_int"], to=TensorProto.INT32),
        helper.make_node("ReduceSum", ["as_int", "axis"], ["lengths"], keepdims=0),
    ]
    model = _model(
        [*lengths, _node("MultiHeadAttention", ["x", "k", "v", "", "lengths"], ["y"], num_heads=HEADS)]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axis"))
    use_cpu_operators(model)
    assert "MultiHeadAttention" in _operators(model)


@pytest.mark.parametrize("opset", [17, 18, 24])
def test_only_graphs_of_known_opsets_are_rewritten(opset: int) -> None:
    norm = _node("SkipLayerNormalization", ["x", "k", "gamma"], ["y"], epsilon=1e-5)
    model = _model([norm], opset=opset)
    use_cpu_operators(model)
    is_known = opset >= 18
    assert (_operators(model) == ["Sum", "LayerNormalization"]) == is_known
    assert model.opset_import[0].version == (max(opset, ATTENTION_OPSET) if is_known else opset)


def test_what_only_a_branch_reads_is_kept() -> None:
    value = helper.make_tensor_value_info("chosen", TensorProto.FLOAT, None)
    branches: dict[str, Any] = {
        name: helper.make_graph([helper.make_node("Identity", [read], ["chosen"])], name, [], [value])
        for name, read in (("then_branch", "x_twice"), ("else_branch", "bias"))
    }
    condition = numpy_helper.from_array(np.array(False), "condition")
    nodes = [
        helper.make_node("Add", ["x", "x"], ["x_twice"]),
        helper.make_node("If", ["condition"], ["shift"], **branches),
        helper.make_node("Add", ["x", "shift"], ["y"]),
    ]
    model = _model(nodes)
    model.graph.initializer.append(condition)
    expected = _run(model)
    use_cpu_operators(model)
    np.testing.assert_array_equal(_run(model), expected)
