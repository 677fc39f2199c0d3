"""Our own operators against NumPy and against ONNX Runtime's, on random values, through sessions as services
open them. Where the processor or the installation has none, the tests of results are skipped and say so.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aimass_serving.session import Device, Session, SessionConfig, open_session, own_kernels
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, save

Arrays = Mapping[str, NDArray[Any]]
needs_kernels = pytest.mark.skipif(own_kernels() is None, reason="this machine cannot run our own kernels")


def open_node(
    folder: Path, op_type: str, inputs: list[str], outputs: list[str], constants: Arrays, feeds: Arrays,
    *, own: bool = True, num_threads: int = 2, **attributes: Any,
) -> Session:  # fmt: skip
    node = helper.make_node(op_type, inputs, outputs, domain="com.microsoft", **attributes)
    kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feeds.items()}
    first = kinds[inputs[0]]
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(name, kind, [None] * feeds[name].ndim)
            for name, kind in kinds.items()
        ],
        [helper.make_tensor_value_info(name, first, None) for name in outputs],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    file = folder / "node.onnx"
    save(helper.make_model(graph, opset_imports=opsets, ir_version=10), file)
    return open_session(file, SessionConfig(device=Device.CPU, num_threads=num_threads, own_kernels=own))


@dataclass(frozen=True)
class Weights:
    """A random matrix in blocks of integers, and how a node holds it."""

    levels: NDArray[np.uint8]  # [columns, blocks, block_size]
    scales: NDArray[np.float32]  # [columns, blocks]
    zero_points: NDArray[np.uint8]  # [columns, blocks]
    depth: int
    bits: int

    @classmethod
    def draw(cls, rng: np.random.Generator, columns: int, depth: int, block_size: int, bits: int) -> Weights:
        blocks = -(-depth // block_size)
        levels = rng.integers(0, 2**bits, (columns, blocks, block_size), dtype=np.uint8)
        zero_points = rng.integers(0, 2**bits, (columns, blocks), dtype=np.uint8)
        levels.reshape(columns, -1)[:, depth:] = 0
        return cls(
            levels, rng.uniform(0.001, 0.01, (columns, blocks)).astype(np.float32), zero_points, depth, bits
        )

    def constants(self) -> Arrays:
        return {
            "levels": _packed(self.levels, self.bits),
            "scales": self.scales,
            "zero_points": _packed(self.zero_points, self.bits),
        }

    def times(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Multiply as the operator promises: rows rounded to 127 steps a block, whole sums, scales."""
        _, blocks, size = self.levels.shape
        padded = np.zeros((len(rows), blocks * size), np.float32)
        padded[:, : self.depth] = rows
        parts = padded.reshape(len(rows), blocks, size)
        steps = np.abs(parts).max(axis=-1, keepdims=True) / np.float32(127)
        rounded = np.rint(np.divide(parts, steps, out=np.zeros_like(parts), where=steps > 0))
        levels = self.levels.astype(np.float64) - self.zero_points[..., None]
        whole = np.einsum("rbs,cbs->rcb", rounded, levels)
        sums: NDArray[np.float64] = np.einsum(
            "rcb,rb,cb->rc", whole, steps[..., 0].astype(np.float64), self.scales.astype(np.float64)
        )
        return sums

    def open(self, folder: Path, rows: NDArray[np.float32], **options: Any) -> Session:
        return open_node(
            folder, "MatMulNBits", ["rows", "levels", "scales", "zero_points"], ["result"],
            self.constants(), {"rows": rows}, K=self.depth, N=len(self.levels), bits=self.bits,
            block_size=self.levels.shape[-1], accuracy_level=4, **options,
        )  # fmt: skip


def _packed(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Put two values of 4 bits into a byte, the first one low, along the last axis."""
    if bits == 8:
        return values
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    return np.asarray(values[..., ::2] | values[..., 1::2] << 4, np.uint8)


@needs_kernels
@pytest.mark.parametrize("num_rows", [1, 3, 8, 300])
@pytest.mark.parametrize(
    ("columns", "depth", "block_size", "bits"),
    [
        (48, 128, 64, 8),
        (33, 100, 64, 8),
        (16, 96, 32, 8),
        (5, 130, 128, 8),
        (40, 96, 32, 4),
        (17, 250, 64, 4),
        (33, 300, 128, 4),
    ],
)
def test_product_adds_up_whole_numbers_as_numpy_does(
    tmp_path: Path, num_rows: int, columns: int, depth: int, block_size: int, bits: int
) -> None:
    rng = np.random.default_rng(num_rows + columns)
    weights = Weights.draw(rng, columns, depth, block_size, bits)
    rows = rng.standard_normal((num_rows, depth)).astype(np.float32)
    rows[0, :block_size] = 0  # a block without any value has no scale
    got = weights.open(tmp_path, rows).run({"rows": rows})["result"]
    expected = weights.times(rows)
    # A value on the border between two steps may fall to either side: one step of one value.
    assert np.abs(got - expected).max() <= 2e-3 * np.abs(expected).max()


@needs_kernels
@pytest.mark.parametrize("bits", [8, 4])
def test_a_row_has_the_same_bits_with_other_rows_and_other_threads(tmp_path: Path, bits: int) -> None:
    rng = np.random.default_rng(5)
    weights = Weights.draw(rng, 90, 192, 64, bits)
    rows = rng.standard_normal((270, 192)).astype(np.float32)
    together = weights.open(tmp_path, rows, num_threads=2).run({"rows": rows})["result"]
    alone = weights.open(tmp_path, rows, num_threads=1)
    for row in (0, 7, 255, 256, 269):
        np.testing.assert_array_equal(alone.run({"rows": rows[row : row + 1]})["result"][0], together[row])


@needs_kernels
def test_product_keeps_leading_axes_and_takes_no_rows(tmp_path: Path) -> None:
    weights = Weights.draw(np.random.default_rng(6), 20, 64, 64, 8)
    rows = np.ones((2, 3, 64), np.float32)
    session = weights.open(tmp_path, rows)
    assert session.run({"rows": rows})["result"].shape == (2, 3, 20)
    assert session.run({"rows": rows[:0]})["result"].shape == (0, 3, 20)


@needs_kernels
def test_rows_of_another_width_are_an_error_that_names_both(tmp_path: Path) -> None:
    weights = Weights.draw(np.random.default_rng(6), 20, 64, 64, 8)
    session = weights.open(tmp_path, np.ones((1, 64), np.float32))
    with pytest.raises(Exception, match=r"A: expected rows of 64, got the shape \[1, 63\]"):
        session.run({"rows": np.ones((1, 63), np.float32)})


@needs_kernels
@pytest.mark.parametrize("block_size", [16, 256])
def test_blocks_that_the_kernel_does_not_know_run_with_the_runtimes(
    tmp_path: Path, block_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(7)
    weights = Weights.draw(rng, 32, 256, block_size, 4)
    rows = rng.standard_normal((4, 256)).astype(np.float32)
    with caplog.at_level(logging.INFO):
        got = weights.open(tmp_path, rows).run({"rows": rows})["result"]
    assert "runs without aimass's own kernels" in caplog.text
    np.testing.assert_array_equal(got, weights.open(tmp_path, rows, own=False).run({"rows": rows})["result"])


@dataclass(frozen=True)
class Attention:
    """Random sequences with a cache, as a decoder's graph hands them to GroupQueryAttention."""

    num_heads: int
    num_kv_heads: int
    size: int
    rotary: bool = True
    window: int = -1
    is_packed: bool = True

    def feeds(self, rng: np.random.Generator, past: list[int], num_tokens: int, capacity: int) -> Arrays:
        batch, kv = len(past), self.num_kv_heads
        new = rng.standard_normal((batch, num_tokens, (self.num_heads + 2 * kv) * self.size)).astype(
            np.float32
        )
        cache = rng.standard_normal((2, batch, kv, capacity, self.size)).astype(np.float32)
        lengths = np.array(past, np.int32) + num_tokens
        split = [self.num_heads * self.size, (self.num_heads + kv) * self.size]
        query, key, value = np.split(new, split, axis=-1)
        parts = {"query": new} if self.is_packed else {"query": query, "key": key, "value": value}
        return {
            **{name: np.ascontiguousarray(part) for name, part in parts.items()},
            "past_key": cache[0], "past_value": cache[1],
            "seqlens_k": lengths - 1, "total": np.array([lengths.max()], np.int32),
        }  # fmt: skip

    def open(self, folder: Path, feeds: Arrays, **options: Any) -> Session:
        angles = np.outer(np.arange(600), 1 / 10000 ** (np.arange(self.size // 2) / (self.size // 2)))
        tables = {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
        new = ["query", "", ""] if self.is_packed else ["query", "key", "value"]
        return open_node(
            folder, "GroupQueryAttention",
            [*new, "past_key", "past_value", "seqlens_k", "total", *(["cos", "sin"] if self.rotary else [])],
            ["result", "present_key", "present_value"], tables if self.rotary else {}, feeds,
            num_heads=self.num_heads, kv_num_heads=self.num_kv_heads, do_rotary=int(self.rotary),
            local_window_size=self.window, **options,
        )  # fmt: skip


SHAPES = [
    Attention(9, 3, 64),
    Attention(4, 4, 64, rotary=False),
    Attention(6, 2, 80),
    Attention(4, 2, 40, rotary=False),
    Attention(8, 1, 128, window=40),
    Attention(6, 3, 32, is_packed=False),
]


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("past", "num_tokens"), [([5], 1), ([100, 17, 260], 1), ([0], 70), ([33], 90), ([64], 5)]
)
def test_attention_is_that_of_the_runtime(
    tmp_path: Path, shape: Attention, past: list[int], num_tokens: int
) -> None:
    feeds = shape.feeds(np.random.default_rng(len(past) + num_tokens), past, num_tokens, capacity=300)
    got = shape.open(tmp_path, feeds).run(feeds)
    expected = shape.open(tmp_path, feeds, own=False).run(feeds)
    np.testing.assert_allclose(got["result"], expected["result"], atol=2e-5)
    for row, length in enumerate(np.array(past) + num_tokens):
        for name in ("present_key", "present_value"):
            np.testing.assert_allclose(got[name][row, :, :length], expected[name][row, :, :length], atol=2e-6)


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES)
def test_a_prompt_in_one_chunk_has_the_bits_of_its_tokens_one_by_one(
    tmp_path: Path, shape: Attention
) -> None:
    num_tokens, capacity = 70, 128
    feeds = shape.feeds(np.random.default_rng(11), [20], num_tokens, capacity)
    session = shape.open(tmp_path, feeds)
    whole = session.run(feeds)
    keys, values = feeds["past_key"], feeds["past_value"]
    single = shape.open(tmp_path, feeds, num_threads=1)
    for token in range(num_tokens):
        new = {name: feeds[name][:, token : token + 1] for name in ("query", "key", "value") if name in feeds}
        lengths = {"seqlens_k": np.array([20 + token], np.int32), "total": np.array([21 + token], np.int32)}
        step = single.run({**new, **lengths, "past_key": keys, "past_value": values})
        keys, values = step["present_key"], step["present_value"]
        np.testing.assert_array_equal(step["result"][0, 0], whole["result"][0, token])


@needs_kernels
def test_sequences_do_not_see_one_another(tmp_path: Path) -> None:
    shape = SHAPES[0]
    feeds = shape.feeds(np.random.default_rng(12), [50, 7, 120], 1, 128)
    together = shape.open(tmp_path, feeds).run(feeds)["result"]
    for row in range(3):
        alone = {name: array[row : row + 1] for name, array in feeds.items() if name != "total"}
        total = {"total": alone["seqlens_k"] + 1}
        np.testing.assert_array_equal(
            shape.open(tmp_path, feeds).run({**alone, **total})["result"][0], together[row]
        )


@needs_kernels
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seqlens_k": np.array([500], np.int32)}, "seqlens_k: expected 1 to 6 tokens, got 501"),
        (
            {"total": np.array([700], np.int32), "seqlens_k": np.array([699], np.int32)},
            "cos_cache: no angles for 700",
        ),
        ({"past_key": np.zeros((1, 2, 300, 64), np.float32)}, r"expected the shape \[1, 3, 300, 64\]"),
        ({"query": np.zeros((1, 1, 100), np.float32)}, "expected a width of 15 heads, got 100"),
    ],
)
def test_inputs_that_do_not_fit_are_errors(tmp_path: Path, change: Arrays, message: str) -> None:
    feeds = SHAPES[0].feeds(np.random.default_rng(13), [5], 1, 300)
    session = SHAPES[0].open(tmp_path, feeds)
    with pytest.raises(Exception, match=message):
        session.run({**feeds, **change})


@needs_kernels
def test_attention_in_half_precision_runs_with_the_runtimes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shape = replace(SHAPES[0], rotary=False)
    feeds = shape.feeds(np.random.default_rng(14), [5], 1, 64)
    half = {name: a.astype(np.float16) if a.dtype == np.float32 else a for name, a in feeds.items()}
    with caplog.at_level(logging.INFO):
        got = shape.open(tmp_path, half).run(half)["result"]
    assert "runs without aimass's own kernels" in caplog.text
    assert helper.np_dtype_to_tensor_dtype(got.dtype) == TensorProto.FLOAT16


@needs_kernels
def test_attention_with_a_soft_cap_runs_with_the_runtimes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    feeds = SHAPES[0].feeds(np.random.default_rng(15), [5], 1, 64)
    with caplog.at_level(logging.INFO):
        got = SHAPES[0].open(tmp_path, feeds, softcap=10.0).run(feeds)["result"]
    assert "softcap is not supported" in caplog.text
    np.testing.assert_array_equal(
        got, SHAPES[0].open(tmp_path, feeds, own=False, softcap=10.0).run(feeds)["result"]
    )
