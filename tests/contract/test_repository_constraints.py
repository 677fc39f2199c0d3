"""One pinned set of versions holds for everything the repository installs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECK = ROOT / ".ci/check_constraints.py"


def run_check(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, CHECK, "--root", root], capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of everything the check reads."""
    for file in [*ROOT.glob("*/pyproject.toml"), *ROOT.glob("*/*/pyproject.toml")]:
        target = tmp_path / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    for name in ("constraints.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_every_requirement_is_pinned_and_every_pin_is_required() -> None:
    done = run_check(ROOT)
    assert done.returncode == 0, done.stderr


def test_a_missing_pin_is_found(copy: Path) -> None:
    edit(copy / "constraints.txt", "\ntokenizers==", "\n# tokenizers==")
    done = run_check(copy)
    assert done.returncode == 1
    assert "tokenizers is required but not pinned" in done.stderr


def test_a_requirement_without_a_pin_is_found(copy: Path) -> None:
    edit(copy / "services/encoder/pyproject.toml", '"numpy>=2.0"', '"numpy>=2.0", "left-pad"')
    assert "left-pad is required but not pinned" in run_check(copy).stderr


def test_a_pin_that_nothing_requires_is_found(copy: Path) -> None:
    with (copy / "constraints.txt").open("a") as file:
        file.write("zope==1.0\n")
    assert "zope is pinned but nothing requires it" in run_check(copy).stderr


def test_a_pin_that_was_changed_but_not_installed_is_found(copy: Path) -> None:
    edit(copy / "constraints.txt", "numpy==", "numpy==9")
    assert "numpy is pinned to 9" in run_check(copy).stderr


def test_a_download_address_is_not_a_pin(copy: Path) -> None:
    with (copy / "constraints.txt").open("a") as file:
        file.write("zope @ https://example.com/zope.whl\n")
    assert "not of the form name==version" in run_check(copy).stderr
