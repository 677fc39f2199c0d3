"""Reads and adds constants of a graph that is being rewritten."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray


def add_constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """Add a constant to a graph and return it."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype)
    )
    graph.register_initializer(value)
    return value


def constant_array(value: ir.Value | None) -> NDArray[Any]:
    """Return the numbers of a value that is known to be constant."""
    assert value is not None, "an input that is left out is not constant"
    assert value.const_value is not None, "callers check that it is constant"
    return value.const_value.numpy()
