"""Joins neighbouring operators of a traced graph where ONNX Runtime has one kernel for them.

A decode step reads each weight once; every operator beside that costs some microseconds and a meeting of the
threads. The graph computes what it did before. Must not know files, models or attention.

Source: the fusion rules of onnxscript, for what onnxruntime's own optimiser leaves apart when a sum is read
twice, as the residual stream of a decoder is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.rewriter.ort_fusions.skip_normalization import (
    fuse_skip_layer_normalization,
    fuse_skip_rms_normalization,
)

from aimass_exporters.graphs.constants import add_constant, constant_array


def fuse_operators(model: ir.Model) -> None:
    """Join products that share their input, and sums with the norms that follow; drop idle reshaping."""
    drop_idle_reshapes(model.graph)
    join_products(model.graph)
    RemoveUnusedNodesPass()(model)
    fuse_skip_rms_normalization(model)
    fuse_skip_layer_normalization(model)


def drop_idle_reshapes(graph: ir.Graph) -> None:
    """Let readers of a chain of Reshapes that comes back to the shape it started from read its start."""
    for node in graph:
        if node.op_type != "Reshape":
            continue
        start, end = _before_reshapes(node), node.outputs[0]
        if start.shape is not None and start.shape == end.shape and not end.is_graph_output():
            end.replace_all_uses_with(start)


def _before_reshapes(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None, "Reshape has an input"
    while (before := value.producer()) is not None and before.op_type == "Reshape":
        assert before.inputs[0] is not None, "Reshape has an input"
        value = before.inputs[0]
    return value


def join_products(graph: ir.Graph) -> None:
    """Compute products of one input with several constant matrices, such as gate and up, as one, and split
    it.
    """
    for products in _by_input(graph):
        if len(products) > 1:
            _join(graph, products)


def _by_input(graph: ir.Graph) -> Iterable[list[ir.Node]]:
    """Return the products of each input with matrices that nothing else reads."""
    groups: dict[ir.Value, list[ir.Node]] = defaultdict(list)
    for node in graph:
        if node.op_type != "MatMul" or node.inputs[0] is None:
            continue
        weight = node.inputs[1]
        if weight is not None and weight.const_value is not None and _is_own_matrix(weight):
            groups[node.inputs[0]].append(node)
    return groups.values()


def _is_own_matrix(weight: ir.Value) -> bool:
    return weight.shape is not None and len(weight.shape) == 2 and len(weight.uses()) == 1


def _join(graph: ir.Graph, products: Sequence[ir.Node]) -> None:
    weights = [constant_array(product.inputs[1]) for product in products]
    name = f"{products[0].inputs[1].name}.joined"  # type: ignore[union-attr]  # checked by _by_input
    joined = add_constant(graph, name, np.concatenate(weights, axis=1))
    sizes = add_constant(graph, f"{name}.sizes", np.array([weight.shape[1] for weight in weights]))
    product = ir.node("MatMul", [products[0].inputs[0], joined])
    split = ir.node("Split", [product.outputs[0], sizes], attributes={"axis": -1}, num_outputs=len(products))
    graph.insert_before(products[0], [product, split])
    for part, old in zip(split.outputs, products, strict=True):
        part.shape, part.type = old.outputs[0].shape, old.outputs[0].type
        old.outputs[0].replace_all_uses_with(part)
