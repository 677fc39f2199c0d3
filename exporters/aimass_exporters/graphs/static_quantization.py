"""Products in 8-bit integers whose activation ranges are fixed at export: the fast way where a run has many
rows.

Rounding activations by the range of the whole batch is fast too, but makes a row depend on its neighbours.
Fixed ranges do not, and need no pass over the data to find them. What makes them accurate enough is in
`activation_levels`, how the graph is changed in `integer_products`. Products that still lose too much, and
those that give the output, are left to `graph_quantization`.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from aimass_exporters.graphs.activation_levels import MAX_ERROR, Matrix, Observed, best_levels, product_error
from aimass_exporters.graphs.external_file import save_graph
from aimass_exporters.graphs.integer_products import IntegerProducts

MAX_ROWS = 2048
"""Rows of activations that errors are measured on. Ranges are taken from all rows."""
_MASK = "attention_mask"

Feeds = Mapping[str, NDArray[Any]]


def quantize_statically(model: onnx.ModelProto, feeds: Sequence[Feeds]) -> IntegerProducts:
    """Replace, in place, the products that lose little by it; return what took their place.

    `feeds` are typical inputs of the graph; rows that their attention mask leaves out do not count.
    """
    graph = model.graph
    weights = {t.name: numpy_helper.to_array(t) for t in graph.initializer if len(t.dims) == 2}
    outputs = {value.name for value in graph.output}
    products: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights and not outputs.intersection(node.output):
            products[node.input[0]].append(node)
    changes = IntegerProducts(model)
    for name, seen in observed(model, list(products), feeds):
        levels = best_levels(seen, [weights[node.input[1]] for node in products[name]])
        for node in products[name]:
            matrix = weights[node.input[1]]
            if product_error(seen.rows, matrix, levels) <= MAX_ERROR:
                changes.replace(node, matrix, levels)
    changes.apply()
    return changes


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
