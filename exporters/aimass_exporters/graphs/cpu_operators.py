"""Rewrites what the transformer optimiser fused as operators with faster kernels on the CPU.

Its operators are made for CUDA. On the CPU, with ONNX Runtime 1.31, SkipLayerNormalization takes six times as
long as a Sum and a LayerNormalization, and MultiHeadAttention with a mask up to twice as long as ONNX's own
Attention, which reads queries, keys and values where they lie (docs/decisions/022). A Sum, and not an Add:
the runtime would fuse an Add with the norm again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from aimass_exporters.graphs.graph_quantization import drop_unused, producers

ATTENTION_OPSET = 23
"""The first opset with ONNX's Attention."""
_OLDEST_OPSET = 18
"""From here on the operators of encoders only gained element types."""


def use_cpu_operators(model: onnx.ModelProto) -> None:
    """Rewrite, in place, the attention and the norms that can be; others stay as they are."""
    opset = next(entry for entry in model.opset_import if not entry.domain)
    if opset.version < _OLDEST_OPSET:
        return
    opset.version = max(opset.version, ATTENTION_OPSET)
    model.ir_version = max(model.ir_version, helper.find_min_ir_version_for([opset]))
    _Rewriter(model.graph).run()
    drop_unused(model.graph)


class _Rewriter:
    """Rewrites one graph. Owns it until `run` returns."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._producers = producers(graph)
        self._masks: dict[str, str] = {}
        self._nodes: list[NodeProto] = []

    def run(self) -> None:
        for node in self._graph.node:
            if node.op_type == "SkipLayerNormalization":
                self._sum_and_norm(node)
            elif node.op_type == "MultiHeadAttention" and self._is_self_attention(node):
                self._attention(node)
            else:
                self._nodes.append(node)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)

    def _sum_and_norm(self, node: NodeProto) -> None:
        """SkipLayerNormalization: hidden, skipped, weight, bias of the norm, bias of the product before."""
        hidden, skipped, weight, norm_bias, bias = _padded(node.input, 5)
        total = _padded(node.output, 4)[3] or f"{node.output[0]}_sum"
        self._add("Sum", [hidden, *filter(None, [bias]), skipped], total)
        norm_inputs = [total, weight, *filter(None, [norm_bias])]
        self._add("LayerNormalization", norm_inputs, node.output[0], epsilon=_attributes(node)["epsilon"])

    def _is_self_attention(self, node: NodeProto) -> bool:
        """Tell whether a node has one query, key, value, and at most their bias and a mask [batch, seq]."""
        query, key, value, bias, mask, *others = _padded(node.input, 10)
        is_plain = all((query, key, value)) and not any(others) and len(node.output) == 1
        return is_plain and (not bias or bias in self._weights) and (not mask or self._is_row_mask(mask))

    def _is_row_mask(self, name: str) -> bool:
        """Tell whether a mask is an input [batch, seq] of the graph, whatever its element type became."""
        while (node := self._producers.get(name)) is not None and node.op_type == "Cast":
            name = node.input[0]
        return any(value.name == name and _rank(value) == 2 for value in self._graph.input)

    def _attention(self, node: NodeProto) -> None:
        *projected, bias, mask = _padded(node.input, 5)
        if bias:
            projected = self._with_bias(projected, bias)
        attributes = _attributes(node)
        num_heads = attributes["num_heads"]
        options = {"scale": attributes["scale"]} if attributes.get("scale") else {}
        inputs = [*projected, *([self._mask_of(mask)] if mask else [])]
        self._add(
            "Attention", inputs, node.output[0], q_num_heads=num_heads, kv_num_heads=num_heads, **options
        )

    def _with_bias(self, projected: list[str], name: str) -> list[str]:
        """Add to query, key and value what the optimiser had packed into one bias."""
        biased = []
        for value, bias in zip(projected, np.split(self._weight(name), 3), strict=True):
            self._constant(f"{value}_bias", bias)
            biased.append(self._add("Add", [value, f"{value}_bias"], f"{value}_biased"))
        return biased

    def _mask_of(self, mask: str) -> str:
        """Return a mask [batch, 1, seq, seq] that is true where a key [batch, seq] is a token."""
        if mask not in self._masks:
            kept = self._add("Cast", [mask], f"{mask}_kept", to=onnx.TensorProto.BOOL)
            self._constant(f"{mask}_middle_axes", np.array([1, 2]))
            keys = self._add("Unsqueeze", [kept, f"{mask}_middle_axes"], f"{mask}_keys")
            length = self._add("Shape", [mask], f"{mask}_length", start=1, end=2)
            self._constant(f"{mask}_one", np.array([1]))
            one = f"{mask}_one"
            shape = self._add("Concat", [one, one, length, one], f"{mask}_square", axis=0)
            self._masks[mask] = self._add("Expand", [keys, shape], f"{mask}_of_queries")
        return self._masks[mask]

    def _add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def _constant(self, name: str, array: NDArray[Any]) -> None:
        self._graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))

    def _weight(self, name: str) -> NDArray[Any]:
        return numpy_helper.to_array(self._weights[name])


def _padded(names: Any, count: int) -> list[str]:
    """Return the names of all inputs or outputs a node may have, empty where it does without."""
    return [*names, *[""] * (count - len(names))]


def _attributes(node: NodeProto) -> Mapping[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _rank(value: onnx.ValueInfoProto) -> int:
    return len(value.type.tensor_type.shape.dim)
