"""What must not be in the repository."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECK = ROOT / ".ci/check_tracked_files.py"


def run_check(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, CHECK, "--root", root], capture_output=True, text=True, check=False
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    return tmp_path


def test_the_repository_is_clean() -> None:
    done = run_check(ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("pip install --index-url https://" + "py" + "pi.org/simple x", "names a package index"),
        ('"resolved": "https://registry.' + "np" + 'mjs.org/x.tgz"', "names a package index"),
        ("store = '/" + "root" + "/models'", "names a path of one machine"),
        ("cd /" + "home" + "/jane/aimass", "names a path of one machine"),
        ("# TO" + "DO: later", "has an unfinished mark"),
        ("<" * 7 + " HEAD", "has a conflict mark"),
    ],
)
def test_a_forbidden_line_is_found_with_its_place(repository: Path, line: str, sentence: str) -> None:
    (repository / "notes.md").write_text(f"first\n{line}\n")
    done = run_check(repository)
    assert done.returncode == 1
    assert f"notes.md:2: {sentence}" in done.stderr


def test_a_big_file_is_found(repository: Path) -> None:
    (repository / "weights.bin").write_bytes(bytes(1_000_001))
    assert "weights.bin:1: has 1000001 bytes" in run_check(repository).stderr


def test_an_ignored_file_is_not_looked_at(repository: Path) -> None:
    (repository / ".gitignore").write_text("notes.md\n")
    (repository / "notes.md").write_text("/" + "root" + "/x\n")
    assert run_check(repository).returncode == 0
