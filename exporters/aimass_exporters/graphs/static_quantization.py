"""Products in 8-bit integers whose activation ranges are fixed at export: the fast way where a run has many
rows.

Rounding activations by the range of the whole batch is fast too, but makes a row depend on its neighbours.
Fixed ranges do not, and need no pass over the data to find them. What makes them accurate enough is
smoothing: a channel that reaches far is divided by a factor that its weights are multiplied by (SmoothQuant,
Xiao et al., arXiv 2211.10438), with the strength that measured best for each product. Products that still
lose too much, and those that give the output, are left to `graph_quantization`.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from aimass_exporters.graphs.external_file import save_graph
from aimass_exporters.graphs.graph_quantization import drop_unused, require_domain

STRENGTHS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9)
"""How much of a channel's reach goes into its weights: 0 none, 1 all."""
MAX_ERROR = 0.06
"""Largest error of a product that is accepted: see `product_error`."""
MAX_ROWS = 2048
"""Rows of activations that errors are measured on. Ranges are taken from all rows."""
_LEVELS, _WEIGHT_TOP = 255, 127
_SMALLEST_REACH = 1e-5
_DOMAIN = "com.microsoft"
_MASK = "attention_mask"

Feeds = Mapping[str, NDArray[Any]]
Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Observed:
    """What flowed into a product."""

    rows: Matrix  # [at most about MAX_ROWS, channels]
    low: Matrix  # [channels]
    high: Matrix  # [channels]


@dataclass(frozen=True, slots=True)
class ActivationLevels:
    """How the numbers that flow into a product become integers: (x * factors) / scale + zero_point."""

    factors: Matrix | None  # [channels]; None where nothing is smoothed
    scale: np.float32
    zero_point: np.uint8

    @classmethod
    def of(cls, seen: Observed, strength: float) -> ActivationLevels:
        """Cover the whole observed range, zero being one of the levels."""
        factors = _smoothing(seen, strength) if strength else None
        shares = np.float32(1) if factors is None else factors
        low, high = min(float((seen.low * shares).min()), 0.0), max(float((seen.high * shares).max()), 0.0)
        scale = np.float32((high - low) / _LEVELS or 1.0)
        return cls(factors, scale, np.uint8(np.clip(round(-low / scale), 0, _LEVELS)))

    def rounded(self, rows: Matrix) -> Matrix:
        """Return smoothed rows as the integers stand for them."""
        smoothed = rows if self.factors is None else rows * self.factors
        zero = np.float32(self.zero_point)
        levels = np.clip(np.rint(smoothed / self.scale) + zero, 0, _LEVELS) - zero
        rounded: Matrix = (levels * self.scale).astype(np.float32)
        return rounded

    def smoothed_weights(self, weights: Matrix) -> Matrix:
        """Return weights [inputs, outputs] that undo the smoothing."""
        return weights if self.factors is None else weights / self.factors[:, None]


@dataclass(frozen=True, slots=True)
class IntegerWeights:
    """A matrix [inputs, outputs] in signed 8-bit integers with one scale for each output."""

    levels: NDArray[np.int8]
    scales: Matrix  # [outputs]

    @classmethod
    def of(cls, weights: Matrix) -> IntegerWeights:
        """Round to the nearest level."""
        reach = np.abs(weights).max(axis=0) / _WEIGHT_TOP
        scales = np.where(reach == 0, 1, reach).astype(np.float32)
        return cls(np.rint(weights / scales).astype(np.int8), scales)

    def dequantized(self) -> Matrix:
        """Return the matrix that these numbers stand for."""
        matrix: Matrix = self.levels.astype(np.float32) * self.scales
        return matrix


def quantize_statically(model: onnx.ModelProto, feeds: Sequence[Feeds]) -> list[str]:
    """Replace, in place, the products that lose little by it; return the names of their results.

    `feeds` are typical inputs of the graph; rows that their attention mask leaves out do not count.
    """
    graph = model.graph
    weights = {t.name: numpy_helper.to_array(t) for t in graph.initializer if len(t.dims) == 2}
    outputs = {value.name for value in graph.output}
    products: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights and not outputs.intersection(node.output):
            products[node.input[0]].append(node)
    changes = _Changes()
    for name, seen in observed(model, list(products), feeds):
        levels = best_levels(seen, [weights[node.input[1]] for node in products[name]])
        for node in products[name]:
            matrix = weights[node.input[1]]
            if product_error(seen.rows, matrix, levels) <= MAX_ERROR:
                changes.replace(node, levels, IntegerWeights.of(levels.smoothed_weights(matrix)))
    changes.apply(model)
    return sorted(changes.replaced)


def best_levels(seen: Observed, weights: Sequence[Matrix]) -> ActivationLevels:
    """Return the levels with the least error over all the products that read these activations."""
    candidates = [ActivationLevels.of(seen, strength) for strength in STRENGTHS]
    return min(candidates, key=lambda levels: sum(product_error(seen.rows, w, levels) for w in weights))


def product_error(rows: Matrix, weights: Matrix, levels: ActivationLevels) -> float:
    """Return how far the integer product is off in a typical row, as a share of the row's own length.

    Each row counts the same: one that is far longer than the others would hide what happens to them.
    """
    exact = rows @ weights
    found = levels.rounded(rows) @ IntegerWeights.of(levels.smoothed_weights(weights)).dequantized()
    lengths = np.maximum(np.linalg.norm(exact, axis=1), _SMALLEST_REACH)
    return float(np.mean(np.linalg.norm(found - exact, axis=1) / lengths))


def observed(
    model: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Feeds]
) -> Iterator[tuple[str, Observed]]:
    """Run the graph on all feeds and yield what its values of these names were."""
    session = _probe(model, names)
    wanted = {value.name for value in session.get_inputs()}
    seen: dict[str, list[Observed]] = defaultdict(list)
    rows_each = max(1, MAX_ROWS // len(feeds))
    for feed in feeds:
        values = session.run(list(names), {name: array for name, array in feed.items() if name in wanted})
        for name, value in zip(names, values, strict=True):
            rows = _rows(value, feed[_MASK])
            seen[name].append(Observed(rows[:rows_each].copy(), rows.min(axis=0), rows.max(axis=0)))
    for name, parts in seen.items():
        yield (
            name,
            Observed(
                np.concatenate([part.rows for part in parts]),
                np.min([part.low for part in parts], axis=0),
                np.max([part.high for part in parts], axis=0),
            ),
        )


def _probe(model: onnx.ModelProto, names: Sequence[str]) -> ort.InferenceSession:
    """Open a copy of the graph that shows inner values as well. By way of files: a message ends at 2 GB."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    shown = {value.name for value in probe.graph.output}
    probe.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in shown
    )
    with tempfile.TemporaryDirectory(prefix="aimass-probe-") as folder:
        path = save_graph(probe, Path(folder) / "probe.onnx")
        return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def _rows(value: Matrix, mask: NDArray[Any]) -> Matrix:
    """Return [rows, channels]: of [batch, seq, channels] only what the mask [batch, seq] keeps."""
    if value.shape[:-1] == mask.shape:
        value = value[mask.astype(bool)]
    rows: Matrix = value.reshape(-1, value.shape[-1])
    return rows


def _smoothing(seen: Observed, strength: float) -> Matrix:
    reach = np.maximum(np.maximum(-seen.low, seen.high), _SMALLEST_REACH) ** strength
    factors: Matrix = (np.exp(np.log(reach).mean()) / reach).astype(np.float32)
    return factors


class _Changes:
    """The nodes and tensors that take the place of products."""

    def __init__(self) -> None:
        self.replaced: set[str] = set()
        self._products: dict[str, NodeProto] = {}
        self._rounding: dict[str, list[NodeProto]] = {}
        self._tensors: dict[str, TensorProto] = {}

    def replace(self, node: NodeProto, levels: ActivationLevels, weights: IntegerWeights) -> None:
        """Plan the integer form of a product."""
        source = node.input[0]
        if source not in self._rounding:
            self._rounding[source] = self._round(source, levels)
        name = f"{node.output[0]}_static"
        self._add(f"{name}_weights", weights.levels)
        self._add(f"{name}_scales", weights.scales)
        self._products[node.output[0]] = helper.make_node(
            "MatMulIntegerToFloat",
            [
                f"{source}_levels",
                f"{name}_weights",
                f"{source}_scale",
                f"{name}_scales",
                f"{source}_zero_point",
            ],
            list(node.output),
            name=node.name,
            domain=_DOMAIN,
        )
        self.replaced.add(node.output[0])

    def apply(self, model: onnx.ModelProto) -> None:
        """Put the planned nodes where the products were."""
        graph, nodes, is_rounded = model.graph, [], set()
        for node in graph.node:
            product = self._products.get(node.output[0])
            if product is not None and node.input[0] not in is_rounded:
                is_rounded.add(node.input[0])
                nodes += self._rounding[node.input[0]]
            nodes.append(product or node)
        del graph.node[:]
        graph.node.extend(nodes)
        graph.initializer.extend(self._tensors.values())
        require_domain(model)
        drop_unused(graph)

    def _round(self, source: str, levels: ActivationLevels) -> list[NodeProto]:
        nodes, value = [], source
        if levels.factors is not None:
            value = f"{source}_smoothed"
            self._add(f"{source}_factors", levels.factors)
            nodes.append(helper.make_node("Mul", [source, f"{source}_factors"], [value], name=value))
        self._add(f"{source}_scale", np.array(levels.scale))
        self._add(f"{source}_zero_point", np.array(levels.zero_point))
        rounded = f"{source}_levels"
        inputs = [value, f"{source}_scale", f"{source}_zero_point"]
        return [*nodes, helper.make_node("QuantizeLinear", inputs, [rounded], name=rounded)]

    def _add(self, name: str, array: NDArray[Any]) -> None:
        self._tensors[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
