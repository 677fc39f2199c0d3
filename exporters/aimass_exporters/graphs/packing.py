"""Packs what feeds each attention node: one MatMul for query, key and value; rotation inside the node.

A decode step of a small model spends its time on many small operators; this leaves half of the nodes. Works
on the traced graph, so that it serves every family whose projections it recognises, and leaves the others as
they are. Must not know files.

Source: packed input and `do_rotary` of onnxruntime's com.microsoft.GroupQueryAttention.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass
from transformers import PreTrainedModel

from aimass_exporters.graphs.adapted_products import Part, marked_parts, marker
from aimass_exporters.graphs.constants import add_constant, constant_array

_LAYOUT_OPS = frozenset({"Reshape", "Transpose"})
_QUERY, _KEY, _VALUE, _COS, _SIN = 0, 1, 2, 7, 8


@dataclass(frozen=True, slots=True)
class RotaryCache:
    """Cosines and sines of every position: [max_positions, head_dim / 2] each."""

    cos: NDArray[np.float32]
    sin: NDArray[np.float32]


def rotary_cache(model: PreTrainedModel, max_positions: int) -> RotaryCache | None:
    """Ask the model's own rotary module for all positions, scaling included; None for a model without one."""
    module = getattr(model.base_model, "rotary_emb", None)
    if module is None:
        return None
    positions = torch.arange(max_positions).unsqueeze(0)
    with torch.no_grad():
        cos, sin = module(torch.zeros(1, dtype=torch.float32), positions)  # [1, max_positions, head_dim]
    half = cos.shape[-1] // 2
    return RotaryCache(cos[0, :, :half].float().numpy(), sin[0, :, :half].float().numpy())


def pack_attention(model: ir.Model, rotary: RotaryCache | None) -> int:
    """Pack every attention node that can be; return how many were. The graph computes what it did before."""
    packer = _Packer(model.graph, rotary)
    num_packed = sum(packer.pack(node) for node in list(model.graph) if node.op_type == "GroupQueryAttention")
    RemoveUnusedNodesPass()(model)
    return num_packed


@dataclass(frozen=True, slots=True)
class _Projection:
    """A linear layer whose output reaches attention by changes of layout, and perhaps a rotation."""

    x: ir.Value
    weight: ir.Value  # [in, out]
    bias: ir.Value | None  # [out]
    is_rotated: bool
    adapted: str = ""
    """The layer whose adapters come on top; empty for none."""

    @property
    def width(self) -> int:
        """How many numbers it gives."""
        return int(constant_array(self.weight).shape[1])


class _Packer:
    """Owns the graph while it is being packed."""

    def __init__(self, graph: ir.Graph, rotary: RotaryCache | None) -> None:
        self._graph = graph
        self._rotary = rotary
        self._caches: tuple[ir.Value, ir.Value] | None = None

    def pack(self, node: ir.Node) -> bool:
        split = _shared_split(node)
        if split is not None:
            self._feed(node, split)
            return True
        projections = [_projection(value) for value in node.inputs[:3]]
        query, key, value = projections
        if query is None or key is None or value is None or not _can_join(query, key, value):
            return False
        if query.is_rotated and not self._may_rotate(node):
            return False
        self._feed(node, self._joined(node, [query, key, value]))
        if query.is_rotated:
            self._rotate(node)
        return True

    def _may_rotate(self, node: ir.Node) -> bool:
        """Whether the rotation covers whole heads, as the cache was computed."""
        past = node.inputs[3]
        head_dim = past.shape[3] if past is not None and past.shape is not None else None
        return self._rotary is not None and head_dim == 2 * self._rotary.cos.shape[1]

    def _joined(self, node: ir.Node, parts: list[_Projection]) -> ir.Value:
        name = f"{parts[0].weight.name}.packed"
        weight = add_constant(
            self._graph, name, np.concatenate([constant_array(p.weight) for p in parts], axis=1)
        )
        packed = self._insert(node, "MatMul", [parts[0].x, weight])
        if parts[0].bias is not None:
            biases = [constant_array(p.bias) for p in parts if p.bias is not None]
            bias = add_constant(self._graph, f"{name}.bias", np.concatenate(biases))
            packed = self._insert(node, "Add", [packed, bias])
        return self._marked(node, packed, parts)

    def _marked(self, node: ir.Node, packed: ir.Value, parts: list[_Projection]) -> ir.Value:
        """Let the adapters of the parts follow the packed product."""
        if not any(part.adapted for part in parts):
            return packed
        dtype = parts[0].weight.dtype
        assert dtype is not None, "weights have an element type"
        packed.dtype = dtype
        follows = marker(parts[0].x, packed, [Part(part.adapted, part.width) for part in parts])
        self._graph.insert_before(node, follows)
        return follows.outputs[0]

    def _insert(self, before: ir.Node, op_type: str, inputs: list[ir.Value]) -> ir.Value:
        added = ir.node(op_type, inputs)
        self._graph.insert_before(before, added)
        return added.outputs[0]

    @staticmethod
    def _feed(node: ir.Node, packed: ir.Value) -> None:
        node.replace_input_with(_QUERY, packed)
        node.replace_input_with(_KEY, None)
        node.replace_input_with(_VALUE, None)

    def _rotate(self, node: ir.Node) -> None:
        assert self._rotary is not None, "checked before packing"
        if self._caches is None:
            dtype = _numpy_dtype(node.inputs[3])
            self._caches = (
                add_constant(self._graph, "cos_cache", self._rotary.cos.astype(dtype)),
                add_constant(self._graph, "sin_cache", self._rotary.sin.astype(dtype)),
            )
        node.resize_inputs(_SIN + 1)
        node.replace_input_with(_COS, self._caches[0])
        node.replace_input_with(_SIN, self._caches[1])
        node.attributes["do_rotary"] = ir.AttrInt64("do_rotary", 1)


def _shared_split(node: ir.Node) -> ir.Value | None:
    """Return the packed tensor when query, key and value were one already and were split, as in GPT-2."""
    sources = [_before_layout(value) for value in node.inputs[:3]]
    split = sources[0].producer() if sources[0] is not None else None
    if split is None or split.op_type != "Split" or tuple(split.outputs) != tuple(sources):
        return None
    return split.inputs[0]


def _before_layout(value: ir.Value | None) -> ir.Value | None:
    while value is not None and (node := value.producer()) is not None and node.op_type in _LAYOUT_OPS:
        value = node.inputs[0]
    return value


def _projection(value: ir.Value | None) -> _Projection | None:
    value = _before_layout(value)
    node = value.producer() if value is not None else None
    is_rotated = node is not None and node.op_type == "RotaryEmbedding"
    if is_rotated:
        value = _before_layout(node.inputs[0]) if node is not None else None
        node = value.producer() if value is not None else None
    adapted = ""
    if node is not None and (parts := marked_parts(node)):
        adapted, product = parts[0].module, node.inputs[1]
        node = product.producer() if product is not None else None
    bias = None
    if node is not None and node.op_type == "Add":
        bias, node = _bias_and_matmul(node)
    if node is None or node.op_type != "MatMul":
        return None
    x, weight = node.inputs
    if x is None or weight is None or weight.const_value is None:
        return None
    return _Projection(x, weight, bias, is_rotated, adapted)


def _bias_and_matmul(add: ir.Node) -> tuple[ir.Value | None, ir.Node | None]:
    for bias, product in (add.inputs, reversed(add.inputs)):
        if bias is not None and product is not None and bias.const_value is not None:
            return bias, product.producer()
    return None, None


def _can_join(query: _Projection, key: _Projection, value: _Projection) -> bool:
    has_bias = [p.bias is not None for p in (query, key, value)]
    same_input = query.x is key.x is value.x
    return (
        same_input and len(set(has_bias)) == 1 and query.is_rotated == key.is_rotated and not value.is_rotated
    )


def _numpy_dtype(value: ir.Value | None) -> np.dtype[np.generic]:
    assert value is not None, "a cache input is bound"
    assert value.dtype is not None, "a cache input has an element type"
    return value.dtype.numpy()
