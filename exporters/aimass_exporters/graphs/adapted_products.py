"""Puts low-rank terms of several adapters beside a graph's matrix products, one of them chosen for each row.

While the model is traced, a marker stands behind every layer that adapters change; what packs products moves
the markers along; in the end each becomes `y + ((x @ down) * mask) @ up`, the terms of all adapters side by
side. The mask keeps one adapter's columns, or none, so that rows with different adapters share every product.
Must not know files, nor which layers of which model there are.

Source: LoRA, Hu et al. 2021; adapters of a batch side by side: S-LoRA, Sheng et al. 2023.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from aimass_exporters.graphs.constants import add_constant

ADAPTER_INPUT = "adapter"
_DOMAIN, _MARKER = "aimass", "AdaptedProduct"
_MODULES, _WIDTHS = "modules", "widths"
_FACTOR_SUFFIXES = (".adapter_down", ".adapter_up")

_Layout = tuple[tuple[int, int], ...]
"""Adapter and rank of each term, in the order of the columns."""


@dataclass(frozen=True, slots=True)
class LowRankTerm:
    """What one adapter adds to the product of one layer: `x @ down @ up`, the adapter's scale folded in."""

    adapter: int
    """Its number, from 1."""
    down: NDArray[np.float32]  # [in, rank]
    up: NDArray[np.float32]  # [rank, out]


@dataclass(frozen=True, slots=True)
class AdapterTerms:
    """The terms of all adapters, by the layer they belong to."""

    num_adapters: int
    by_module: Mapping[str, Sequence[LowRankTerm]]


@contextmanager
def marked_products(model: torch.nn.Module, terms: AdapterTerms | None) -> Iterator[None]:
    """Inside the block, trace a marker behind each layer that the adapters change."""
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if terms is not None and name in terms.by_module:
                stack.callback(module.register_forward_hook(partial(_mark, name)).remove)
        yield


def _mark(
    name: str, _module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
) -> torch.Tensor:
    marked: torch.Tensor = torch.onnx.ops.symbolic(
        f"{_DOMAIN}::{_MARKER}",
        [inputs[0], output],
        {_MODULES: [name], _WIDTHS: [output.shape[-1]]},
        dtype=output.dtype,
        shape=output.shape,
        version=1,
    )
    return marked


@dataclass(frozen=True, slots=True)
class Part:
    """Columns of a product: how many there are, and the layer whose adapters they take; empty for none."""

    module: str
    width: int


def marked_parts(node: ir.Node | None) -> list[Part]:
    """Return the columns that a marker stands for; none when the node is no marker.

    Its inputs are what the product takes and what it gives.
    """
    if node is None or (node.domain, node.op_type) != (_DOMAIN, _MARKER):
        return []
    modules, widths = node.attributes[_MODULES].as_strings(), node.attributes[_WIDTHS].as_ints()
    return [Part(module, width) for module, width in zip(modules, widths, strict=True)]


def marker(taken: ir.Value, given: ir.Value, parts: Sequence[Part]) -> ir.Node:
    """Return the marker of a product that stands for several, side by side."""
    return ir.node(
        _MARKER,
        [taken, given],
        {_MODULES: [part.module for part in parts], _WIDTHS: [part.width for part in parts]},
        domain=_DOMAIN,
    )


def is_adapter_factor(weight_name: str) -> bool:
    """Tell whether a weight of a graph is a factor of adapters, by its name: those are not quantised."""
    return weight_name.endswith(_FACTOR_SUFFIXES)


def insert_adapters(model: ir.Model, terms: AdapterTerms) -> set[str]:
    """Replace every marker by its terms, and give the graph the input `adapter` int64 [batch].

    Return the layers that were found: one whose product the model computes past its layer is not among them.
    """
    inserter = _Inserter(model.graph, terms)
    found = {module for node in list(model.graph) for module in inserter.replace(node)}
    model.opset_imports.pop(_DOMAIN, None)
    return found


@dataclass(frozen=True, slots=True)
class _Factors:
    """All terms of a product."""

    layout: _Layout
    down: ir.Value  # [in, ranks]
    up: ir.Value  # [ranks, out]


class _Inserter:
    """Owns the graph while markers are replaced."""

    def __init__(self, graph: ir.Graph, terms: AdapterTerms) -> None:
        self._graph = graph
        self._terms = terms
        self._start = graph[0]
        self._joined: dict[tuple[Part, ...], _Factors] = {}
        self._masks: dict[tuple[_Layout, ir.DataType], ir.Value] = {}
        batch = graph.inputs[0].shape
        assert batch is not None, "the tokens have a shape"
        shape, dtype = ir.Shape([batch[0]]), ir.TensorType(ir.DataType.INT64)
        self._chosen = ir.Value(name=ADAPTER_INPUT, shape=shape, type=dtype)
        graph.inputs.append(self._chosen)

    def replace(self, node: ir.Node) -> Sequence[str]:
        """Replace a marker; return the layers whose terms it took."""
        parts = marked_parts(node)
        if not parts:
            return ()
        taken, given = node.inputs
        assert taken is not None, "a marker has two inputs"
        assert given is not None, "a marker has two inputs"
        assert given.dtype is not None, "a product has an element type"
        factors = self._factors(parts, given.dtype)
        low = self._add(node, "MatMul", taken, factors.down)
        kept = self._add(node, "Mul", low, self._mask(factors.layout, given.dtype))
        term = self._add(node, "MatMul", kept, factors.up)
        ir.convenience.replace_all_uses_with(node.outputs[0], self._add(node, "Add", given, term))
        self._graph.remove(node, safe=True)
        return [part.module for part in parts if part.module]

    def _factors(self, parts: Sequence[Part], dtype: ir.DataType) -> _Factors:
        """Return the terms of some columns side by side. A layer that runs twice has them once."""
        key = tuple(parts)
        if key not in self._joined:
            layout, down, up = self._join(parts)
            name = next(part.module for part in parts if part.module)
            self._joined[key] = _Factors(
                layout,
                add_constant(self._graph, f"{name}.adapter_down", down.astype(dtype.numpy())),
                add_constant(self._graph, f"{name}.adapter_up", up.astype(dtype.numpy())),
            )
        return self._joined[key]

    def _join(self, parts: Sequence[Part]) -> tuple[_Layout, NDArray[np.float32], NDArray[np.float32]]:
        """Return the layout, [in, ranks], and [ranks, columns] with zeros where a term has no say."""
        ends = np.cumsum([part.width for part in parts]).tolist()
        terms = [
            (end - part.width, term)
            for end, part in zip(ends, parts, strict=True)
            for term in self._terms.by_module.get(part.module, ())
        ]
        layout = tuple((term.adapter, term.down.shape[1]) for _, term in terms)
        up = np.zeros((sum(rank for _, rank in layout), ends[-1]), np.float32)
        row = 0
        for column, term in terms:
            rank, width = term.up.shape
            up[row : row + rank, column : column + width] = term.up
            row += rank
        return layout, np.concatenate([term.down for _, term in terms], axis=1), up

    def _mask(self, layout: _Layout, dtype: ir.DataType) -> ir.Value:
        """Return which columns each row keeps, [batch, 1, ranks]: looked up once a step for each layout."""
        key = (layout, dtype)
        if key not in self._masks:
            owners = np.repeat([adapter for adapter, _ in layout], [rank for _, rank in layout])
            chosen = np.arange(self._terms.num_adapters + 1)[:, np.newaxis, np.newaxis]
            table = add_constant(
                self._graph, f"adapter_columns.{len(self._masks)}", (owners == chosen).astype(dtype.numpy())
            )
            self._masks[key] = self._add(self._start, "Gather", table, self._chosen)
        return self._masks[key]

    def _add(self, before: ir.Node, op_type: str, *inputs: ir.Value) -> ir.Value:
        added = ir.node(op_type, list(inputs))
        self._graph.insert_before(before, added)
        return added.outputs[0]
