"""The protos are a contract: a change that breaks a caller is refused before it is committed."""

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = sysconfig.get_path("scripts")


def run_check(root: Path, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / ".ci" / script, BIN], cwd=root, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the protos, the generated code and the scripts that work on them."""
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    shutil.copytree(ROOT / "clients/python", tmp_path / "clients/python")
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    return tmp_path


def edit_proto(root: Path, old: str, new: str) -> None:
    file = root / "protos/aimass/common/v1/usage.proto"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("int32 output_tokens = 2;", "int64 output_tokens = 2;"),
        ("int32 output_tokens = 2;", "int32 output_tokens = 9;"),
        ("int32 output_tokens = 2;", "int32 produced_tokens = 2;"),
        ("  // Output only. Turning text into tokens.\n  double tokenize_ms = 1;\n", ""),
    ],
    ids=["type changed", "number changed", "name changed", "field removed"],
)
def test_a_change_that_breaks_callers_is_refused(copy: Path, old: str, new: str) -> None:
    edit_proto(copy, old, new)
    done = run_check(copy, "check_breaking.sh")
    assert done.returncode != 0
    assert "usage.proto" in done.stdout + done.stderr


def test_a_new_field_breaks_nobody_but_asks_for_new_code(copy: Path) -> None:
    edit_proto(
        copy,
        "// Output only. Turning",
        "// Output only. New.\n  double new_ms = 99;\n  // Output only. Turning",
    )
    assert run_check(copy, "check_breaking.sh").returncode == 0
    stale = run_check(copy, "check_generated.sh")
    assert stale.returncode == 1
    assert "clients/python/aimass/common/v1/usage_pb2.py is not what the protos generate" in stale.stderr
    assert "protos/baseline.txtpb is not what the protos say" in stale.stderr


def test_generated_code_without_a_proto_is_found(copy: Path) -> None:
    (copy / "clients/python/aimass/common/v1/gone_pb2.py").touch()
    assert "gone_pb2.py is not what the protos generate" in run_check(copy, "check_generated.sh").stderr


def test_the_committed_code_and_baseline_are_what_the_protos_say() -> None:
    done = run_check(ROOT, "check_generated.sh")
    assert done.returncode == 0, done.stderr
