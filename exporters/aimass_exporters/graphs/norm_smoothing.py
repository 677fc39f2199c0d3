"""Lets the norms of a graph hold back channels that reach far, and the weights behind them make up for it.

Integer products round activations in blocks of neighbouring channels: one that reaches far takes the levels
from the others. Gamma and beta of a norm are divided by the root of each channel's reach, and the weights
behind it multiplied by it: the same nodes give the same in float. Must not know models, nor how weights are
quantised.

Source: SmoothQuant, Xiao et al., arXiv 2211.10438.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from aimass_exporters.graphs.activation_levels import Matrix, smoothing_factors
from aimass_exporters.graphs.graph_quantization import (
    drop_unused,
    is_gemm_of_transposed,
    is_plain_product,
    read_names,
)

STRENGTH = 0.5
"""How much of a channel's reach goes into the weights. SmolLM2 with 8 bits: .4 and .8 lose more."""
_AFFINE_INPUTS = {
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3),
    "SkipSimplifiedLayerNormalization": (2,),
}
"""Where the inputs of a norm hold gamma and beta. What may follow is added before the norm."""

Feeds = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class _Norm:
    """A norm whose output nothing but products with weights of their own reads."""

    node: NodeProto
    affine: tuple[int, ...]
    """Places of gamma and beta, if it has one, among its inputs."""
    readers: Sequence[NodeProto]

    @property
    def output(self) -> str:
        """Name of what the products read."""
        return self.node.output[0]


def smooth_norms(path: Path, feeds: Sequence[Feeds]) -> onnx.ModelProto:
    """Load a graph with all norms smoothed whose readers can make up for it; the others stay as they are.

    Each of `feeds` is one sequence that the reach of channels is taken from. A probe of the graph is written
    beside it for a while, to read the same weights.
    """
    model = onnx.load(path)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    norms = list(_smoothable(model.graph, weights))
    for norm, reach in zip(norms, _reaches(path, norms, feeds), strict=True):
        factors = smoothing_factors(reach, STRENGTH)
        _scale_norm(model.graph, norm, weights, factors)
        for product in norm.readers:
            _scale_inputs(product, weights[product.input[1]], factors)
    drop_unused(model.graph)
    return model


def _smoothable(graph: onnx.GraphProto, weights: Mapping[str, TensorProto]) -> Iterator[_Norm]:
    num_reads = Counter(read_names(graph)) + Counter(value.name for value in graph.output)
    readers = defaultdict(list)
    for node in graph.node:
        if is_plain_product(node) and _is_own_matrix(node.input[1], weights, num_reads):
            readers[node.input[0]].append(node)
    for node in graph.node:
        places = _AFFINE_INPUTS.get(node.op_type, ())
        affine = tuple(i for i in places if i < len(node.input) and node.input[i])
        is_constant = all(node.input[i] in weights and len(weights[node.input[i]].dims) == 1 for i in affine)
        products = readers[node.output[0]] if affine and is_constant else []
        if products and len(products) == num_reads[node.output[0]]:
            yield _Norm(node, affine, products)


def _is_own_matrix(name: str, weights: Mapping[str, TensorProto], num_reads: Mapping[str, int]) -> bool:
    """Tell whether nothing else reads these weights: tied ones must not change."""
    return name in weights and len(weights[name].dims) == 2 and num_reads[name] == 1


def _reaches(path: Path, norms: Sequence[_Norm], feeds: Sequence[Feeds]) -> Sequence[Matrix]:
    """Return the largest magnitude of each channel of each norm.

    The first position of a sequence does not count: decoders let attention rest there, and some of its
    channels reach a hundred times as far as anywhere else (Sun et al., arXiv 2402.17762).
    """
    names = [norm.output for norm in norms]
    if not names:
        return []
    reaches = [np.zeros((), np.float32)] * len(names)
    with _probe(path, names) as session:
        for feed in feeds:
            values = session.run(names, dict(feed))
            rows = (value.reshape(-1, value.shape[-1])[1:] for value in values)
            reaches = [np.maximum(r, np.abs(x).max(0)) for r, x in zip(reaches, rows, strict=True)]
    return reaches


@contextmanager
def _probe(path: Path, names: Sequence[str]) -> Iterator[ort.InferenceSession]:
    """Open the graph such that it shows inner values as well."""
    probe = onnx.load(path, load_external_data=False)
    probe.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)
    handle, name = tempfile.mkstemp(prefix=".probe-", suffix=".onnx", dir=path.parent)
    os.close(handle)
    shown = Path(name)
    try:
        onnx.save(probe, shown)
        yield ort.InferenceSession(shown, providers=["CPUExecutionProvider"])
    finally:
        shown.unlink()


def _scale_norm(
    graph: onnx.GraphProto, norm: _Norm, weights: Mapping[str, TensorProto], factors: Matrix
) -> None:
    """Give the norm gamma and beta of its own: equal ones of several norms may be one constant."""
    for place in norm.affine:
        scaled = numpy_helper.to_array(weights[norm.node.input[place]]) * factors
        norm.node.input[place] = f"{norm.output}.smoothed.{place}"
        graph.initializer.append(numpy_helper.from_array(scaled, norm.node.input[place]))


def _scale_inputs(product: NodeProto, weight: TensorProto, factors: Matrix) -> None:
    """Let the weights make up for inputs that are multiplied by `factors`."""
    shares = factors if is_gemm_of_transposed(product) else factors[:, np.newaxis]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) / shares, weight.name))
