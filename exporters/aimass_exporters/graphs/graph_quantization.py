"""Replaces every matrix product with constant weights by MatMulNBits, and proves that none was left.

Tools that quantise skip silently what they do not recognise: a weight behind a Transpose, the
output layer of tied weights. Here each is either replaced or an error. An embedding that shares its weights
with the output layer shares its integers too (GatherBlockQuantized), so that tied weights stay stored once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from aimass_exporters.errors import QuantizationIncomplete
from aimass_exporters.graphs.block_quantization import BlockQuantized, quantize_blocks
from aimass_exporters.graphs.external_file import save_graph
from aimass_exporters.progress import Progress

ACCURACY_LEVEL = 4
"""Activations are rounded to 8 bits, in blocks of one row each: a row never depends on its neighbours in
the batch.
"""
_DOMAIN = "com.microsoft"
_PACKED_ATTENTION = frozenset({"Attention", "DecoderMaskedSelfAttention", "PackedAttention", "QAttention"})

StaysFloat = Callable[[str], bool]
"""Tells of the name of a weight whether it is float on purpose."""


def _nothing(_name: str) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class WeightBits:
    """How many bits each matrix gets."""

    body: int
    output_layer: int = 8
    """The product that gives the logits: its errors are not averaged by later layers, and it is one matrix
    of many.
    """


def quantize_model(
    model: onnx.ModelProto,
    target: Path,
    bits: WeightBits,
    progress: Progress,
    *,
    stays_float: StaysFloat = _nothing,
) -> None:
    """Quantise a loaded graph, which is used up, and write it. Raises `QuantizationIncomplete` when a product
    keeps float weights that do not stay float.
    """
    quantizer = GraphQuantizer(model, bits, stays_float=stays_float)
    for done, total in quantizer.run():
        progress.advance(done, total)
    if left := list(float_products(model, stays_float=stays_float)):
        raise QuantizationIncomplete(left=left)
    save_graph(model, target)


class GraphQuantizer:
    """Quantises one graph in place. Owns it until `run` is exhausted."""

    def __init__(
        self, model: onnx.ModelProto, bits: WeightBits, *, stays_float: StaysFloat = _nothing
    ) -> None:
        self._graph = model.graph
        self._bits = bits
        self._stays_float = stays_float
        self._weights = {tensor.name: tensor for tensor in self._graph.initializer}
        self._producers = producers(self._graph)
        self._quantized: dict[str, BlockQuantized] = {}
        self._new_tensors: list[TensorProto] = []
        require_domain(model)

    def run(self) -> Iterator[tuple[int, int]]:
        """Replace one node after another; yields how many are done, and of how many."""
        nodes = list(self._graph.node)
        replaced: list[NodeProto] = []
        for done, node in enumerate(nodes):
            replaced += self._replacement(node)
            yield done, len(nodes)
        replaced = [new for node in replaced for new in self._shared_embedding(node)]
        del self._graph.node[:]
        self._graph.node.extend(replaced)
        self._graph.initializer.extend(self._new_tensors)
        drop_unused(self._graph)

    def _replacement(self, node: NodeProto) -> list[NodeProto]:
        if not is_plain_product(node) or self._stays_float(node.input[1]):
            return [node]
        name, is_transposed = self._constant(node.input[1])
        if name is None or len(self._weights[name].dims) != 2:
            return [node]
        is_transposed ^= is_gemm_of_transposed(node)
        bits = self._bits.output_layer if self._gives_logits(node) else self._bits.body
        matrix = self._quantize(name, is_transposed=is_transposed, bits=bits)
        bias = ["", node.input[2]] if len(node.input) > 2 else []  # the empty input is an order of columns
        return [
            helper.make_node(
                "MatMulNBits",
                [node.input[0], *self._tensor_names(name, bits), *bias],
                list(node.output),
                name=node.name,
                domain=_DOMAIN,
                K=matrix.num_inputs,
                N=len(matrix.levels),
                bits=bits,
                block_size=matrix.block_size,
                accuracy_level=ACCURACY_LEVEL,
            )
        ]

    def _constant(self, name: str) -> tuple[str | None, bool]:
        """Return the weights behind a product's input, if it is constant, and whether they are transposed."""
        if name in self._weights:
            return name, False
        producer = self._producers.get(name)
        if producer is None or producer.op_type != "Transpose" or producer.input[0] not in self._weights:
            return None, False
        return producer.input[0], True

    def _gives_logits(self, node: NodeProto) -> bool:
        """Tell whether this is the last product: only reshaping, casting or scaling stand between it and
        `logits`.
        """
        name = "logits"
        while (producer := self._producers.get(name)) is not None and producer is not node:
            if producer.op_type in ("MatMul", "Gemm"):
                return False
            name = producer.input[0]
        return producer is node

    def _quantize(self, name: str, *, is_transposed: bool, bits: int) -> BlockQuantized:
        key = f"{name}_q{bits}"
        if key not in self._quantized:
            matrix = numpy_helper.to_array(self._weights[name]).astype(np.float32)
            quantized = quantize_blocks(matrix if is_transposed else matrix.T, bits=bits)
            self._quantized[key] = quantized
            self._add(key, quantized.packed_levels())
            self._add(f"{key}_scales", quantized.scales)
            self._add(f"{key}_zero_points", quantized.packed_zero_points())
        return self._quantized[key]

    def _tensor_names(self, name: str, bits: int) -> list[str]:
        key = f"{name}_q{bits}"
        return [key, f"{key}_scales", f"{key}_zero_points"]

    def _add(self, name: str, array: NDArray[np.uint8] | NDArray[np.float32] | NDArray[np.int64]) -> None:
        self._new_tensors.append(numpy_helper.from_array(np.ascontiguousarray(array), name))

    def _shared_embedding(self, node: NodeProto) -> list[NodeProto]:
        """Let an embedding read the integers of the output layer when both have the same weights."""
        key = f"{node.input[0]}_q{self._bits.output_layer}" if node.op_type == "Gather" else ""
        shared = self._quantized.get(key)
        if shared is None or shared.num_inputs % shared.block_size:
            return [node]
        flat = f"{key}_rows"
        bits = self._bits.output_layer
        self._add(f"{flat}_shape", np.array([len(shared.levels), -1], np.int64))
        return [
            helper.make_node("Reshape", [key, f"{flat}_shape"], [flat], name=flat),
            helper.make_node(
                "GatherBlockQuantized",
                [flat, node.input[1], f"{key}_scales", f"{key}_zero_points"],
                list(node.output),
                name=node.name,
                domain=_DOMAIN,
                bits=bits,
                block_size=shared.block_size,
                gather_axis=0,
                quantize_axis=1,
            ),
        ]


def is_plain_product(node: NodeProto) -> bool:
    """Tell whether a node is a product, perhaps of transposed weights and with a bias, and nothing more."""
    if node.domain or node.op_type not in ("MatMul", "Gemm"):
        return False
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    is_scaled = attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0
    return not is_scaled and not attributes.get("transA", 0)


def is_gemm_of_transposed(node: NodeProto) -> bool:
    """Tell whether a product takes its weights as [outputs, inputs]."""
    return any(a.name == "transB" and a.i == 1 for a in node.attribute)


def producers(graph: onnx.GraphProto) -> dict[str, NodeProto]:
    """Return the node that gives each value."""
    return {output: node for node in graph.node for output in node.output}


def float_products(model: onnx.ModelProto, *, stays_float: StaysFloat = _nothing) -> Iterator[str]:
    """Yield the names of matrix products that still have constant float weights of two dimensions, other
    than those that stay float.
    """
    graph = model.graph
    weights = {t.name for t in graph.initializer if len(t.dims) == 2 and not stays_float(t.name)}
    made_by = producers(graph)
    for node in graph.node:
        is_product = node.op_type in ("MatMul", "Gemm") or node.op_type in _PACKED_ATTENTION
        if is_product and any(_source_of(name, made_by) in weights for name in node.input[1:2]):
            yield node.name


def _source_of(name: str, made_by: dict[str, NodeProto]) -> str:
    """Follow a value back through nodes that only reshape or cast it."""
    while (node := made_by.get(name)) is not None and node.op_type in (
        "Transpose",
        "Cast",
        "Reshape",
        "Identity",
    ):
        name = node.input[0]
    return name


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove weights, and nodes without a reader, that the replacement left behind."""
    outputs = {value.name for value in graph.output}
    while True:
        read = set(read_names(graph)) | outputs
        dead = [node for node in graph.node if not read.intersection(node.output)]
        if not dead:
            break
        for node in dead:
            graph.node.remove(node)
    for tensor in [t for t in graph.initializer if t.name not in read]:
        graph.initializer.remove(tensor)


def read_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names of all values that nodes read, the branches of an If and bodies of loops included."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from read_names(inner)
                yield from (value.name for value in inner.output)


def require_domain(model: onnx.ModelProto) -> None:
    """Let a graph use ONNX Runtime's own operators."""
    if _DOMAIN not in {opset.domain for opset in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
