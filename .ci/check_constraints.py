"""Fail unless constraints.txt pins exactly what the distributions and the workshop require, nothing else.

Walks the requirement graph of every pyproject.toml and of requirements-dev.txt through the metadata of what
is installed beside this interpreter. Knows no index: it says what is missing or left over, not what is new.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# hatchling asks for them, in the isolated environment where pip builds; neither is installed beside us.
BUILD_ONLY = ("editables", "trove-classifiers")
# Installed on a machine with a GPU only, so their metadata is not at hand to walk: the closure of
# onnxruntime-gpu[cuda,cudnn] and of the CUDA build of torch, resolved together once.
CUDA_ONLY = re.compile(r"^(nvidia-|cuda-|triton$)")


@dataclass(frozen=True, slots=True)
class Pins:
    """The pinned version of each package, and the lines that pin nothing."""

    versions: dict[str, str]
    unreadable: list[str]


def main() -> int:
    """Print what is wrong, one line each. Exit code 1 if anything is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", type=Path, default=Path())
    root = parser.parse_args().root
    problems = list(find_problems(root))
    for problem in problems:
        print(f"constraints.txt: {problem}", file=sys.stderr)
    return 1 if problems else 0


def find_problems(root: Path) -> Iterator[str]:
    """Yield a sentence for each pin that is missing, left over, unreadable or unlike what is installed."""
    pins = read_pins(root / "constraints.txt")
    yield from (f"not of the form name==version: {line}" for line in pins.unreadable)
    names = list(pins.versions)
    if names != sorted(names):
        yield "lines are not sorted by package name"
    direct, own = direct_requirements(root)
    required = closure(direct) - own
    yield from (f"{name} is required but not pinned" for name in sorted(required - pins.versions.keys()))
    for name, version in pins.versions.items():
        if name not in required and not CUDA_ONLY.match(name):
            yield f"{name} is pinned but nothing requires it"
        installed = installed_version(name)
        if installed is not None and installed != version:
            yield f"{name} is pinned to {version} but {installed} is installed: run `make setup`"


def read_pins(file: Path) -> Pins:
    """Read `name==version` lines; comments and empty lines are skipped."""
    lines = [line.split("#")[0].strip() for line in file.read_text().splitlines()]
    pairs = [(line, re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s;]+)", line)) for line in lines if line]
    versions = {str(canonicalize_name(match[1])): match[2] for _, match in pairs if match}
    return Pins(versions, [line for line, match in pairs if match is None])


def direct_requirements(root: Path) -> tuple[list[Requirement], set[str]]:
    """Return what the repository asks for by name (all extras included), and its own distributions' names."""
    direct, own = [Requirement(name) for name in BUILD_ONLY], set[str]()
    for file in [*root.glob("*/pyproject.toml"), *root.glob("*/*/pyproject.toml")]:
        declared = tomllib.loads(file.read_text())
        project = declared["project"]
        own.add(canonicalize_name(project["name"]))
        extras = [line for lines in project.get("optional-dependencies", {}).values() for line in lines]
        lines = [*declared["build-system"]["requires"], *project.get("dependencies", []), *extras]
        direct += [Requirement(line) for line in lines]
    dev = [line.split("#")[0].strip() for line in (root / "requirements-dev.txt").read_text().splitlines()]
    return direct + [Requirement(line) for line in dev if line], own


def closure(direct: Iterable[Requirement]) -> set[str]:
    """Return the names of everything these requirements pull in on this machine, themselves included."""
    seen: set[tuple[str, str]] = set()
    queue = [(str(canonicalize_name(r.name)), extra) for r in direct for extra in ("", *r.extras)]
    while queue:
        node = queue.pop()
        if node in seen:
            continue
        seen.add(node)
        queue += list(_requires(*node))
    return {name for name, _ in seen}


def _requires(name: str, extra: str) -> Iterator[tuple[str, str]]:
    try:
        lines = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            for wanted in ("", *requirement.extras):
                yield str(canonicalize_name(requirement.name)), wanted


def installed_version(name: str) -> str | None:
    """Return the installed public version (`+cpu` and the like cut off), or None."""
    try:
        return importlib.metadata.version(name).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
