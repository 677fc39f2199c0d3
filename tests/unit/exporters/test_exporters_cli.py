"""What the commands print, and how they end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from aimass_exporters.cli import register
from aimass_exporters.listing import stored_models
from typer.testing import CliRunner, Result

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AIMASS_STORE", raising=False)
    app = typer.Typer()
    register(app)

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments))

    return invoke


def test_models_lists_the_catalogue_for_a_script(run: Run) -> None:
    result = run("models", "--json")
    listed = json.loads(result.stdout)
    assert result.exit_code == 0
    assert {"smollm2-135m-instruct", "all-minilm-l6-v2"} <= {entry["name"] for entry in listed["catalogue"]}
    assert listed["store"] == []


def test_models_shows_a_bundle_whose_manifest_is_broken(run: Run, tmp_path: Path) -> None:
    bundle = tmp_path / "models" / "broken" / "1"
    bundle.mkdir(parents=True)
    (bundle / "manifest.json").write_text("{")
    [listed] = json.loads(run("models", "--json").stdout)["store"]
    assert (listed["name"], listed["version"]) == ("broken", "1")
    assert "JSON" in listed["problem"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-such-model"], "catalogue has"),
        (["glassllm-en", "--precision", "int2"], "--precision: expected one of fp32, fp16, int8, int4"),
        (["glassllm-en", "--task", "dance"], "--task: expected one of text-generation, embedding"),
        (["glassllm-en", "--name", "No Good"], "--name"),
        (["glassllm-en", "--task", "embedding"], "not supported"),
        (["glassllm-en", "--draft", "int4"], "--draft: expected int8, got 'int4'"),
        (
            ["glassllm-en", "--draft", "int8", "--precision", "int8"],
            "--draft: expected none beside --precision",
        ),
        (["glassllm-en", "--draft", "int8", "--task", "embedding"], "--draft: expected none for embedding"),
    ],
)
def test_an_export_that_cannot_be_is_one_line_and_exit_code_1(
    run: Run, tmp_path: Path, arguments: list[str], said: str
) -> None:
    result = run("export", *arguments)
    last = result.stderr.strip().splitlines()[-1]
    assert result.exit_code == 1
    assert last.startswith("aimass: ")
    assert said in last
    assert "Traceback" not in result.output
    assert not (tmp_path / "models").exists()


def test_convert_checkpoint_says_what_it_wrote(run: Run, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "model.pt")
    result = run("convert-checkpoint", str(tmp_path))
    assert (result.exit_code, (tmp_path / "model.safetensors").is_file()) == (0, True)
    assert run("convert-checkpoint", str(tmp_path)).exit_code == 1


def test_a_store_that_does_not_exist_holds_nothing(tmp_path: Path) -> None:
    assert stored_models(tmp_path / "none") == []
