"""Several LoRA adapters in one graph, against PyTorch with each of them merged into the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import typer
from aimass_decoding.golden import replay_golden
from aimass_decoding.runner import DecoderRunner, geometry_of
from aimass_exporters.cli import register
from aimass_exporters.errors import InvalidCheckpoint, InvalidExportOption
from aimass_exporters.exporter import export_model
from aimass_exporters.graphs.cuda_support import operators_without_kernel
from aimass_exporters.listing import stored_models
from aimass_exporters.sources.adapter_set import read_adapters
from aimass_exporters.sources.lora_adapter import low_rank_layers, merged, read_adapter
from aimass_exporters.testing import cached_checkpoint, cached_export, tiny_config, write_adapter
from aimass_serving.bundle import Bundle
from aimass_serving.errors import BadBundle
from aimass_serving.session import Device, SessionConfig, open_session
from aimass_serving.store import open_store
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

TOLERANCE = 1e-4
"""Largest difference of fp32 logits, which reach about 10 with these adapters."""
NUM_STEPS = 6
TARGETS = {
    "llama": (("q_proj", "v_proj", "down_proj"), ("k_proj", "gate_proj")),
    "gpt2": (("c_attn", "c_fc"), ("c_attn", "mlp.c_proj")),  # kept transposed
}
NAMES = ("tone", "terse")


@dataclass(frozen=True, slots=True)
class Adapted:
    """A model, its adapters' folders, and the bundle that serves them all."""

    model: Any
    folders: Sequence[Path]
    bundle: Bundle
    plain: Bundle

    def logits(self, token_ids: list[int], adapter: int) -> Any:
        """Return PyTorch's logits [n, vocab] with an adapter merged, or without one."""
        merging = merged(self.model, read_adapter(self.folders[adapter - 1])) if adapter else nullcontext()
        with torch.inference_mode(False), merging, torch.no_grad():
            return self.model(torch.tensor([token_ids])).logits[0].numpy()


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def opened(store: Path) -> Bundle:
    found = open_store(str(store))
    return found.open(found.list()[0])


def runner_of(bundle: Bundle, *, max_slots: int = 4) -> DecoderRunner:
    session = open_session(bundle.graph("decoder"), SessionConfig(device=Device.CPU, num_threads=1))
    geometry = geometry_of(bundle.manifest.decoder, num_adapters=len(bundle.manifest.adapters))
    return DecoderRunner(session, geometry, max_slots=max_slots, max_len=64)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def adapted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    family = str(request.param)
    folder, scratch = cached_checkpoint(tiny_config(family)), tmp_path_factory.mktemp(family)
    model = loaded(folder)
    folders = [
        write_adapter(model, scratch / f"{seed}", targets=targets, seed=seed, rank=4 - seed)
        for seed, targets in enumerate(TARGETS[family])
    ]
    named = list(zip(NAMES, folders, strict=True))
    store = cached_export(folder, name=f"adapted-{family}", adapters=named)
    plain: Path = request.getfixturevalue(f"tiny_{family}_store")
    return Adapted(model, folders, opened(store), opened(plain))


PROMPTS = [list(range(3, 3 + length)) for length in (17, 5, 9, 12)]
WRITTEN = [[7, 30, 8, 31, 9, 32], [40, 41, 42, 43, 44, 45], [5, 5, 5, 6, 6, 6], [100, 90, 80, 70, 60, 50]]


def walked(runner: DecoderRunner, adapters: Sequence[int]) -> Iterator[tuple[int, int, Any]]:
    """Yield slot, position and logits [vocab]: prompts in two chunks, then steps of all rows together."""
    for slot, (prompt, adapter) in enumerate(zip(PROMPTS, adapters, strict=True)):
        runner.set_adapter(slot, adapter)
        half = len(prompt) // 2
        runner.prefill(slot, np.array(prompt[:half]), start=0)
        last = runner.prefill(slot, np.array(prompt[half:]), start=half)
        yield slot, len(prompt) - 1, last.copy()
    for step in range(NUM_STEPS):
        lengths = np.array([len(prompt) + step for prompt in PROMPTS])
        logits = runner.decode(np.array([text[step] for text in WRITTEN]), lengths)
        yield from ((slot, int(lengths[slot]), row.copy()) for slot, row in enumerate(logits))


@pytest.mark.parametrize("adapters", [(1, 0, 2, 1), (0, 0, 2, 0), (2, 1, 1, 0)])
def test_rows_of_a_mixed_step_are_those_of_models_with_their_adapter_merged(
    adapted: Adapted, adapters: tuple[int, ...]
) -> None:
    texts = [prompt + text for prompt, text in zip(PROMPTS, WRITTEN, strict=True)]
    expected = [adapted.logits(text, adapter) for text, adapter in zip(texts, adapters, strict=True)]
    for slot, position, got in walked(runner_of(adapted.bundle), adapters):
        assert np.abs(got - expected[slot][position]).max() <= TOLERANCE


def test_the_adapters_differ_from_the_model_and_from_one_another(adapted: Adapted) -> None:
    base, tone, terse = (adapted.logits(PROMPTS[0], adapter) for adapter in (0, 1, 2))
    for left, right in ((base, tone), (base, terse), (tone, terse)):
        assert np.abs(left - right).max() > 0.5


def test_rows_without_an_adapter_have_the_very_numbers_of_the_plain_bundle(adapted: Adapted) -> None:
    plain = list(walked(runner_of(adapted.plain), (0, 0, 0, 0)))
    alone = list(walked(runner_of(adapted.bundle), (0, 0, 0, 0)))
    mixed = list(walked(runner_of(adapted.bundle), (0, 1, 0, 2)))
    for (slot, _, expected), (_, _, got), (_, _, beside_others) in zip(plain, alone, mixed, strict=True):
        assert np.array_equal(got, expected)
        assert slot in (1, 3) or np.array_equal(beside_others, expected)


def test_query_key_and_value_stay_one_product(adapted: Adapted) -> None:
    graph = onnx.load(adapted.bundle.graph("decoder"), load_external_data=False).graph
    attention = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    assert len(attention) == 2
    assert all(node.input[1] == node.input[2] == "" for node in attention)
    assert {node.domain for node in graph.node} <= {"", "com.microsoft"}


def test_the_manifest_tells_of_each_adapter_and_how_near_it_came(adapted: Adapted) -> None:
    tone, terse = adapted.bundle.manifest.adapters
    assert (tone.name, terse.name) == NAMES
    assert (tone.rank, terse.rank) == (4, 3)
    assert list(tone.targets) == sorted(tone.targets)
    assert tone.licence == "unknown"
    for adapter in (tone, terse):
        [logits, agreement] = adapter.parity.measures
        assert 0 < logits.value <= logits.bound == pytest.approx(1e-3)
        assert agreement.value == 1
    [row] = stored_models(adapted.bundle.path.parents[1])
    assert row.adapters == NAMES


def test_the_golden_prompt_tells_adapters_apart(adapted: Adapted) -> None:
    golden, manifest = adapted.bundle.golden(), adapted.bundle.manifest
    runner = runner_of(adapted.bundle, max_slots=1)
    replay_golden(runner, golden, bundle=manifest.name, num_adapters=2)
    swapped = golden | {"adapter_logits": golden["adapter_logits"][::-1]}
    with pytest.raises(BadBundle, match="golden logits differ"):
        replay_golden(runner, swapped, bundle=manifest.name, num_adapters=2)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_other_precisions_keep_the_adapters_and_their_bounds(
    precision: str, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    model = loaded(tiny_llama_folder)
    folder = write_adapter(model, tmp_path / "a", targets=("q_proj", "up_proj"), seed=5, size=0.01)
    store = cached_export(
        tiny_llama_folder, name=f"adapted-{precision}", precision=precision, adapters=[("tone", folder)]
    )
    bundle = opened(store)
    assert bundle.is_verified
    [tone] = bundle.manifest.adapters
    assert tone.parity.measures[-1].name in ("top1_agreement", "top1_agreement_passages")
    graph = onnx.load(bundle.graph("decoder"))
    factors = [tensor for tensor in graph.graph.initializer if ".adapter_" in tensor.name]
    assert len(factors) == 8  # two factors of two products in two layers
    stored = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.FLOAT
    assert {tensor.data_type for tensor in factors} == {stored}
    if precision == "fp16":
        assert operators_without_kernel(graph, dtype="float16") == []


def test_merging_for_a_while_leaves_no_trace(tiny_llama_folder: Path, tmp_path: Path) -> None:
    model = loaded(tiny_llama_folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapter = read_adapter(write_adapter(model, tmp_path / "a", targets=("q_proj",), seed=1))
    with merged(model, adapter):
        assert not torch.equal(
            model.state_dict()["model.layers.0.self_attn.q_proj.weight"],
            before["model.layers.0.self_attn.q_proj.weight"],
        )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_cannot_stay_beside_the_weights_is_refused(tmp_path: Path) -> None:
    model = loaded(cached_checkpoint(tiny_config("qwen2")))

    def refusal(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> str:
        folder = write_adapter(model, tmp_path / name, targets=("layers.0.self_attn.q_proj",), seed=2)
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")
        with pytest.raises(InvalidCheckpoint) as raised:
            low_rank_layers(model, read_adapter(folder))
        return str(raised.value)

    prefix = "base_model.model.model."
    query = f"{prefix}layers.0.self_attn.q_proj"
    whole = {"base_model.model.lm_head.weight": torch.zeros(512, 64)}
    assert "lm_head.weight cannot be kept beside" in refusal("whole", lambda t: t.update(whole))
    embedding = {f"{prefix}embed_tokens.lora_embedding_{part}": torch.zeros(2, 2) for part in "AB"}
    assert "model.embed_tokens cannot be kept" in refusal("embedding", lambda t: t.update(embedding))
    other = {query.replace("q_proj", f"z_proj.lora_{part}.weight"): torch.zeros(4, 4) for part in "AB"}
    assert "z_proj.weight, which the model has not" in refusal("other", lambda t: t.update(other))
    wide = {f"{query}.lora_A.weight": torch.zeros(4, 65)}
    assert "expected (64, 64) for this model, got (64, 65)" in refusal("wide", lambda t: t.update(wide))
    assert "one of its two factors" in refusal("half", lambda t: t.pop(f"{query}.lora_A.weight"))


def test_bad_names_are_refused(tiny_llama_folder: Path, tmp_path: Path) -> None:
    folder = write_adapter(loaded(tiny_llama_folder), tmp_path / "a", targets=("q_proj",), seed=1)
    with pytest.raises(InvalidExportOption, match=r"--adapters.*got 'Tone!'"):
        read_adapters([("Tone!", folder)])
    with pytest.raises(InvalidExportOption, match="got 'tone twice'"):
        read_adapters([("tone", folder), ("terse", folder), ("tone", folder)])
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert [named.licence for named in read_adapters([("tone", folder)])] == ["mit"]


def test_adapters_are_for_text_generation_and_not_beside_a_merged_one(
    tiny_llama_folder: Path, tmp_path: Path
) -> None:
    folder = write_adapter(loaded(tiny_llama_folder), tmp_path / "a", targets=("q_proj",), seed=1)

    def refusal(**changes: Any) -> str:
        with pytest.raises(InvalidExportOption, match="--adapters") as raised:
            export_model(
                str(tiny_llama_folder), store=tmp_path / "store", adapters=[("tone", folder)], **changes
            )
        return str(raised.value)

    assert "none for text2text-generation" in refusal(task="text2text-generation")
    assert "none beside --adapter" in refusal(adapter=folder)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("given", ["tone", "=dir", "tone="])
def test_the_export_command_takes_names_with_folders_only(given: str) -> None:
    app = typer.Typer()
    register(app)
    app.command("other")(lambda: None)
    result = CliRunner().invoke(app, ["export", "x", "--adapters", given])
    assert result.exit_code == 2
    assert "expected NAME=DIR" in result.stderr
