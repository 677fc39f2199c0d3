"""Products with fixed activation ranges: near the float graph, the same in any batch, and left alone where
they would lose too much.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from aimass_exporters.graphs.activation_levels import (
    MAX_ERROR,
    NUM_OUTLIERS,
    ActivationLevels,
    IntegerWeights,
    Observed,
    best_levels,
    product_error,
)
from aimass_exporters.graphs.external_file import save_graph
from aimass_exporters.graphs.static_quantization import quantize_statically
from onnx import TensorProto, helper, numpy_helper

HIDDEN = 48
RNG = np.random.default_rng(0)
INNER = (RNG.normal(size=(HIDDEN, HIDDEN)) / 7).astype(np.float32)
LAST = (RNG.normal(size=(HIDDEN, 5)) / 7).astype(np.float32)


def _model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "inner"], ["h"]),
        helper.make_node("Gelu", ["h"], ["g"]),
        helper.make_node("MatMul", ["g", "last"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "two products",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "seq", HIDDEN]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "seq"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "seq", 5])],
        [numpy_helper.from_array(INNER, "inner"), numpy_helper.from_array(LAST, "last")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _feeds(seed: int, rows: int = 6) -> dict[str, np.ndarray]:
    x = np.random.default_rng(seed).normal(size=(rows, 9, HIDDEN)).astype(np.float32)
    x[..., 3] *= 30  # a channel that reaches far
    return {"x": x, "attention_mask": np.ones((rows, 9), np.int64)}


def _run(model: onnx.ModelProto, feeds: dict[str, np.ndarray], folder: Path) -> np.ndarray:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # saving moves its weights out
    session = ort.InferenceSession(save_graph(copy, folder / "m.onnx"), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(["y"], feeds)[0]
    return result


def _observed(rows: np.ndarray) -> Observed:
    return Observed(rows, rows.min(axis=0), rows.max(axis=0))


def test_an_inner_product_becomes_integers_and_the_last_one_stays(tmp_path: Path) -> None:
    model = _model()
    expected = _run(model, _feeds(9), tmp_path)
    assert quantize_statically(model, [_feeds(0), _feeds(1)]).replaced == ["h"]
    operators = [node.op_type for node in model.graph.node]
    assert operators == ["Mul", "QuantizeLinear", "MatMulIntegerToFloat", "Gelu", "MatMul"]
    assert "inner" not in {tensor.name for tensor in model.graph.initializer}
    found = _run(model, _feeds(9), tmp_path)
    assert np.linalg.norm(found - expected) < 2 * MAX_ERROR * np.linalg.norm(expected)
    assert np.abs(found - expected).max() > 0, "integers are not floats"


def test_a_row_is_the_same_alone_and_beside_rows_that_reach_farther(tmp_path: Path) -> None:
    model = _model()
    quantize_statically(model, [_feeds(0)])
    feeds = _feeds(5)
    feeds["x"][1:] *= 3
    together = _run(model, feeds, tmp_path)[0]
    alone = _run(model, {name: array[:1] for name, array in feeds.items()}, tmp_path)[0]
    np.testing.assert_array_equal(together, alone)


def test_padding_does_not_widen_the_ranges() -> None:
    padded, plain = _feeds(0), _feeds(0)
    padded["x"][:, 7:] = 1e4
    padded["attention_mask"][:, 7:] = 0
    models = {"padded": _model(), "cut": _model()}
    quantize_statically(models["padded"], [padded])
    quantize_statically(models["cut"], [{name: array[:, :7] for name, array in plain.items()}])
    scales = [
        numpy_helper.to_array(next(t for t in m.graph.initializer if t.name == "x_scale"))
        for m in models.values()
    ]
    assert scales[0] == scales[1]


def test_a_product_that_would_lose_too_much_stays_float() -> None:
    feeds = _feeds(0)
    feeds["x"][0, 0] = 3e4  # one token in every channel: nothing to shift, and 255 levels are too few
    model = _model()
    assert quantize_statically(model, [feeds]).replaced == []
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Gelu", "MatMul"]


def test_smoothing_is_found_where_one_channel_reaches_far() -> None:
    rows = _feeds(0)["x"].reshape(-1, HIDDEN)
    plain = ActivationLevels.of(_observed(rows), 0.0)
    best = best_levels(_observed(rows), [INNER])
    assert best.factors is not None
    assert product_error(rows, INNER, best) < 0.6 * product_error(rows, INNER, plain)


@pytest.mark.parametrize("strength", [0.0, 0.7])
def test_every_observed_number_moves_by_at_most_half_a_level(strength: float) -> None:
    rows = _feeds(0)["x"].reshape(-1, HIDDEN)
    levels = ActivationLevels.of(_observed(rows), strength)
    smoothed = rows if levels.factors is None else rows * levels.factors
    assert np.abs(levels.rounded(rows) - smoothed).max() <= levels.scale * 1.01
    weights = IntegerWeights.of(INNER)
    assert (np.abs(weights.dequantized() - INNER) <= weights.scales * 0.501).all()


def _narrowing_model(after: list[onnx.NodeProto], *, wide: np.ndarray) -> onnx.ModelProto:
    """Return a product with more inputs than outputs, what follows it, and the product of the output."""
    bias = np.linspace(-1, 1, wide.shape[1], dtype=np.float32)
    last = (np.random.default_rng(4).normal(size=(wide.shape[1], 5)) / 3).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "wide"], ["h"]),
        *after,
        helper.make_node("MatMul", ["g", "last"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "narrowing",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "seq", HIDDEN]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "seq"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "seq", 5])],
        [numpy_helper.from_array(a, n) for n, a in (("wide", wide), ("bias", bias), ("last", last))],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


ADDED = [helper.make_node("Add", ["bias", "h"], ["g"])]


@pytest.mark.parametrize("num_outputs", [8, HIDDEN])
def test_a_product_takes_the_bias_that_follows_it(num_outputs: int, tmp_path: Path) -> None:
    model = _narrowing_model(ADDED, wide=INNER[:, :num_outputs].copy())
    expected = _run(model, _feeds(9), tmp_path)
    quantize_statically(model, [_feeds(0), _feeds(1)])
    product = next(node for node in model.graph.node if node.op_type == "MatMulIntegerToFloat")
    assert product.input[6] == "bias"
    assert "Add" not in {node.op_type for node in model.graph.node}
    found = _run(model, _feeds(9), tmp_path)
    assert np.linalg.norm(found - expected) < 2 * MAX_ERROR * np.linalg.norm(expected)


def test_channels_that_reach_far_stay_float_where_there_are_fewer_outputs(tmp_path: Path) -> None:
    far = np.random.default_rng(2).choice(HIDDEN, NUM_OUTLIERS, replace=False)

    def feeds(seed: int) -> dict[str, np.ndarray]:
        plain = np.random.default_rng(seed).normal(size=(6, 9, HIDDEN)).astype(np.float32)
        plain[..., far] *= np.where(np.random.default_rng(seed).random((6, 9, NUM_OUTLIERS)) < 0.1, 100, 1)
        return {"x": plain, "attention_mask": np.ones((6, 9), np.int64)}

    model = _narrowing_model(ADDED, wide=INNER[:, :8].copy())
    expected = _run(model, feeds(9), tmp_path)
    changes = quantize_statically(model, [feeds(0), feeds(1)])
    assert changes.replaced == ["h"]
    [kept] = changes.float_weights
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    np.testing.assert_array_equal(weights[kept], INNER[np.sort(far), :8])
    found = _run(model, feeds(9), tmp_path)
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)
