"""Every matrix product of a graph becomes integers, or the quantisation fails; tied weights stay one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from aimass_exporters.errors import QuantizationIncomplete
from aimass_exporters.graphs.external_file import save_graph
from aimass_exporters.graphs.graph_quantization import WeightBits, float_products, quantize_model
from aimass_exporters.progress import SilentProgress
from onnx import TensorProto, helper, numpy_helper

VOCAB, HIDDEN = 48, 64


def _graph(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", VOCAB])],
        [numpy_helper.from_array(w, name) for name, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _weight(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) / 8).astype(np.float32)


def _tied_model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"], name="embed"),
        helper.make_node("MatMul", ["x", "body"], ["h"], name="body_product"),
        helper.make_node("Transpose", ["table"], ["head"], name="transpose", perm=[1, 0]),
        helper.make_node("MatMul", ["h", "head"], ["logits"], name="head_product"),
    ]
    return _graph(nodes, {"table": _weight(VOCAB, HIDDEN), "body": _weight(HIDDEN, HIDDEN, seed=1)})


def _run(path: Path, ids: np.ndarray) -> np.ndarray:
    result: np.ndarray = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, {"ids": ids}
    )[0]
    return result


def _quantized(model: onnx.ModelProto, folder: Path, bits: WeightBits) -> Path:
    save_graph(model, folder / "float.onnx")
    quantize_model(onnx.load(folder / "float.onnx"), folder / "quantized.onnx", bits, SilentProgress())
    return folder / "quantized.onnx"


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.02), (4, 0.25)])
def test_a_quantised_graph_computes_what_the_float_graph_does(
    tmp_path: Path, bits: int, tolerance: float
) -> None:
    ids = np.arange(VOCAB, dtype=np.int64)
    path = _quantized(_tied_model(), tmp_path, WeightBits(body=bits))
    expected = _run(tmp_path / "float.onnx", ids)
    assert np.abs(_run(path, ids) - expected).max() < tolerance * np.abs(expected).max()


def test_tied_weights_are_stored_once_as_integers(tmp_path: Path) -> None:
    model = onnx.load(_quantized(_tied_model(), tmp_path, WeightBits(body=8)))
    tables = [t for t in model.graph.initializer if np.prod(t.dims) == VOCAB * HIDDEN]
    assert [t.data_type for t in tables] == [TensorProto.UINT8]
    assert {n.op_type for n in model.graph.node} == {"Reshape", "GatherBlockQuantized", "MatMulNBits"}


def test_the_output_layer_keeps_eight_bits_when_the_body_has_four(tmp_path: Path) -> None:
    model = onnx.load(_quantized(_tied_model(), tmp_path, WeightBits(body=4)))
    bits = {
        n.name: helper.get_node_attr_value(n, "bits") for n in model.graph.node if n.op_type == "MatMulNBits"
    }
    assert bits == {"body_product": 4, "head_product": 8}


def test_a_row_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    path = _quantized(_tied_model(), tmp_path, WeightBits(body=8))
    batch = _run(path, np.arange(9, dtype=np.int64))
    alone = np.concatenate([_run(path, np.array([i])) for i in range(9)])
    np.testing.assert_allclose(batch, alone, atol=1e-6)


@pytest.mark.parametrize(
    "left",
    [
        helper.make_node("Gemm", ["x", "head"], ["logits"], name="left", transB=1, alpha=0.5),
        helper.make_node(
            "Attention", ["x", "head"], ["logits"], name="left", domain="com.microsoft", num_heads=1
        ),
    ],
    ids=["scaled gemm", "packed attention"],
)
def test_a_product_that_keeps_float_weights_is_an_error(tmp_path: Path, left: onnx.NodeProto) -> None:
    nodes = [helper.make_node("Gather", ["table", "ids"], ["x"], name="embed"), left]
    model = _graph(nodes, {"table": _weight(VOCAB, HIDDEN), "head": _weight(VOCAB, HIDDEN, seed=2)})
    with pytest.raises(QuantizationIncomplete, match="left"):
        _quantized(model, tmp_path, WeightBits(body=8))
    assert not (tmp_path / "quantized.onnx").exists()


@pytest.mark.parametrize("is_transposed", [True, False])
def test_a_gemm_becomes_integers_with_its_bias(tmp_path: Path, is_transposed: bool) -> None:
    head = _weight(VOCAB, HIDDEN, seed=2)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"], name="embed"),
        helper.make_node(
            "Gemm", ["x", "head", "bias"], ["logits"], name="product", transB=int(is_transposed)
        ),
    ]
    weights = {"table": _weight(VOCAB, HIDDEN), "bias": _weight(VOCAB, seed=3)}
    path = _quantized(
        _graph(nodes, {**weights, "head": head if is_transposed else head.T}), tmp_path, WeightBits(body=8)
    )
    ids = np.arange(VOCAB, dtype=np.int64)
    expected = weights["table"] @ head.T + weights["bias"]
    assert [n.op_type for n in onnx.load(path).graph.node] == ["Gather", "MatMulNBits"]
    assert np.abs(_run(path, ids) - expected).max() < 0.02 * np.abs(expected).max()


def test_float_products_sees_through_changes_of_layout() -> None:
    assert list(float_products(_tied_model())) == ["body_product", "head_product"]
