"""Fail when a tracked file names a package index or a path of one machine, is unfinished, or is too big.

Reads what git tracks and nothing else. A file that must name such a thing on purpose does not exist here.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_BYTES = 1_000_000

# Written with character classes so that this file does not match itself.
FORBIDDEN = {
    "names a package index": re.compile(
        r"py[p]i\.org|python[h]osted|registry\.np[m]js|npm[m]irror|deb\.d[e]bian|proxy\.gol[a]ng|"
        r"download\.py[t]orch"
    ),
    "names a path of one machine": re.compile(r"(?<![\w./-])/(?:work|root|farm|home/\w+|Users/\w+)/"),
    "has an unfinished mark": re.compile(r"\b(?:TO[D]O|FIX[M]E|XX[X])\b"),
    "has a conflict mark": re.compile(r"^(?:[<]{7}|[>]{7}) ", re.MULTILINE),
}


def main() -> int:
    """Print what is wrong, one line each. Exit code 1 if anything is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", type=Path, default=Path())
    problems = list(find_problems(parser.parse_args().root))
    print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
    return 1 if problems else 0


def find_problems(root: Path) -> Iterator[str]:
    """Yield `file:line: sentence` for each finding."""
    for name in tracked_files(root):
        file = root / name
        if not file.is_file():
            continue
        content = file.read_bytes()
        if len(content) > MAX_BYTES:
            yield f"{name}:1: has {len(content)} bytes; more than {MAX_BYTES} do not belong in the repository"
        if b"\0" not in content:  # a picture has no words
            yield from _findings(name, content.decode(errors="replace"))


def tracked_files(root: Path) -> list[str]:
    """Return the paths git tracks, and the new ones it would, relative to `root`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    return [name for name in listing.stdout.split("\0") if name]


def _findings(name: str, text: str) -> Iterator[str]:
    for sentence, pattern in FORBIDDEN.items():
        for match in pattern.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            yield f"{name}:{line}: {sentence}: {match[0]!r}"


if __name__ == "__main__":
    sys.exit(main())
