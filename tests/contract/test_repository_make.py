"""What a person who types `make` relies on."""

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROMISED = {"help", "setup", "models", "demo", "run", "check", "test", "bench", "protos", "images"}


def make(*arguments: str) -> str:
    """Run make in a clean environment (this test may itself run under make) and return what it prints."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    done = subprocess.run(
        ["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_help_lists_every_promised_target_with_a_sentence() -> None:
    lines = re.sub(r"\x1b\[\d+m", "", make("help")).splitlines()
    sentences = {line.split()[0]: " ".join(line.split()[1:]) for line in lines}
    assert sentences.keys() == PROMISED
    assert all(len(sentence) > 10 for sentence in sentences.values())


def test_make_alone_is_help() -> None:
    assert make() == make("help")


def test_every_promised_target_depends_only_on_what_make_can_build() -> None:
    for target in sorted(PROMISED):
        make("--dry-run", target)


def test_ci_runs_the_same_check_and_test_as_a_person() -> None:
    script = (ROOT / ".ci/run").read_text()
    assert re.search(r"^make check\b", script, re.MULTILINE)
    assert re.search(r"^make test\b", script, re.MULTILINE)
    assert os.access(ROOT / ".ci/run", os.X_OK)
