"""A bundle that is not finished: a hidden folder inside the store, which becomes a version of a model or
disappears.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aimass.model.v1.manifest_pb2 import ModelManifest

from aimass_exporters.bundles.manifest_writer import describe_files, write_manifest
from aimass_exporters.errors import InvalidExportOption

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")


def bundle_name(name: str) -> str:
    """Return a name that a store can hold. Raises `InvalidExportOption`."""
    if not _NAME.fullmatch(name):
        expected = "up to 128 lower-case letters, digits, '.', '_' and '-', the first a letter or digit"
        raise InvalidExportOption("--name", expected=expected, got=name)
    return name


def derived_name(suggested: str) -> str:
    """Return a valid name made from a folder's or a repository's."""
    return re.sub(r"[^a-z0-9._-]+", "-", suggested.lower()).strip("-._")[:128] or "model"


@contextmanager
def draft_folder(store: Path) -> Iterator[Path]:
    """Give an empty folder on the store's disk, and delete what is left of it and of a store that stayed
    empty.
    """
    is_new = not store.exists()
    store.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".export-", dir=store))
    draft.chmod(0o755)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if is_new and not any(store.iterdir()):
            store.rmdir()


def publish(draft: Path, manifest: ModelManifest, store: Path) -> Path:
    """Give the draft the next version of its model, in one rename. Returns the bundle's folder."""
    home = store / manifest.name
    home.mkdir(exist_ok=True)
    manifest.files.extend(describe_files(draft))
    number = _next_version(home)
    while True:
        manifest.version = str(number)
        write_manifest(manifest, draft)
        try:
            return draft.rename(home / str(number))
        except OSError:
            if not (home / str(number)).exists():
                raise
            number += 1  # another export took this version meanwhile


def _next_version(home: Path) -> int:
    taken = [int(p.name) for p in home.iterdir() if p.name.isdecimal()]
    return max(taken, default=0) + 1
