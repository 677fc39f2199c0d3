"""Puts integer products in the place of float ones in a graph, with the bias and the sum that follow them.

A product of 8-bit integers adds its bias by itself. What stays float of a product, a few columns of its
input, joins the sum after it. Must not know how levels are chosen.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from aimass_exporters.graphs.activation_levels import ActivationLevels, Channels, IntegerWeights, Matrix
from aimass_exporters.graphs.graph_quantization import drop_unused, require_domain

_DOMAIN = "com.microsoft"


class IntegerProducts:
    """The nodes and tensors that take the place of products. Owns the graph until `apply` returns."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.replaced: list[str] = []
        """Results of the products that were replaced."""
        self.float_weights: set[str] = set()
        """Names of the weights of channels that stay float."""
        self._model = model
        self._lengths = {t.name: t.dims[0] for t in model.graph.initializer if len(t.dims) == 1}
        self._readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self._readers[name].append(node)
        self._products: dict[str, list[NodeProto]] = {}
        self._rounding: dict[str, list[NodeProto]] = {}
        self._tensors: list[TensorProto] = []

    def replace(self, node: NodeProto, matrix: Matrix, levels: ActivationLevels) -> None:
        """Plan the integer form of a product with `matrix` [inputs, outputs]."""
        source, result = node.input[0], node.output[0]
        if source not in self._rounding:
            self._rounding[source] = self._round(source, levels)
        total = self._sum_after(result)
        bias = self._taken_bias(total, num_outputs=matrix.shape[1])
        planned = [self._product(node, IntegerWeights.of(levels.weights(matrix)), bias)]
        if len(levels.outliers):
            planned += self._outliers(node, matrix, levels.outliers)
            self._join(planned, total)
        self._products[result] = planned
        self.replaced.append(result)

    def apply(self) -> None:
        """Put the planned nodes where the products were."""
        graph = self._model.graph
        planned = [new for node in graph.node for new in self._in_place_of(node)]
        kept = _without_sums_of_one(planned)
        del graph.node[:]
        graph.node.extend(kept)
        graph.initializer.extend(self._tensors)
        require_domain(self._model)
        drop_unused(graph)

    def _in_place_of(self, node: NodeProto) -> list[NodeProto]:
        product = self._products.get(node.output[0])
        if product is None:
            return [node]
        return [*self._rounding.pop(node.input[0], []), *product]  # the first reader rounds for all

    def _sum_after(self, result: str) -> NodeProto | None:
        """Return the Add or Sum that is the only reader of a result."""
        readers = self._readers[result]
        return readers[0] if len(readers) == 1 and readers[0].op_type in ("Add", "Sum") else None

    def _taken_bias(self, total: NodeProto | None, *, num_outputs: int) -> str:
        """Take a constant, one number for each output, out of the sum after a product; return its name."""
        if total is None:
            return ""
        bias = next((name for name in total.input if self._lengths.get(name) == num_outputs), "")
        if bias:
            _as_sum(total).input.remove(bias)
        return bias

    def _product(self, node: NodeProto, weights: IntegerWeights, bias: str) -> NodeProto:
        source, name = node.input[0], f"{node.output[0]}_static"
        levels, scale, zero_point = (f"{source}_{part}" for part in ("levels", "scale", "zero_point"))
        inputs = [levels, self._add(f"{name}_weights", weights.levels), scale]
        inputs += [self._add(f"{name}_scales", weights.scales), zero_point]
        inputs += ["", bias] if bias else []  # the empty one is a zero point of the weights
        return helper.make_node(
            "MatMulIntegerToFloat", inputs, list(node.output), name=node.name, domain=_DOMAIN
        )

    def _outliers(self, node: NodeProto, matrix: Matrix, outliers: Channels) -> list[NodeProto]:
        """Multiply the columns of `outliers` as floats."""
        source, name = node.input[0], f"{node.output[0]}_outlier"
        columns, result = f"{name}_columns", f"{name}_result"
        channels = self._add(f"{name}_channels", outliers)
        weights = self._add(f"{name}_weights", matrix[outliers])
        self.float_weights.add(weights)
        return [
            helper.make_node("Gather", [source, channels], [columns], name=columns, axis=-1),
            helper.make_node("MatMul", [columns, weights], [result], name=result),
        ]

    def _join(self, planned: list[NodeProto], total: NodeProto | None) -> None:
        """Let the sum after a product, or a new one, add what was multiplied as floats."""
        product, part = planned[0], planned[-1].output[0]
        if total is not None:
            _as_sum(total).input.append(part)
            return
        result, inner = product.output[0], f"{product.output[0]}_of_integers"
        product.output[0] = inner
        planned.append(helper.make_node("Sum", [inner, part], [result], name=f"{result}_total"))

    def _round(self, source: str, levels: ActivationLevels) -> list[NodeProto]:
        nodes, value = [], source
        if levels.factors is not None:
            value = f"{source}_smoothed"
            factors = self._add(f"{source}_factors", levels.factors)
            nodes.append(helper.make_node("Mul", [source, factors], [value], name=value))
        scale = self._add(f"{source}_scale", np.array(levels.scale))
        zero_point = self._add(f"{source}_zero_point", np.array(levels.zero_point))
        rounded = f"{source}_levels"
        rounding = helper.make_node("QuantizeLinear", [value, scale, zero_point], [rounded], name=rounded)
        return [*nodes, rounding]

    def _add(self, name: str, array: NDArray[Any]) -> str:
        self._tensors.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name


def _as_sum(node: NodeProto) -> NodeProto:
    """Return an Add as a Sum, which takes any number of inputs."""
    node.op_type = "Sum"
    return node


def _without_sums_of_one(nodes: list[NodeProto]) -> list[NodeProto]:
    """Leave out the sums whose bias was taken and that had nothing else to add."""
    alone = {n.input[0]: n.output[0] for n in nodes if n.op_type == "Sum" and len(n.input) == 1}
    kept = [node for node in nodes if not (node.op_type == "Sum" and len(node.input) == 1)]
    for node in kept:
        for index, name in enumerate(node.output):
            node.output[index] = alone.get(name, name)
    return kept
