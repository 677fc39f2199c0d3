"""Tells which operators of a graph the CUDA execution provider has a kernel for, by a list read from its
library.

`cuda_kernels.json` says how the list was made. An operator that is not in it would run on the CPU, with a
copy of its inputs and outputs at every step.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources

import onnx


@cache
def _kernels() -> dict[str, dict[str, list[str]]]:
    text = (resources.files("aimass_exporters.graphs") / "cuda_kernels.json").read_text(encoding="utf-8")
    kernels: dict[str, dict[str, list[str]]] = json.loads(text)["kernels"]
    return kernels


def operators_without_kernel(model: onnx.ModelProto, *, dtype: str) -> list[str]:
    """Return the graph's operators that CUDA has no kernel for in the element type (`float16` or
    `float32`).
    """
    used = {(node.domain or "ai.onnx", node.op_type) for node in model.graph.node}
    return sorted(f"{domain}::{name}" for domain, name in used if not _has_kernel(domain, name, dtype))


def _has_kernel(domain: str, name: str, dtype: str) -> bool:
    types = _kernels().get(domain, {}).get(name, [])
    return "any" in types or dtype in types
