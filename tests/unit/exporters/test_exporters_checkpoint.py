"""Pickled weights become safetensors on command; a pickle that is more than tensors is never run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from aimass_exporters.errors import InvalidCheckpoint
from aimass_exporters.sources.checkpoint import convert_checkpoint
from safetensors.torch import load_file

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


class RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("ran-code"),))  # type: ignore[return-value]


@pytest.mark.parametrize("nested", [False, True])
def test_tensors_come_back_equal(tmp_path: Path, nested: bool) -> None:
    torch.save({"state_dict": WEIGHTS, "epoch": 3} if nested else WEIGHTS, tmp_path / "model.ckpt")
    loaded = load_file(convert_checkpoint(tmp_path))
    assert loaded.keys() == WEIGHTS.keys()
    assert all(torch.equal(loaded[name], WEIGHTS[name]) for name in WEIGHTS)


def test_tied_tensors_are_converted(tmp_path: Path) -> None:
    torch.save({"table": WEIGHTS["a"], "head": WEIGHTS["a"]}, tmp_path / "pytorch_model.bin")
    assert load_file(convert_checkpoint(tmp_path)).keys() == {"table", "head"}


def test_shards_are_joined_and_what_trainers_leave_is_passed_over(tmp_path: Path) -> None:
    torch.save({"a": WEIGHTS["a"]}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": WEIGHTS["b"]}, tmp_path / "pytorch_model-00002-of-00002.bin")
    torch.save({"state": 1}, tmp_path / "optimizer.pt")
    assert load_file(convert_checkpoint(tmp_path)).keys() == WEIGHTS.keys()


def test_code_in_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(RunsCode(), tmp_path / "model.pt")
    with pytest.raises(InvalidCheckpoint, match="not loaded"):
        convert_checkpoint(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pt"]


@pytest.mark.parametrize("content", [[1, 2], {"a": "text"}])
def test_a_pickle_of_other_things_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(InvalidCheckpoint):
        convert_checkpoint(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_existing_safetensors_are_not_overwritten(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "model.pt")
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    with pytest.raises(InvalidCheckpoint, match="already"):
        convert_checkpoint(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == b"mine"
