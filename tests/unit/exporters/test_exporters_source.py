"""What a source resolves to, and which sources are refused, before any weight is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from aimass_exporters.errors import InvalidCheckpoint, PickleRefused, SourceUnavailable, UnknownSource
from aimass_exporters.progress import SilentProgress
from aimass_exporters.sources.catalogue import CATALOGUE, TaskName
from aimass_exporters.sources.packages import fetch_package, pinned_packages
from aimass_exporters.sources.source import folder_source, resolve_source


def _folder(path: Path, *files: str, **config: object) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    for name in files:
        (path / name).write_bytes(b"bytes")
    return path


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "model.pth", "epoch=3.ckpt"])
def test_pickled_weights_are_refused_with_the_command_that_converts_them(tmp_path: Path, file: str) -> None:
    with pytest.raises(PickleRefused, match="aimass convert-checkpoint"):
        resolve_source(str(_folder(tmp_path / "model", file)), SilentProgress())


def test_a_pickle_named_alone_is_refused(tmp_path: Path) -> None:
    _folder(tmp_path / "model", "model.ckpt")
    with pytest.raises(PickleRefused):
        resolve_source(str(tmp_path / "model" / "model.ckpt"), SilentProgress())


def test_safetensors_beside_a_pickle_are_taken(tmp_path: Path) -> None:
    folder = _folder(
        tmp_path / "model", "model.safetensors", "pytorch_model.bin", architectures=["GPT2LMHeadModel"]
    )
    assert resolve_source(str(folder), SilentProgress()).task is TaskName.TEXT_GENERATION


@pytest.mark.parametrize("files", [[], ["model.txt"]])
def test_a_folder_without_weights_is_refused(tmp_path: Path, files: list[str]) -> None:
    with pytest.raises(InvalidCheckpoint, match="safetensors"):
        resolve_source(str(_folder(tmp_path / "model", *files)), SilentProgress())


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidCheckpoint, match=r"config\.json"):
        resolve_source(str(tmp_path), SilentProgress())


def test_a_configuration_that_is_no_json_is_refused(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "model", "model.safetensors")
    (folder / "config.json").write_text("{")
    with pytest.raises(InvalidCheckpoint, match=r"config\.json cannot be read"):
        resolve_source(str(folder), SilentProgress())


@pytest.mark.parametrize("source", ["no-such-model", "a/b/c", "", "model.txt"])
def test_an_unknown_source_names_what_there_is(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(_folder(tmp_path / "here"))
    with pytest.raises((UnknownSource, InvalidCheckpoint)) as raised:
        resolve_source(source, SilentProgress())
    assert source == "" or "smollm2-135m-instruct" in str(raised.value)


def test_a_hub_id_that_cannot_be_reached_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceUnavailable, match=r"owner/no-such-model.*name the folder"):
        resolve_source("owner/no-such-model", SilentProgress())


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n# Model\n", "apache-2.0"),
        ("# No front matter\n", "unknown"),
        ("---\nlicense: [\n---\n", "unknown"),
    ],
)
def test_the_licence_is_read_from_the_model_card(tmp_path: Path, readme: str, licence: str) -> None:
    folder = _folder(tmp_path / "model", "model.safetensors")
    (folder / "README.md").write_text(readme)
    assert folder_source(folder, origin="model").licence == licence


def test_the_weights_id_changes_with_any_byte(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "model", "model.safetensors")
    before = folder_source(folder, origin="model").weights_id()
    (folder / "model.safetensors").write_bytes(b"bytez")
    assert folder_source(folder, origin="model").weights_id() != before


def test_every_catalogue_entry_has_a_pinned_package() -> None:
    assert {entry.package.name for entry in CATALOGUE.values()} <= pinned_packages().keys()
    assert all(len(package.sha256) == 64 for package in pinned_packages().values())


def test_a_package_that_cannot_be_fetched_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SourceUnavailable, match=r"glassllm==.*check the network"):
        fetch_package(pinned_packages()["glassllm"], cache=tmp_path)
    assert list((tmp_path / "packages").iterdir()) == []


def test_a_package_in_the_cache_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    package = pinned_packages()["glassllm"]
    folder = tmp_path / "packages" / package.sha256
    folder.mkdir(parents=True)
    assert fetch_package(package, cache=tmp_path) == folder
