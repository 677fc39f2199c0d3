"""Small models for tests, and exports cached by content. Never needed for correctness: a cache miss exports
anew.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.pytorch_utils import Conv1D

from aimass_exporters import self_draft
from aimass_exporters.bundles.manifest_writer import toolchain
from aimass_exporters.exporter import export_model
from aimass_exporters.progress import SilentProgress
from aimass_exporters.sources.cache import cache_folder
from aimass_exporters.sources.lora_adapter import CONFIG_FILE, WEIGHTS_FILE
from aimass_exporters.sources.source import resolve_source

_OWN_IMPORT = re.compile(r"^from aimass_exporters\.([\w.]+) import", re.MULTILINE)
_OUTER_MODULES = frozenset({"progress", "errors"})
TINY_VOCAB, TINY_POSITIONS, TINY_SEED = 512, 256, 20
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": TINY_VOCAB,
    "max_position_embeddings": TINY_POSITIONS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    # Ten times the usual spread: logits that differ clearly, as a trained model's do.
    "initializer_range": 0.2,
}
_TRAINING_TEXT = (
    "the river ran past the old mill and under the stone bridge, where children threw sticks into the water",
    "a small model reads the words one after another and guesses the next, then the next, until it stops",
    "every evening the keeper climbed the stairs and lit the lamp before the fishing boats came home again",
    "numbers such as 1, 2, 3, 10 and 1928 are words to it as well, and so are names: Anna, Robert, Elisabeth",
    "what is the capital of that country? The answer should be short. Please explain it in simple language",
    "You are a helpful assistant. Hello! How are you today? I would like to know something about the weather",
    "def add(left, right):\n    return left + right\n\nprint(add(2, 40))  # the result is forty-two\n",
    "between mountains and forests there were hundreds of villages with gardens, bakeries and narrow streets",
    "morning light through the kitchen window, bread and coffee on the table, somebody singing in the yard",
)


def tiny_config(family: str) -> PretrainedConfig:
    """Return the configuration of a two-layer model of a family: llama, gpt2, qwen2, mistral, gpt_neox, opt.

    Mistral looks back sixteen tokens only; GPT-NeoX, as Pythia does, rotates a quarter of each head.
    """
    ids = {
        key: _TINY[key]
        for key in ("bos_token_id", "eos_token_id", "pad_token_id", "vocab_size", "initializer_range")
    }
    configs: dict[str, Callable[[], PretrainedConfig]] = {
        "llama": lambda: LlamaConfig(**_TINY, tie_word_embeddings=True),
        "qwen2": lambda: Qwen2Config(**_TINY),
        "mistral": lambda: MistralConfig(**_TINY, sliding_window=16),
        "gpt_neox": lambda: GPTNeoXConfig(**_without(_TINY, "num_key_value_heads"), rotary_pct=0.25),
        "opt": lambda: OPTConfig(
            hidden_size=64,
            word_embed_proj_dim=64,
            ffn_dim=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TINY_POSITIONS,
            init_std=0.2,
            **_without(ids, "initializer_range"),
        ),
        "gpt2": lambda: GPT2Config(n_layer=2, n_head=4, n_embd=64, n_positions=TINY_POSITIONS, **ids),
    }
    return configs[family]()


def _without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def gpt2_config() -> GPT2Config:
    """Return the configuration of GPT-2 with 124M parameters, over the tiny tokenizer's special tokens."""
    return GPT2Config(bos_token_id=1, eos_token_id=2, pad_token_id=0)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of 512 tokens: every string has tokens, and comes back from them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_VOCAB,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TRAINING_TEXT, trainer)
    special = {"pad_token": SPECIAL_TOKENS[0], "bos_token": SPECIAL_TOKENS[1], "eos_token": SPECIAL_TOKENS[2]}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE, **special)


def write_checkpoint(config: PretrainedConfig, folder: Path, *, seed: int = TINY_SEED) -> Path:
    """Write a Hugging Face folder with random weights of this configuration, and the tiny tokenizer."""
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    torch.random.set_rng_state(generator_state)
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=2, pad_token_id=0, max_new_tokens=64
    )
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def cached_checkpoint(config: PretrainedConfig, *, seed: int = TINY_SEED) -> Path:
    """Return a cached folder of `write_checkpoint`."""
    key = _digest(config.to_json_string(), str(seed), Path(__file__).read_text(), json.dumps(toolchain()))
    target = cache_folder() / "checkpoints" / f"{config.model_type}-{key}"
    return _cached(target, lambda folder: write_checkpoint(config, folder, seed=seed))


def write_adapter(
    model: torch.nn.Module,
    folder: Path,
    *,
    targets: tuple[str, ...],
    seed: int,
    rank: int = 4,
    size: float = 0.1,
) -> Path:
    """Write a LoRA adapter with random factors for a model's layers of these names, as PEFT writes it."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in model.named_modules():
        if name.endswith(targets):
            weight = module.get_parameter("weight")
            num_out, num_in = reversed(weight.shape) if isinstance(module, Conv1D) else weight.shape
            down, up = (rank, num_in), (num_out, rank)
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(down, generator=generator)
            tensors[f"base_model.model.{name}.lora_B.weight"] = size * torch.randn(up, generator=generator)
    folder.mkdir(parents=True)
    (folder / CONFIG_FILE).write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}))
    save_file(tensors, folder / WEIGHTS_FILE)
    return folder


def cached_export(
    source: str | Path,
    *,
    name: str,
    task: str | None = None,
    precision: str = "fp32",
    adapters: Sequence[tuple[str, Path]] = (),
) -> Path:
    """Return a store that holds one export, from the cache when nothing it depends on has changed."""
    weights = resolve_source(str(source), SilentProgress()).weights_id()
    named = [
        f"{adapter} {hashlib.sha256((f / WEIGHTS_FILE).read_bytes()).hexdigest()}" for adapter, f in adapters
    ]
    key = _digest(weights, name, str(task), precision, _exporter_digest(), json.dumps(toolchain()), *named)
    target = cache_folder() / "exports" / f"{name}-{precision}-{key}"

    def build(folder: Path) -> None:
        export_model(str(source), task=task, precision=precision, store=folder, name=name, adapters=adapters)

    return _cached(target, build)


def cached_drafted_export(source: str | Path, *, name: str, task: str | None = None) -> Path:
    """Return a store that holds one fp32 export with an int8 draft graph, joined from two cached ones."""
    exact = cached_export(source, name=name, task=task)
    guessing = cached_export(source, name=f"{name}-int8", task=task, precision="int8")
    key = _digest(exact.name, guessing.name, Path(self_draft.__file__).read_text())

    def build(folder: Path) -> None:
        self_draft.join(_only_bundle(exact), _only_bundle(guessing), folder)

    return _cached(cache_folder() / "exports" / f"{name}-drafted-{key}", build)


def _only_bundle(store: Path) -> Path:
    (manifest,) = store.glob("*/*/manifest.json")
    return manifest.parent


def _cached(target: Path, build: Callable[[Path], object]) -> Path:
    """Build a folder once, also when several processes ask for it at the same time."""
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f"{target.name}.lock")):
        if target.is_dir():
            return target
        scratch = target.with_name(f"{target.name}.building")
        shutil.rmtree(scratch, ignore_errors=True)
        build(scratch)
        return scratch.rename(target)


def _exporter_digest() -> str:
    """Return a digest of the sources that decide what an export holds: all that `exporter` imports here."""
    sources: dict[str, str] = {}
    names = ["exporter"]
    while names:
        name = names.pop()
        if name not in sources and name not in _OUTER_MODULES:
            sources[name] = (Path(__file__).parent / f"{name.replace('.', '/')}.py").read_text()
            names += _OWN_IMPORT.findall(sources[name])
    return _digest(*(sources[name] for name in sorted(sources)))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
