"""How fast the machine can read memory and multiply matrices at best, and how near a model comes to it.

Bandwidth: the best of two ways to read 512 MB, which no cache holds, once: NumPy sums on as many threads as
cores, and ONNX Runtime's product of one row with a matrix. Arithmetic: ONNX Runtime's float32 product of two
matrices that stay in the caches. Each is the best of several runs, on a machine that does nothing else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_READ_BYTES, _ROWS = 512 * 2**20, 8192
_GEMM = (512, 1536, 384)
"""Rows, inner and outer size: those of the widest product of MiniLM on a batch of 512 tokens."""
_BITS_OF = {
    "FLOAT": 32,
    "FLOAT16": 16,
    "INT64": 64,
    "INT32": 32,
    "INT8": 8,
    "UINT8": 8,
    "INT4": 4,
    "UINT4": 4,
}


@dataclass(frozen=True, slots=True)
class Roofline:
    """What the machine can do at best."""

    read_gb_s: float
    """Bytes read from memory, in 10^9 a second."""
    gemm_gflop_s: float
    """Float32 operations of matrix products, in 10^9 a second."""
    num_threads: int

    def sentence(self) -> str:
        """Return one line for a report."""
        rows, outer, inner = _GEMM
        return (
            f"Roofline at {self.num_threads} threads: memory read {self.read_gb_s:.1f} GB/s (best of NumPy "
            f"sums and ONNX Runtime row-by-matrix products over {_READ_BYTES // 2**20} MiB), float32 "
            f"products {self.gemm_gflop_s:.0f} GFLOP/s (ONNX Runtime, {rows}x{inner} by {inner}x{outer})"
        )


def measure_roofline(num_threads: int) -> Roofline:
    """Measure both, in about ten seconds."""
    read = max(_numpy_read_gb_s(num_threads), _matmul_read_gb_s(num_threads))
    return Roofline(read, _gemm_gflop_s(num_threads), num_threads)


def _numpy_read_gb_s(num_threads: int) -> float:
    parts = [np.ones(_READ_BYTES // 8 // num_threads, np.float64) for _ in range(num_threads)]
    with ThreadPoolExecutor(num_threads) as pool:
        seconds = _best_s(lambda: list(pool.map(np.sum, parts)), 8)
    return sum(part.nbytes for part in parts) / seconds / 1e9


def _matmul_read_gb_s(num_threads: int) -> float:
    session = _product(_ROWS, _READ_BYTES // 4 // _ROWS, num_threads)
    row = {"x": np.ones((1, _ROWS), np.float32)}
    return _READ_BYTES / _best_s(lambda: session.run(None, row), 8) / 1e9


def _gemm_gflop_s(num_threads: int) -> float:
    rows, outer, inner = _GEMM
    session = _product(inner, outer, num_threads)
    left = {"x": np.ones((rows, inner), np.float32)}
    return 2 * rows * inner * outer / _best_s(lambda: session.run(None, left), 200) / 1e9


def _best_s(work: Callable[[], object], num_runs: int) -> float:
    """Return the shortest time; the first run only warms up."""
    seconds = []
    for _ in range(num_runs + 1):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def _product(inner: int, outer: int, num_threads: int) -> Any:
    """Return a session that multiplies `x` [rows, inner] with a constant [inner, outer]."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).random((inner, outer), np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, inner])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, outer])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def weight_bytes(graph_file: Path) -> int:
    """Return the bytes of weights that one token reads: all constants but those only looked up in."""
    import onnx

    graph = onnx.load(str(graph_file), load_external_data=False).graph
    multiplied = {
        name for node in graph.node if not node.op_type.startswith("Gather") for name in node.input if name
    }
    return sum(
        math.ceil(math.prod(tensor.dims) * _BITS_OF[onnx.TensorProto.DataType.Name(tensor.data_type)] / 8)
        for tensor in graph.initializer
        if tensor.name in multiplied
    )


def encoder_gflop(lengths: Sequence[int], *, num_layers: int, hidden: int, intermediate: int) -> float:
    """Return the operations, in 10^9, that a BERT-like encoder needs for texts of these lengths, unpadded.

    Matrix products only, a multiplication and an addition counted as two: four projections and two of the
    feed-forward part a token, and two products of attention a pair of tokens.
    """
    tokens, pairs = sum(lengths), sum(n * n for n in lengths)
    per_layer = 2 * tokens * (4 * hidden**2 + 2 * hidden * intermediate) + 4 * pairs * hidden
    return num_layers * per_layer / 1e9
