"""Reads a bundle, and refuses one that is altered, unverified or points outside its own folder.

The bundle is the contract between exporters and services (`aimass.model.v1.ModelManifest`).
Must not know where bundles are kept (`store`) or what is done with them (`registry`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import posixpath
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from aimass.model.v1.manifest_pb2 import (
    TASK_EMBEDDING,
    TASK_TEXT_GENERATION,
    BundleFile,
    Graph,
    ModelManifest,
    ParityMeasure,
    ParityRecord,
)
from google.protobuf import json_format
from numpy.typing import NDArray

from aimass_serving.errors import BadBundle
from aimass_serving.external_data import ExternalTensor, external_tensors

MANIFEST_FILE = "manifest.json"
GOLDEN_FILE = "golden.npz"
SCHEMA_VERSION = 1
MAX_MANIFEST_BYTES = 16 * 2**20

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
VERSION_PATTERN = re.compile(r"0|[1-9][0-9]{0,8}")
# Plain names only: no `..`, no absolute path, no drive, and none of the tags ONNX Runtime gives a meaning of
# its own, such as `*/_ORT_MEM_ADDR_/*`, which reads memory of the process.
_PATH_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_DIGITS = re.compile(r"[0-9]{1,18}")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on local disk whose files are all inside its folder."""

    path: Path
    """The folder, resolved."""
    manifest: ModelManifest
    is_verified: bool
    """Whether every checksum and the parity record held."""
    skipped_checks: tuple[str, ...] = ()
    """What did not hold, when the operator allowed an unverified bundle."""

    @property
    def ref(self) -> str:
        """Return `name@version`."""
        return f"{self.manifest.name}@{self.manifest.version}"

    def file(self, relative: str) -> Path:
        """Return the path of a file the manifest lists. Raises `BadBundle` for any other."""
        if relative not in {file.path for file in self.manifest.files}:
            raise BadBundle(self.ref, detail=f"the manifest does not list {relative!r}")
        return _place(self.path, relative, bundle=self.ref)

    def graph(self, role: str) -> Path:
        """Return the path of the graph with this role. Raises `BadBundle` when there is none."""
        for graph in self.manifest.graphs:
            if graph.role == role:
                return self.file(graph.file)
        roles = ", ".join(graph.role for graph in self.manifest.graphs) or "none"
        raise BadBundle(self.ref, detail=f"expected a graph with role {role!r}, got: {roles}")

    def golden(self) -> dict[str, NDArray[Any]]:
        """Return the inputs to replay at load and what they must give. Raises `BadBundle` when unreadable."""
        try:
            with open(self.file(GOLDEN_FILE), "rb") as file, np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise BadBundle(self.ref, detail=f"{GOLDEN_FILE} is not a file of arrays") from error


def read_bundle(path: Path, *, allow_unverified: bool = False) -> Bundle:
    """Read the bundle in folder `path` and check it whole: every checksum, the parity record, every location.

    `allow_unverified` lets wrong checksums, hard links and missing parity pass; `Bundle.skipped_checks` then
    names them. Files that are missing or lie outside the folder are never let pass. Raises `BadBundle`.
    """
    root = path.resolve()
    manifest = read_manifest(root)
    bundle = f"{manifest.name}@{manifest.version}"
    _check_manifest(manifest, bundle)
    for file in manifest.files:
        _place(root, file.path, bundle=bundle)
    findings = (*_altered(root, manifest), *_unproven(manifest))
    if findings and not allow_unverified:
        raise BadBundle(bundle, detail="; ".join(findings))
    for graph in manifest.graphs:
        _check_external_data(root, graph, manifest=manifest, bundle=bundle)
    _log_unlisted(root, manifest, bundle)
    return Bundle(root, manifest, is_verified=not findings, skipped_checks=findings)


def read_manifest(path: Path) -> ModelManifest:
    """Read `manifest.json` of the bundle in folder `path`, unchecked but for its form. Raises `BadBundle`."""
    file = path / MANIFEST_FILE
    try:
        if file.is_symlink() or file.stat().st_size > MAX_MANIFEST_BYTES:
            raise BadBundle(
                path.name, detail=f"{MANIFEST_FILE} is a link or larger than {MAX_MANIFEST_BYTES} bytes"
            )
        return parse_manifest(file.read_bytes(), bundle=str(path))
    except OSError as error:
        raise BadBundle(str(path), detail=f"{MANIFEST_FILE} cannot be read: {error.strerror}") from error


def parse_manifest(text: bytes, *, bundle: str) -> ModelManifest:
    """Parse the JSON of a manifest. Raises `BadBundle`, which names the first thing that is wrong."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadBundle(bundle, detail=f"{MANIFEST_FILE} is not JSON: {error}") from error
    version = fields.get("schema_version", fields.get("schemaVersion")) if isinstance(fields, dict) else None
    if version != SCHEMA_VERSION:
        raise BadBundle(bundle, detail=f"expected manifest schema_version {SCHEMA_VERSION}, got {version!r}")
    try:
        return json_format.ParseDict(fields, ModelManifest())
    except (json_format.ParseError, RecursionError) as error:
        raise BadBundle(bundle, detail=f"{MANIFEST_FILE}: {error}") from error


def _check_manifest(manifest: ModelManifest, bundle: str) -> None:
    for problem in _manifest_problems(manifest):
        raise BadBundle(bundle, detail=problem)


def _manifest_problems(manifest: ModelManifest) -> Iterator[str]:
    if not NAME_PATTERN.fullmatch(manifest.name):
        yield f"name {manifest.name!r} is not made of lower-case letters, digits, `.`, `_` and `-`"
    if not VERSION_PATTERN.fullmatch(manifest.version):
        yield f"version {manifest.version!r} is not a whole number"
    if not manifest.graphs:
        yield "the manifest has no graphs"
    if manifest.task == TASK_TEXT_GENERATION and not manifest.HasField("decoder"):
        yield "a model for text generation needs `decoder` in its manifest"
    if manifest.task == TASK_EMBEDDING and not manifest.HasField("encoder"):
        yield "a model for embedding needs `encoder` in its manifest"
    names = [adapter.name for adapter in manifest.adapters]
    if len(set(names)) != len(names) or not all(map(NAME_PATTERN.fullmatch, names)):
        yield f"expected adapters with names of their own, got {names}"
    paths = [file.path for file in manifest.files]
    if len(set(paths)) != len(paths):
        yield "the manifest lists a file twice"
    for needed in _needed_files(manifest):
        if needed not in paths:
            yield f"the manifest does not list {needed!r}"


def _needed_files(manifest: ModelManifest) -> Iterator[str]:
    yield GOLDEN_FILE
    for graph in manifest.graphs:
        yield graph.file
        yield from graph.external_data
    for text_file in (manifest.tokenizer.file, manifest.tokenizer.chat_template_file):
        if text_file:
            yield text_file


def check_plain_path(relative: str, *, bundle: str) -> None:
    """Raise `BadBundle` unless `relative` can only name a file below the folder it is joined to."""
    if not _PATH_PATTERN.fullmatch(relative):
        raise BadBundle(bundle, detail=f"expected a plain path inside the bundle, got {relative!r}")


def _place(root: Path, relative: str, *, bundle: str) -> Path:
    """Return `root/relative` when it is a regular file reached without links. Raises `BadBundle`."""
    check_plain_path(relative, bundle=bundle)
    place = root
    for part in relative.split("/"):
        place = place / part
        if place.is_symlink():
            raise BadBundle(bundle, detail=f"{relative} is reached through a symbolic link")
    if not place.is_file():
        raise BadBundle(bundle, detail=f"{relative} is missing")
    return place


def _altered(root: Path, manifest: ModelManifest) -> Iterator[str]:
    for file in manifest.files:
        status = (root / file.path).stat()
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            yield f"{file.path} is a hard link: other names for it may lie outside the bundle"
        if status.st_size != file.size_bytes:
            yield f"{file.path} was altered: expected {file.size_bytes} bytes, got {status.st_size}"
        elif not _has_checksum(root, file):
            yield f"{file.path} was altered: its SHA-256 is not the manifest's"


def _has_checksum(root: Path, file: BundleFile) -> bool:
    with open(root / file.path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256


def _unproven(manifest: ModelManifest) -> Iterator[str]:
    yield from _unproven_record(manifest.parity, of="")
    for adapter in manifest.adapters:
        yield from _unproven_record(adapter.parity, of=f" of adapter {adapter.name}")


def _unproven_record(record: ParityRecord, *, of: str) -> Iterator[str]:
    if not record.measures:
        yield f"the export recorded no parity{of} with PyTorch"
    for measure in record.measures:
        if not _holds(measure):
            yield f"parity {measure.name}{of} is {measure.value:g}, outside its bound {measure.bound:g}"


def _holds(measure: ParityMeasure) -> bool:
    if not (math.isfinite(measure.value) and math.isfinite(measure.bound)):
        return False
    if measure.comparison == ParityMeasure.COMPARISON_AT_MOST:
        return measure.value <= measure.bound
    return measure.comparison == ParityMeasure.COMPARISON_AT_LEAST and measure.value >= measure.bound


def _check_external_data(root: Path, graph: Graph, *, manifest: ModelManifest, bundle: str) -> None:
    try:
        tensors = external_tensors((root / graph.file).read_bytes())
    except ValueError as error:
        raise BadBundle(bundle, detail=f"{graph.file}: {error}") from error
    sizes = {file.path: (root / file.path).stat().st_size for file in manifest.files}
    for tensor in tensors:
        if problem := _location_problem(tensor, posixpath.dirname(graph.file), sizes):
            raise BadBundle(bundle, detail=f"{graph.file}: weights of {tensor.name!r} {problem}")


def _location_problem(tensor: ExternalTensor, folder: str, sizes: dict[str, int]) -> str:
    """Return what is wrong with where a tensor says its values are, or an empty string."""
    path = posixpath.join(folder, tensor.location)
    if not _PATH_PATTERN.fullmatch(tensor.location):
        return f"lie outside the bundle: {tensor.location!r}"
    if path not in sizes:
        return f"lie in {path!r}, which the manifest does not list"
    if not (_DIGITS.fullmatch(tensor.offset) and _DIGITS.fullmatch(tensor.length)):
        return f"have an offset or length that is not a whole number: {tensor.offset!r}, {tensor.length!r}"
    end = int(tensor.offset) + int(tensor.length)
    return f"end at byte {end} of {path}, which has {sizes[path]}" if end > sizes[path] else ""


def _log_unlisted(root: Path, manifest: ModelManifest, bundle: str) -> None:
    listed = {MANIFEST_FILE, *(file.path for file in manifest.files)}
    found = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_symlink() or not p.is_dir()}
    if unlisted := sorted(found - listed):
        logger.warning("bundle %s: not listed in the manifest, never read: %s", bundle, ", ".join(unlisted))
