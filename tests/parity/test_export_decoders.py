"""Exported decoders against PyTorch on the same weights, as the engine will run them: chunks, then ragged
batches.

Tolerances: float32 in another order of sums, 1e-4 over two random layers, 1e-3 over thirty real ones.
Logits are compared, never only their best token: a wrong rotary layout once kept the best token and missed
by 4.5.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import typer
from aimass_decoding.runner import DecoderRunner, geometry_of
from aimass_exporters.cli import register
from aimass_exporters.decoders.decoder_export import export_decoder
from aimass_exporters.errors import ParityFailed
from aimass_exporters.exporter import export_model
from aimass_exporters.graphs.cuda_support import operators_without_kernel
from aimass_exporters.testing import cached_checkpoint, cached_export, tiny_config
from aimass_serving.bundle import Bundle
from aimass_serving.session import Device, SessionConfig, open_session
from aimass_serving.store import open_store
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

FAMILIES = ["llama", "gpt2", "qwen2", "mistral", "gpt_neox", "opt"]
PROMPT_LENGTHS, NUM_STEPS = (3, 17, 29, 8), 6


def _bundle(store: Path) -> Bundle:
    models = open_store(str(store))
    [ref] = models.list()
    return models.open(ref)


def _runner(bundle: Bundle, *, max_slots: int, max_len: int) -> DecoderRunner:
    session = open_session(bundle.graph("decoder"), SessionConfig(device=Device.CPU, allow_spinning=False))
    return DecoderRunner(session, geometry_of(bundle.manifest.decoder), max_slots=max_slots, max_len=max_len)


def _measures(bundle: Bundle) -> dict[str, float]:
    return {measure.name: measure.value for measure in bundle.manifest.parity.measures}


def _largest_difference(bundle: Bundle, model: Any) -> float:
    """Prefill prompts of random tokens in uneven chunks, then decode them together; compare every logit."""
    random = np.random.default_rng(5)
    vocab = bundle.manifest.decoder.vocab_size
    texts = [random.integers(3, vocab, n + NUM_STEPS) for n in PROMPT_LENGTHS]
    with torch.no_grad():
        expected = [model(torch.tensor(ids[None])).logits[0].numpy() for ids in texts]
    runner = _runner(bundle, max_slots=len(texts), max_len=64)
    lengths = np.array(PROMPT_LENGTHS)
    differences = []
    for slot, ids in enumerate(texts):
        for start in range(0, lengths[slot], 5):
            end = min(start + 5, lengths[slot])
            got = runner.prefill(slot, ids[start:end], start=start)
            differences.append(np.abs(got - expected[slot][end - 1]).max())
    for _ in range(NUM_STEPS):
        tokens = np.array([ids[n] for ids, n in zip(texts, lengths, strict=True)])
        got = runner.decode(tokens, lengths)
        differences += [np.abs(got[s] - expected[s][n]).max() for s, n in enumerate(lengths)]
        lengths = lengths + 1
    return float(max(differences))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_agrees_with_pytorch_in_chunks_and_ragged_batches(family: str) -> None:
    folder = cached_checkpoint(tiny_config(family))
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    bundle = _bundle(cached_export(folder, name=f"tiny-{family}"))
    assert bundle.manifest.family == family
    assert _largest_difference(bundle, model) <= 1e-4


def test_a_token_looks_back_as_far_as_its_window_and_no_further() -> None:
    """In one layer, what lies before the window changes nothing, and the first token within it does."""
    config = tiny_config("mistral")
    config.num_hidden_layers = 1
    bundle = _bundle(cached_export(cached_checkpoint(config), name="narrow-mistral"))
    runner = _runner(bundle, max_slots=1, max_len=64)
    ids = np.arange(3, 43)
    logits = runner.prefill(0, ids, start=0).copy()

    def with_another(place: int) -> Any:
        changed = ids.copy()
        changed[place] = 77
        return runner.prefill(0, changed, start=0)

    first_seen = len(ids) - config.sliding_window
    assert np.array_equal(with_another(first_seen - 1), logits)
    assert not np.allclose(with_another(first_seen), logits)


def test_real_smollm2_agrees_with_pytorch(smollm2_store: Path, smollm2_model: Any) -> None:
    bundle = _bundle(smollm2_store)
    assert _largest_difference(bundle, smollm2_model[0]) <= 1e-3
    assert bundle.manifest.licence == "Apache-2.0"
    assert list(bundle.manifest.decoder.eos_token_ids) == [2]


def test_gpt2_at_full_size_agrees_with_pytorch(gpt2_store: Path, gpt2_folder: Path) -> None:
    bundle = _bundle(gpt2_store)
    model = AutoModelForCausalLM.from_pretrained(gpt2_folder, attn_implementation="eager").eval()
    assert _largest_difference(bundle, model) <= 1e-3


def test_tied_weights_are_stored_once(smollm2_store: Path, smollm2_model: Any) -> None:
    bundle = _bundle(smollm2_store)
    model = smollm2_model[0]
    num_parameters = sum(p.numel() for p in model.parameters())  # a tied parameter counts once
    num_bytes = bundle.file("decoder.onnx.data").stat().st_size
    assert 4 * num_parameters <= num_bytes < 4 * num_parameters + 8_000_000


def test_llama_layers_are_traced_to_single_nodes(smollm2_store: Path) -> None:
    model = onnx.load(_bundle(smollm2_store).graph("decoder"), load_external_data=False)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("GroupQueryAttention") == 30
    assert operators.count("SimplifiedLayerNormalization") == 1
    assert operators.count("SkipSimplifiedLayerNormalization") == 60
    assert operators.count("MatMul") == 30 * 4 + 1
    assert not {"Pow", "ReduceMean", "Sqrt", "Softmax", "Add"}.intersection(operators)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantised_smollm2_keeps_its_perplexity(precision: str) -> None:
    bundle = _bundle(cached_export("smollm2-135m-instruct", name=f"smollm2-{precision}", precision=precision))
    measures = _measures(bundle)
    assert measures["perplexity_increase"] <= {"int8": 0.007, "int4": 0.25}[precision]
    assert measures["top1_agreement"] >= {"int8": 0.935, "int4": 0.7}[precision]
    assert bundle.file("decoder.onnx.data").stat().st_size < {"int8": 160e6, "int4": 120e6}[precision]


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("source", ["glassllm-en", "gpt2"])
def test_every_product_of_a_quantised_decoder_is_integer(source: str, precision: str) -> None:
    origin = cached_checkpoint(tiny_config(source)) if source == "gpt2" else source
    bundle = _bundle(cached_export(origin, name=f"{source}-{precision}", precision=precision))
    model = onnx.load(bundle.graph("decoder"), load_external_data=False)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("MatMulNBits") == {"glassllm-en": 4 * 4 + 1, "gpt2": 2 * 4 + 1}[source]
    assert not {"MatMul", "Gemm"}.intersection(operators)


def test_a_half_precision_decoder_has_cuda_kernels_for_every_node(
    tiny_llama_folder: Path, tiny_gpt2_folder: Path
) -> None:
    for folder in (tiny_llama_folder, tiny_gpt2_folder):
        bundle = _bundle(cached_export(folder, name=f"half-{folder.name[:4]}", precision="fp16"))
        model = onnx.load(bundle.graph("decoder"), load_external_data=False)
        assert operators_without_kernel(model, dtype="float16") == []
        types = {
            value.name: value.type.tensor_type.elem_type
            for value in (*model.graph.input, *model.graph.output)
        }
        assert types["logits"] == onnx.TensorProto.FLOAT
        assert types["past.0.key"] == types["present.1.value"] == onnx.TensorProto.FLOAT16
        assert bundle.manifest.decoder.kv_dtype == "float16"


def test_an_operator_without_cuda_kernel_is_found(tiny_llama_store: Path) -> None:
    model = onnx.load(_bundle(tiny_llama_store).graph("decoder"), load_external_data=False)
    assert operators_without_kernel(model, dtype="float32") == ["com.microsoft::GroupQueryAttention"]


def test_an_export_that_disagrees_with_pytorch_fails_and_writes_nothing(
    tiny_llama_folder: Path, tmp_path: Path
) -> None:
    folder = _overflowing_checkpoint(tiny_llama_folder, tmp_path / "model")
    store = tmp_path / "store"
    with pytest.raises(ParityFailed, match="max_abs_diff_logits is nan"):
        export_model(str(folder), precision="fp16", store=store)
    assert not store.exists()


def _overflowing_checkpoint(original: Path, folder: Path) -> Path:
    """Scale weights so that float32 holds every value on the way and float16 does not."""
    shutil.copytree(original, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1e6)
    model.save_pretrained(folder)
    return folder


def test_the_exported_model_is_left_as_it_was(tiny_llama_model: Any, tmp_path: Path) -> None:
    model, _ = tiny_llama_model
    ids = torch.arange(3, 40).unsqueeze(0)
    with torch.no_grad():
        before = model(ids).logits
        export_decoder(model, tmp_path)
        assert torch.equal(model(ids).logits, before)


def test_golden_outputs_are_what_the_graph_gives(tiny_llama_store: Path) -> None:
    bundle = _bundle(tiny_llama_store)
    golden = bundle.golden()
    logits = _runner(bundle, max_slots=1, max_len=64).prefill(0, golden["prompt_ids"], start=0)
    assert np.abs(logits - golden["logits"]).max() <= golden["tolerance"]


def test_the_export_command_tells_a_script_what_it_made(tiny_llama_folder: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    register(app)
    arguments = [
        "export",
        str(tiny_llama_folder),
        "--store",
        str(tmp_path / "store"),
        "--name",
        "mine",
        "--json",
    ]
    result = CliRunner().invoke(app, arguments)
    told = json.loads(result.stdout)
    assert (result.exit_code, told["name"], told["version"], told["task"]) == (
        0,
        "mine",
        "1",
        "text-generation",
    )
    assert {"max_abs_diff_logits", "top1_agreement_passages"} == {m["name"] for m in told["parity"]}
    assert _bundle(tmp_path / "store").ref == "mine@1"


def test_an_export_with_a_draft_graph_is_the_export_without_it_and_an_int8_graph(
    tiny_llama_folder: Path, tiny_llama_store: Path, tmp_path: Path
) -> None:
    app = typer.Typer()
    register(app)
    store = tmp_path / "store"
    arguments = ["export", str(tiny_llama_folder), "--store", str(store), "--name", "mine", "--draft", "int8"]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    bundle, plain = _bundle(store), _bundle(tiny_llama_store)
    decoder, draft = bundle.manifest.graphs
    assert (decoder.role, draft.role) == ("decoder", "draft")
    assert decoder == plain.manifest.graphs[0]
    assert (list(draft.inputs), list(draft.outputs)) == (list(decoder.inputs), list(decoder.outputs))
    assert bundle.manifest.precision == plain.manifest.precision
    products = [node.op_type for node in onnx.load(bundle.graph("draft")).graph.node]
    assert "MatMulNBits" in products
    assert "MatMul" not in products
    assert [path.name for path in store.iterdir()] == ["mine"], "nothing else is left"
