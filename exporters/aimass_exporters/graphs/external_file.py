"""Writes a graph and its weights: small graphs in one file, the weights of others in one file beside it."""

from __future__ import annotations

from pathlib import Path

import onnx


def save_graph(model: onnx.ModelProto, path: Path) -> Path:
    """Write the graph to `path` and its weights to `path` + `.data`; return `path`."""
    data = path.name + ".data"
    path.unlink(missing_ok=True)
    path.with_name(data).unlink(missing_ok=True)  # onnx appends to a file that exists
    onnx.save_model(model, path, save_as_external_data=True, all_tensors_to_one_file=True, location=data)
    return path
