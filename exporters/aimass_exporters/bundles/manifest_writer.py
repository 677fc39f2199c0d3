"""Describes a finished folder as a bundle: signatures of its graphs, checksums of its files, versions of
the tools.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import onnx
from aimass.model.v1.manifest_pb2 import BundleFile, Graph, ModelManifest, TensorSpec
from google.protobuf.json_format import MessageToJson

MANIFEST_FILE = "manifest.json"
SCHEMA_VERSION = 1
_TOOLS = (
    "aimass-exporters",
    "torch",
    "transformers",
    "optimum",
    "optimum-onnx",
    "onnx",
    "onnxruntime",
    "onnxscript",
)


def toolchain() -> dict[str, str]:
    """Return the versions of the packages that make a bundle."""
    return {name: version(name) for name in _TOOLS}


def describe_graph(role: str, file: Path) -> Graph:
    """Return the signature of a graph and the files that hold its weights."""
    model = onnx.load(file, load_external_data=False)
    return Graph(
        role=role,
        file=file.name,
        inputs=[_tensor(value) for value in model.graph.input],
        outputs=[_tensor(value) for value in model.graph.output],
        external_data=sorted(_external_files(model.graph.initializer)),
    )


def _tensor(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = [dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim]
    return TensorSpec(
        name=value.name, dtype=onnx.TensorProto.DataType.Name(tensor.elem_type).lower(), shape=shape
    )


def _external_files(tensors: Iterable[onnx.TensorProto]) -> set[str]:
    return {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}


def describe_files(folder: Path) -> list[BundleFile]:
    """Return every file of the folder with its checksum, the manifest excepted."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST_FILE)
    return [
        BundleFile(path=p.relative_to(folder).as_posix(), sha256=_sha256(p), size_bytes=p.stat().st_size)
        for p in files
    ]


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_manifest(manifest: ModelManifest, folder: Path) -> None:
    """Write `manifest.json`."""
    (folder / MANIFEST_FILE).write_text(
        MessageToJson(manifest, preserving_proto_field_name=True, indent=2) + "\n"
    )
