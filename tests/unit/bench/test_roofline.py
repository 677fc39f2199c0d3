"""Counts of bytes and operations behind the rooflines."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.padding import padding_efficiency
from bench.roofline import encoder_gflop, weight_bytes


def graph_file(tmp_path: Path, *, is_tied: bool) -> Path:
    """Write a graph with a table of 10 x 4 that is looked up in, and multiplied with when it is tied."""
    table = numpy_helper.from_array(np.zeros((10, 4), np.float32), "table")
    weight = numpy_helper.from_array(np.zeros((4, 3), np.float32), "weight")
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "weight"], ["y"]),
    ]
    if is_tied:
        nodes += [
            helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
            helper.make_node("MatMul", ["rows", "turned"], ["logits"]),
        ]
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, [1])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [table, weight])
    file = tmp_path / "graph.onnx"
    onnx.save(helper.make_model(graph), str(file))
    return file


def test_a_table_that_is_only_looked_up_in_is_not_read_for_a_token(tmp_path: Path) -> None:
    assert weight_bytes(graph_file(tmp_path, is_tied=False)) == 4 * 3 * 4


def test_a_tied_table_is_read_once(tmp_path: Path) -> None:
    assert weight_bytes(graph_file(tmp_path, is_tied=True)) == 4 * 3 * 4 + 10 * 4 * 4


def test_operations_of_minilm_are_twice_its_products_and_grow_with_the_square_of_length() -> None:
    shape = {"num_layers": 6, "hidden": 384, "intermediate": 1536}
    one, two = encoder_gflop([1], **shape), encoder_gflop([2], **shape)
    weights = 6 * (4 * 384**2 + 2 * 384 * 1536)
    assert one == pytest.approx((2 * weights + 6 * 4 * 384) / 1e9)
    assert two - 2 * one == pytest.approx(6 * 4 * 384 * (4 - 2) / 1e9)


def test_texts_of_one_length_need_no_padding() -> None:
    assert padding_efficiency([20] * 100, texts_a_call=10, calls=4) == 1


def test_mixed_lengths_cost_padding_within_the_bound_of_the_batcher() -> None:
    lengths = [10 + 37 * i % 90 for i in range(96)]
    assert 0.7 < padding_efficiency(lengths, texts_a_call=32, calls=3) < 1
