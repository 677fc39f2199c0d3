"""Environments of peers that cannot be installed beside us: made once, whole or not at all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import peers
from bench.contest import Entry, lineup
from bench.environment import Environment, PeerUnavailable, run_in


def environment(folder: Path, requirements: str) -> Environment:
    file = folder / "peer.txt"
    file.write_text(requirements)
    return Environment("a peer", file)


def test_an_environment_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = environment(tmp_path, "# nothing\n")
    python = wanted.python(cache=tmp_path)
    run_in(python, ["-c", "import sys; assert sys.prefix != sys.base_prefix"], failure="not an environment")
    assert "installing a peer" in capsys.readouterr().out
    assert wanted.python(cache=tmp_path) == python
    assert capsys.readouterr().out == ""


def test_what_cannot_be_installed_is_said_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    wanted = environment(tmp_path, "a-package-that-nobody-has==1.0\n")
    for _ in range(2):
        with pytest.raises(PeerUnavailable, match=r"a peer cannot be installed: .*a-package-that-nobody-has"):
            wanted.python(cache=tmp_path)


def test_a_changed_pin_makes_another_environment(tmp_path: Path) -> None:
    before = environment(tmp_path, "torch==2.0\n").key
    assert environment(tmp_path, "torch==2.1\n").key != before


def test_a_program_that_fails_tells_its_last_words_and_no_path_of_this_machine(tmp_path: Path) -> None:
    with pytest.raises(PeerUnavailable, match=r"^the builder refuses: NotImplementedError: no weights here$"):
        run_in(
            Path(sys.executable),
            ["-c", "raise NotImplementedError('no /somewhere/private/weights here')"],
            failure="the builder refuses",
        )


def test_a_peer_that_cannot_run_is_named_and_the_others_take_part() -> None:
    entry = Entry("present", "", "module:Class", {}, 1)

    def absent() -> list[Entry]:
        raise PeerUnavailable("somebody cannot be installed: no network")

    entries, absences = lineup([absent, lambda: [entry], absent])
    assert entries == [entry]
    assert absences == ["Not run: somebody cannot be installed: no network"]


@pytest.mark.parametrize("wanted", [peers.GENAI, peers.INFINITY], ids=lambda e: e.name)
def test_a_report_tells_the_versions_of_what_is_pinned(wanted: Environment) -> None:
    assert all(f"{name} {wanted.versions[name]}" in wanted.sentence() for name in wanted.told)
    assert wanted.told


@pytest.mark.parametrize("wanted", [peers.GENAI, peers.INFINITY], ids=lambda e: e.name)
def test_every_requirement_is_pinned(wanted: Environment) -> None:
    lines = [line for line in wanted.requirements.read_text().splitlines() if not line.startswith("#")]
    assert set(lines) == {f"{name}=={version}" for name, version in wanted.versions.items()}


@pytest.mark.parametrize("module", ["bench.worker", "bench.foreign.genai", "bench.foreign.infinity"])
def test_what_runs_in_a_foreign_environment_needs_none_of_our_packages(module: str) -> None:
    stub = "import sys, types; sys.modules['onnxruntime_genai'] = types.ModuleType('onnxruntime_genai')"
    listing = "import json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    script = f"{stub}; import {module}; {listing}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    foreign = set(json.loads(done.stdout)) - sys.stdlib_module_names - {"bench", "numpy", "onnxruntime_genai"}
    assert {name for name in foreign if not name.startswith("_")} == set()
