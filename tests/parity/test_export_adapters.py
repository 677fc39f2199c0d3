"""LoRA adapters merged at export, against PyTorch that adds each product beside the layer it is for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from aimass_decoding.runner import DecoderRunner, geometry_of
from aimass_exporters.cli import register
from aimass_exporters.errors import ExportError, InvalidCheckpoint, InvalidExportOption, PickleRefused
from aimass_exporters.exporter import export_model
from aimass_exporters.sources.lora_adapter import merge_adapter, read_adapter
from aimass_exporters.testing import cached_checkpoint, tiny_config
from aimass_serving.bundle import read_bundle
from aimass_serving.session import Device, SessionConfig, open_session
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

RANK, IDS = 4, torch.arange(3, 40).unsqueeze(0)
CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "use_rslora": False, "alpha_pattern": {}}
TARGETS = {
    "llama": ("q_proj", "v_proj", "down_proj"),
    "gpt2": ("c_attn", "c_fc"),  # kept transposed
}


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def sizes(module: Any) -> tuple[int, int]:
    """Return how many numbers a layer takes and gives."""
    rows, columns = module.weight.shape
    return (rows, columns) if type(module).__name__ == "Conv1D" else (columns, rows)


def random_adapter(model: Any, targets: tuple[str, ...]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for name, module in model.named_modules():
        if name.endswith(targets):
            taken, given = sizes(module)
            key = f"base_model.model.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, taken, generator=generator)
            tensors[f"{key}.lora_B.weight"] = torch.randn(given, RANK, generator=generator) / 10
    return tensors


def write(folder: Path, tensors: dict[str, torch.Tensor], **changes: object) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | changes))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def adapted(model: Any, tensors: dict[str, torch.Tensor], scale: Callable[[str], float]) -> Any:
    """Add each product beside its layer, while the weights stay as they were."""
    for name, module in model.named_modules():
        down = tensors.get(f"base_model.model.{name}.lora_A.weight")
        if down is not None:
            up, factor = tensors[f"base_model.model.{name}.lora_B.weight"], scale(name)

            def add(_m: Any, inputs: Any, output: Any, d: Any = down, u: Any = up, f: Any = factor) -> Any:
                return output + inputs[0] @ d.T @ u.T * f

            module.register_forward_hook(add)
    return model


def logits_of(model: Any) -> Any:
    with torch.no_grad():
        return model(IDS).logits[0, -1].numpy()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_merged_adapter_gives_the_numbers_of_its_products(family: str, tmp_path: Path) -> None:
    folder = cached_checkpoint(tiny_config(family))
    plain = loaded(folder)
    tensors = random_adapter(plain, TARGETS[family])
    adapter = write(tmp_path / "my-tone", tensors)
    bundle = read_bundle(export_model(str(folder), store=tmp_path / "store", adapter=adapter))
    session = open_session(bundle.graph("decoder"), SessionConfig(device=Device.CPU, allow_spinning=False))
    runner = DecoderRunner(session, geometry_of(bundle.manifest.decoder), max_slots=1, max_len=64)
    got = runner.prefill(0, IDS[0].numpy(), start=0)
    before, expected = logits_of(plain), logits_of(adapted(plain, tensors, lambda _: 8 / RANK))
    assert np.abs(got - expected).max() <= 1e-4
    assert np.abs(before - expected).max() > 1.0  # the adapter does change the model
    assert bundle.manifest.adapter == "my-tone"


def test_scales_follow_the_rank_and_the_patterns_of_the_adapter(
    tiny_llama_folder: Path, tmp_path: Path
) -> None:
    model, merged = loaded(tiny_llama_folder), loaded(tiny_llama_folder)
    tensors = random_adapter(model, TARGETS["llama"])
    pattern = {r"layers\.1\.self_attn\.q_proj": 2}
    adapter = write(tmp_path / "a", tensors, use_rslora=True, alpha_pattern=pattern)
    merge_adapter(merged, read_adapter(adapter))

    def scale(name: str) -> float:
        return (2.0 if name == "model.layers.1.self_attn.q_proj" else 8.0) / float(RANK**0.5)

    assert np.abs(logits_of(merged) - logits_of(adapted(model, tensors, scale))).max() <= 1e-4


def test_whole_modules_and_embeddings_of_an_adapter_are_merged(tmp_path: Path) -> None:
    model = loaded(cached_checkpoint(tiny_config("qwen2")))
    before = model.model.embed_tokens.weight.detach().clone()
    head, up, down = torch.randn(512, 64), torch.randn(64, 2), torch.randn(2, 512)
    tensors = {
        "base_model.model.lm_head.weight": head,
        "base_model.model.model.embed_tokens.lora_embedding_A": down,
        "base_model.model.model.embed_tokens.lora_embedding_B": up,
    }
    merge_adapter(model, read_adapter(write(tmp_path / "a", tensors)))
    assert torch.equal(model.lm_head.weight, head)
    assert torch.allclose(model.model.embed_tokens.weight - before, (up @ down).T * 4, atol=1e-4)


def test_an_adapter_that_does_not_fit_is_refused_by_name(tiny_llama_folder: Path, tmp_path: Path) -> None:
    model = loaded(tiny_llama_folder)
    tensors = random_adapter(model, ("layers.0.self_attn.q_proj",))
    [down, up] = sorted(tensors)

    def refusal(folder: str, tensors: dict[str, torch.Tensor], **changes: object) -> str:
        with pytest.raises(InvalidCheckpoint) as raised:
            merge_adapter(model, read_adapter(write(tmp_path / folder, tensors, **changes)))
        return str(raised.value)

    other = {key.replace("q_proj", "z_proj"): tensor for key, tensor in tensors.items()}
    assert "z_proj.weight, which the model has not" in refusal("unknown", other)
    wide = {**tensors, down: torch.zeros(RANK, 65)}
    assert "expected (64, 64) for this model, got (64, 65)" in refusal("wide", wide)
    assert "one of its two factors" in refusal("half", {up: tensors[up]})
    assert "expected LoRA factors" in refusal("none", {})
    assert "use_dora" in refusal("dora", tensors, use_dora=True)
    assert "got IA3" in refusal("ia3", tensors, peft_type="IA3")
    assert "lora_alpha" in refusal("alpha", tensors, lora_alpha=None)
    tied = {f"base_model.model.lm_head.{part}.weight": torch.zeros(4, 4) for part in ("lora_A", "lora_B")}
    assert "lm_head, whose weights" in refusal("tied", tied)


def test_a_folder_without_tensors_is_refused(tiny_llama_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidCheckpoint, match=r"adapter_config\.json"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(InvalidCheckpoint, match=r"adapter_model\.safetensors"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(PickleRefused):
        read_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InvalidCheckpoint, match="not safetensors"):
        export_model(str(tiny_llama_folder), store=tmp_path / "store", adapter=tmp_path)
    assert not (tmp_path / "store").exists()


def test_an_adapter_is_for_language_models_only(tiny_llama_folder: Path, tmp_path: Path) -> None:
    adapter = write(tmp_path / "a", random_adapter(loaded(tiny_llama_folder), ("q_proj",)))
    with pytest.raises(InvalidExportOption, match="--adapter") as raised:
        export_model(str(tiny_llama_folder), task="embedding", store=tmp_path / "store", adapter=adapter)
    assert isinstance(raised.value, ExportError)


def test_the_export_command_takes_an_adapter_and_tells_what_is_wrong_with_it(
    tiny_llama_folder: Path, tmp_path: Path
) -> None:
    app = typer.Typer()
    register(app)
    arguments = ["export", str(tiny_llama_folder), "--store", str(tmp_path / "store")]
    result = CliRunner().invoke(app, [*arguments, "--adapter", str(tmp_path)])
    assert result.exit_code == 1
    assert "expected the folder of an adapter with adapter_config.json" in " ".join(result.stderr.split())
    assert not (tmp_path / "store").exists()
