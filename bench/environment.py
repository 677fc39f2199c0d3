"""A virtual environment of its own for a peer that cannot be installed beside our packages.

Made once from pinned requirements and kept in the user's cache. Knows no peer and no benchmark.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aimass_exporters.sources.cache import cache_folder

_READY = "ready"
"""A file that is written when everything is installed: half an environment is not taken for a whole one."""
_PATH = re.compile(r"(?<![\w/])(?:/[\w.+-]+)+/([\w.+-]+)")


class PeerUnavailable(RuntimeError):
    """A peer that cannot take part here. The message says why; the others go on without it."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What a foreign process runs in, named by its requirements: a changed pin makes another one."""

    name: str
    requirements: Path
    """Pinned packages, as pip reads them."""
    told: tuple[str, ...] = ()
    """Packages whose versions a report tells."""

    @property
    def key(self) -> str:
        """Equal for equal requirements on equal Pythons."""
        text = self.requirements.read_text() + sys.version
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def versions(self) -> Mapping[str, str]:
        """The pinned version of each package."""
        lines = self.requirements.read_text().splitlines()
        pins = (line.partition("==") for line in lines if "==" in line)
        return {name.partition("[")[0]: version for name, _, version in pins}

    def sentence(self) -> str:
        """Return a sentence for a report: which of its packages have which versions."""
        pinned = ", ".join(f"{name} {self.versions[name]}" for name in self.told)
        return f"{self.name} ran in an environment of its own: {pinned}"

    def python(self, *, cache: Path | None = None) -> Path:
        """Return its interpreter; everything is installed first when that has not been done.

        Raises `PeerUnavailable` when pip cannot install it, as without a network.
        """
        folder = (cache or cache_folder()) / "bench" / "environments" / self.key
        python = folder / "bin" / "python"
        if not (folder / _READY).is_file():
            print(f"installing {self.name} in an environment of its own (once)", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            _run([sys.executable, "-m", "venv", str(folder)], f"{self.name} cannot be installed")
            install = ["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--retries", "1"]
            command = [str(python), *install, "-r", str(self.requirements)]
            _run(command, f"{self.name} cannot be installed")
            (folder / _READY).touch()
        return python


def run_in(python: Path, arguments: list[str], *, failure: str) -> None:
    """Run a program of an environment to its end. Raises `PeerUnavailable`, which begins with `failure`."""
    _run([str(python), *arguments], failure)


def _run(command: list[str], failure: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise PeerUnavailable(f"{failure}: {_reason(done.stdout)}")


def _reason(log: str) -> str:
    """Return the line of a log that says what went wrong: pip's first error, or the last line.

    Reports quote it, so of a path of this machine only the last name is left.
    """
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    return _PATH.sub(r"\1", (errors or lines[-1:] or ["it said nothing"])[0])
