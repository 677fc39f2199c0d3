"""Reads a GGUF file of a Llama model into PyTorch and the `tokenizers` library. Needs nothing but the file.

Sources: the GGUF specification, and llama.cpp's converter, whose permutation of the query and key rows is
undone here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import no_init_weights

from aimass_exporters.bundles.text_tokenizer import TextTokenizer
from aimass_exporters.errors import InvalidCheckpoint, UnsupportedModel

_CONTROL_TOKEN = 3  # gguf.TokenType.CONTROL
_LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "smollm": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    ),
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
}


class GgufLlama:
    """The fields and tensors of one file."""

    def __init__(self, path: Path) -> None:
        try:
            self._reader = GGUFReader(path)
        except (OSError, ValueError, IndexError) as error:
            raise InvalidCheckpoint(path.name, detail=f"not a readable GGUF file: {error}") from error
        self._path = path
        architecture = self.field("general.architecture")
        if architecture != "llama":
            raise UnsupportedModel(str(architecture), because="only GGUF files of Llama models are read")

    def field(self, name: str, default: Any = None) -> Any:
        """Return a field's value, or the default when the file does not have it."""
        found = self._reader.fields.get(name)
        return default if found is None else found.contents()

    def required(self, name: str) -> Any:
        """Return a field's value. Raises `InvalidCheckpoint` when the file does not have it."""
        value = self.field(name)
        if value is None:
            raise InvalidCheckpoint(self._path.name, detail=f"the GGUF field {name} is missing")
        return value

    def config(self) -> LlamaConfig:
        """Return the model's configuration as transformers writes it."""
        rope_theta = self.field("llama.rope.freq_base", 10_000.0)
        return LlamaConfig(
            vocab_size=self.field("llama.vocab_size", len(self.required("tokenizer.ggml.tokens"))),
            hidden_size=self.required("llama.embedding_length"),
            intermediate_size=self.required("llama.feed_forward_length"),
            num_hidden_layers=self.required("llama.block_count"),
            num_attention_heads=self.required("llama.attention.head_count"),
            num_key_value_heads=self.required("llama.attention.head_count_kv"),
            max_position_embeddings=self.required("llama.context_length"),
            rms_norm_eps=self.required("llama.attention.layer_norm_rms_epsilon"),
            rope_theta=rope_theta,
            tie_word_embeddings="output.weight" not in {t.name for t in self._reader.tensors},
            bos_token_id=self.field("tokenizer.ggml.bos_token_id"),
            eos_token_id=self.required("tokenizer.ggml.eos_token_id"),
            pad_token_id=self.field("tokenizer.ggml.padding_token_id"),
        )

    def state(self, config: LlamaConfig) -> dict[str, torch.Tensor]:
        """Return the weights in float32, under transformers' names."""
        state = {}
        for tensor in self._reader.tensors:
            if tensor.name == "rope_freqs.weight":
                continue
            weight = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
            name, permuted_heads = _name_of(tensor.name, config)
            state[name] = _unpermuted(weight, permuted_heads) if permuted_heads else weight
        if config.tie_word_embeddings:
            state["lm_head.weight"] = state["model.embed_tokens.weight"]
        return state

    def tokenizer(self) -> TextTokenizer:
        """Return the byte-level BPE tokenizer inside the file, and its chat template."""
        tokens, kind = self.required("tokenizer.ggml.tokens"), self.field("tokenizer.ggml.pre", "gpt-2")
        if self.required("tokenizer.ggml.model") != "gpt2" or kind not in _PRE_TOKENIZERS:
            raise UnsupportedModel(
                "llama", because=f"its GGUF tokenizer ({kind}) is not a byte-level BPE known here"
            )
        merges = [tuple(merge.split(" ", 1)) for merge in self.required("tokenizer.ggml.merges")]
        tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
        tokenizer.pre_tokenizer = _PRE_TOKENIZERS[kind]()
        tokenizer.decoder = decoders.ByteLevel()
        types = self.required("tokenizer.ggml.token_type")
        control = [t for t, kind in zip(tokens, types, strict=True) if kind == _CONTROL_TOKEN]
        tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
        special = self._special_tokens(tokens)
        pad = self.field("tokenizer.ggml.padding_token_id", self.required("tokenizer.ggml.eos_token_id"))
        return TextTokenizer(tokenizer, int(pad), self.field("tokenizer.chat_template", ""), special)

    def _special_tokens(self, tokens: list[str]) -> dict[str, str]:
        ids = {
            name: self.field(f"tokenizer.ggml.{name}_token_id")
            for name in ("bos", "eos", "unknown", "padding")
        }
        names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
        return {names[name]: tokens[i] for name, i in ids.items() if i is not None}


def _name_of(name: str, config: LlamaConfig) -> tuple[str, int]:
    """Return transformers' name of a tensor, and how many heads llama.cpp permuted in it (0: none)."""
    stem, _, suffix = name.rpartition(".")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{suffix}", 0
    try:
        _, layer, kind = stem.split(".")
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(kind, 0)
        return f"model.layers.{layer}.{_LAYER_NAMES[kind]}.{suffix}", heads
    except (ValueError, KeyError) as error:
        raise UnsupportedModel(
            "llama", because=f"its GGUF file has a tensor {name!r} that Llama does not have"
        ) from error


def _unpermuted(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Undo llama.cpp's order of rows, which interleaves the two halves of each head for its own rotary
    kernel.
    """
    split = weight.reshape(num_heads, weight.shape[0] // num_heads // 2, 2, *weight.shape[1:])
    return split.swapaxes(1, 2).reshape(weight.shape)


def read_gguf_llama(path: Path) -> tuple[LlamaForCausalLM, TextTokenizer]:
    """Return the model, float32 in evaluation mode, and its tokenizer.

    Raises `InvalidCheckpoint` for a broken file, `UnsupportedModel` for a model or tokenizer of another kind.
    """
    file = GgufLlama(path)
    config = file.config()
    config._attn_implementation = "eager"
    state = file.state(config)
    with no_init_weights():
        model = LlamaForCausalLM(config)
    _load(model, state, path)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    return model.eval(), file.tokenizer()


def _load(model: LlamaForCausalLM, state: dict[str, torch.Tensor], path: Path) -> None:
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise InvalidCheckpoint(path.name, detail=f"its tensors do not fit its fields: {error}") from error
    model.tie_weights()
