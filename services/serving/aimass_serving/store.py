"""Where bundles are kept: a local folder, or any fsspec URL copied into a local cache.

Layout `<store>/<name>/<version>/`. Must not know what the bundles are for.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import fsspec
from aimass.model.v1.manifest_pb2 import TASK_UNSPECIFIED, ModelManifest, Task

from aimass_serving.bundle import (
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    NAME_PATTERN,
    VERSION_PATTERN,
    Bundle,
    check_plain_path,
    parse_manifest,
    read_bundle,
    read_manifest,
)
from aimass_serving.errors import BadBundle, StoreUnavailable

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BundleRef:
    """A bundle of a store."""

    name: str
    version: str
    task: Task.ValueType = TASK_UNSPECIFIED
    """What its manifest says it is for; unspecified when the manifest cannot be read."""

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


class ModelStore(Protocol):
    """Where bundles are kept."""

    @property
    def url(self) -> str:
        """Where the store is, for messages."""

    def list(self) -> list[BundleRef]:
        """Return every bundle, by name, then newest version first. Blocking."""

    def open(self, ref: BundleRef, *, allow_unverified: bool = False) -> Bundle:
        """Return a checked bundle on local disk. Blocking. Raises `BadBundle`."""


def open_store(url: str, *, cache: Path | None = None) -> ModelStore:
    """Return the store at `url`: a local folder, or a URL such as `s3://bucket/models`.

    `cache` is aimass's cache folder, `~/.cache/aimass` when None: remote bundles are copied below it.
    """
    if "://" not in url:
        return LocalStore(Path(url).expanduser())
    if url.startswith("file://"):
        return LocalStore(Path(url.removeprefix("file://")))
    return RemoteStore(url, cache=(cache or default_cache_folder()) / "bundles")


def default_cache_folder() -> Path:
    """Return aimass's folder among the user's caches: `$XDG_CACHE_HOME/aimass`, else `~/.cache/aimass`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aimass"


class LocalStore:
    """A folder on local disk. Missing and empty folders hold no bundles."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def url(self) -> str:
        return str(self._root)

    def list(self) -> list[BundleRef]:
        return _ordered(
            BundleRef(folder.parent.name, folder.name, _task_of(folder)) for folder in self._folders()
        )

    def open(self, ref: BundleRef, *, allow_unverified: bool = False) -> Bundle:
        bundle = read_bundle(self._root / ref.name / ref.version, allow_unverified=allow_unverified)
        _check_identity(ref, bundle.manifest)
        return bundle

    def _folders(self) -> Iterator[Path]:
        for folder in self._root.glob("*/*/"):
            if _is_ref(folder.parent.name, folder.name):
                yield folder


class RemoteStore:
    """A folder behind an fsspec URL. Bundles are copied whole into `cache`, once for each content.

    The cache is keyed by the manifest's digest, and the manifest holds the digest of every file: a changed
    bundle is a new entry, and a copy is checked like any local bundle.
    """

    def __init__(self, url: str, *, cache: Path) -> None:
        self._url = url
        self._cache = cache

    @property
    def url(self) -> str:
        return self._url

    def list(self) -> list[BundleRef]:
        try:
            files, root = fsspec.core.url_to_fs(self._url)
            return _ordered(self._refs(files, root))
        except Exception as error:  # each file system of fsspec raises errors of its own
            raise StoreUnavailable(self._url, detail=f"{type(error).__name__}: {error}") from error

    def open(self, ref: BundleRef, *, allow_unverified: bool = False) -> Bundle:
        files, root = fsspec.core.url_to_fs(self._url)
        folder = PurePosixPath(root) / ref.name / ref.version
        manifest_bytes = _read_remote_manifest(files, folder, bundle=str(ref))
        _check_identity(ref, parse_manifest(manifest_bytes, bundle=str(ref)))
        local = self._cache / hashlib.sha256(manifest_bytes).hexdigest()
        if not local.exists():
            self._copy(files, folder, manifest_bytes, local=local)
        return read_bundle(local, allow_unverified=allow_unverified)

    def _refs(self, files: Any, root: str) -> Iterator[BundleRef]:
        for path in files.glob(f"{root.rstrip('/')}/*/*/{MANIFEST_FILE}"):
            folder = PurePosixPath(path).parent
            if _is_ref(folder.parent.name, folder.name):
                yield BundleRef(folder.parent.name, folder.name, self._task(files, folder))

    def _task(self, files: Any, folder: PurePosixPath) -> Task.ValueType:
        name = f"{folder.parent.name}@{folder.name}"
        try:
            return parse_manifest(_read_remote_manifest(files, folder, bundle=name), bundle=name).task
        except BadBundle:
            return TASK_UNSPECIFIED

    def _copy(self, files: Any, folder: PurePosixPath, manifest_bytes: bytes, *, local: Path) -> None:
        """Copy a bundle beside its final place, then move it there in one step."""
        logger.info("copying %s to %s", folder, local)
        self._cache.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".copy-", dir=self._cache))
        try:
            _download(files, folder, manifest_bytes, staging=staging)
            staging.rename(local)
        except OSError:
            if not local.exists():  # it does when another process was first
                raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _download(files: Any, folder: PurePosixPath, manifest_bytes: bytes, *, staging: Path) -> None:
    (staging / MANIFEST_FILE).write_bytes(manifest_bytes)
    for file in parse_manifest(manifest_bytes, bundle=str(folder)).files:
        check_plain_path(file.path, bundle=str(folder))
        target = staging / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            files.get_file(str(folder / file.path), str(target))
        except FileNotFoundError as error:
            raise BadBundle(str(folder), detail=f"{file.path} is missing") from error


def _read_remote_manifest(files: Any, folder: PurePosixPath, *, bundle: str) -> bytes:
    try:
        content: bytes = files.cat_file(str(folder / MANIFEST_FILE), end=MAX_MANIFEST_BYTES)
    except OSError as error:
        raise BadBundle(bundle, detail=f"{MANIFEST_FILE} cannot be read: {error}") from error
    return content


def _ordered(refs: Iterator[BundleRef]) -> list[BundleRef]:
    return sorted(refs, key=lambda ref: (ref.name, -int(ref.version)))


def _is_ref(name: str, version: str) -> bool:
    return bool(NAME_PATTERN.fullmatch(name) and VERSION_PATTERN.fullmatch(version))


def _task_of(folder: Path) -> Task.ValueType:
    try:
        return read_manifest(folder).task
    except BadBundle:
        return TASK_UNSPECIFIED


def _check_identity(ref: BundleRef, manifest: ModelManifest) -> None:
    if (manifest.name, manifest.version) != (ref.name, ref.version):
        raise BadBundle(
            str(ref),
            detail=f"its manifest says it is {manifest.name}@{manifest.version}; move it to that folder",
        )
