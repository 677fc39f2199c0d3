"""Integers in blocks stand for numbers close to the originals, in the layout that onnxruntime reads."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from aimass_exporters.graphs.block_quantization import BLOCK_SIZES, quantize_blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper


def _random(outputs: int, inputs: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((outputs, inputs)) * scale).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    outputs=st.integers(1, 5),
    inputs=st.integers(1, 100),
    seed=st.integers(0, 9),
    scale=st.sampled_from([1e-4, 1, 1e3]),
)
def test_eight_bits_move_a_number_by_at_most_half_a_step(
    outputs: int, inputs: int, seed: int, scale: float
) -> None:
    matrix = _random(outputs, inputs, seed, scale)
    quantized = quantize_blocks(matrix, bits=8)
    step = np.repeat(quantized.scales, BLOCK_SIZES[8], axis=1)[:, :inputs]
    # The zero point is rounded too: together at most one step, and half of it inside the range.
    assert (np.abs(quantized.dequantized() - matrix) <= step * 1.001).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_zero_stays_exactly_zero(bits: int) -> None:
    matrix = _random(3, 96)
    matrix[:, ::7] = 0
    matrix[1] = 0
    assert (quantize_blocks(matrix, bits=bits).dequantized()[matrix == 0] == 0).all()


def test_searching_ranges_lowers_the_error_of_four_bits() -> None:
    matrix = _random(64, 256)
    matrix[:, 5] *= 8  # an outlier in one block of each row
    found = np.square(quantize_blocks(matrix, bits=4).dequantized() - matrix).sum()
    blocks = matrix.reshape(64, -1, BLOCK_SIZES[4])
    scale = (blocks.max(-1) - blocks.min(-1))[..., None] / 15
    zero = np.rint(-blocks.min(-1)[..., None] / scale)
    plain = (np.clip(np.rint(blocks / scale) + zero, 0, 15) - zero) * scale
    assert found < np.square(plain - blocks).sum()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs", [64, 96, 341])
def test_the_runtime_reads_the_layout_as_it_was_written(bits: int, inputs: int) -> None:
    matrix, x = _random(24, inputs), _random(3, inputs, seed=1)
    quantized = quantize_blocks(matrix, bits=bits)
    got = _run_matmul(x, quantized.packed_levels(), quantized.scales, quantized.packed_zero_points(), bits)
    np.testing.assert_allclose(got, x @ quantized.dequantized().T, atol=1e-4, rtol=1e-4)


def _run_matmul(
    x: np.ndarray, levels: np.ndarray, scales: np.ndarray, zero_points: np.ndarray, bits: int
) -> np.ndarray:
    inputs = ["x", "levels", "scales", "zero_points"]
    node = helper.make_node(
        "MatMulNBits",
        inputs,
        ["y"],
        domain="com.microsoft",
        K=x.shape[1],
        N=len(levels),
        bits=bits,
        block_size=BLOCK_SIZES[bits],
    )
    arrays = {"levels": levels, "scales": scales, "zero_points": zero_points}
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [len(x), len(levels)])],
        [numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    result: np.ndarray = ort.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    ).run(None, {"x": x})[0]
    return result
