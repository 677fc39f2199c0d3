"""Reads glassllm's NumPy archive into a Llama of transformers: a trained model of 0.85M parameters.

Source of the layout: glassllm 0.1.0, `model.py`, `nn.py` and `tokenizer.py`, of which nothing is imported.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from aimass_exporters.bundles.text_tokenizer import TextTokenizer
from aimass_exporters.errors import InvalidCheckpoint
from aimass_exporters.sources.json_file import read_object

_SPACE = "▁"
_SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>")
_PAD, _UNK, _BOS, _EOS = range(4)
_LAYER_NAMES = {
    "norm1.gamma": "input_layernorm.weight",
    "attn.W_Q": "self_attn.q_proj.weight",
    "attn.W_K": "self_attn.k_proj.weight",
    "attn.W_V": "self_attn.v_proj.weight",
    "attn.W_O": "self_attn.o_proj.weight",
    "norm2.gamma": "post_attention_layernorm.weight",
    "ffn.W1": "mlp.gate_proj.weight",
    "ffn.W3": "mlp.up_proj.weight",
    "ffn.W2": "mlp.down_proj.weight",
}


def read_glass_llama(archive: Path) -> tuple[LlamaForCausalLM, TextTokenizer]:
    """Return the model, float32 in evaluation mode, and the tokenizer that lies beside the archive.

    Raises `InvalidCheckpoint` when the archive is not glassllm's.
    """
    try:
        with np.load(archive, allow_pickle=False) as data:
            config = _config(json.loads(str(data["__config__"])))
            state = dict(_renamed(name, data[name], config) for name in data.files if name != "__config__")
    except (OSError, ValueError, KeyError) as error:
        raise InvalidCheckpoint(archive.name, detail=f"not an archive of glassllm: {error}") from error
    model = LlamaForCausalLM(config)
    model.load_state_dict({**state, "lm_head.weight": state["model.embed_tokens.weight"]})
    model.generation_config = GenerationConfig(bos_token_id=_BOS, eos_token_id=_EOS, pad_token_id=_PAD)
    return model.eval(), _tokenizer(archive.with_name(archive.name.replace(".npz", ".tokenizer.json")))


def _config(fields: dict[str, Any]) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=fields["vocab_size"],
        hidden_size=fields["d_model"],
        intermediate_size=8 * fields["d_model"] // 3,
        num_hidden_layers=fields["n_layers"],
        num_attention_heads=fields["n_heads"],
        num_key_value_heads=fields["n_kv_heads"],
        max_position_embeddings=fields["max_len"],
        rope_theta=fields["rope_base"],
        rms_norm_eps=fields["eps"],
        tie_word_embeddings=True,
        bos_token_id=_BOS,
        eos_token_id=_EOS,
        pad_token_id=_PAD,
        attn_implementation="eager",
    )


def _renamed(name: str, array: np.ndarray[Any, Any], config: LlamaConfig) -> tuple[str, torch.Tensor]:
    weight = torch.from_numpy(array.astype(np.float32))
    if name == "E":
        return "model.embed_tokens.weight", weight
    if name == "norm_f.gamma":
        return "model.norm.weight", weight
    _, layer, kind = name.split(".", 2)
    heads = {"attn.W_Q": config.num_attention_heads, "attn.W_K": config.num_key_value_heads}.get(kind)
    matrix = weight.T.contiguous() if weight.ndim == 2 else weight
    return f"model.layers.{layer}.{_LAYER_NAMES[kind]}", matrix if heads is None else _halved(matrix, heads)


def _halved(matrix: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Reorder the rows of each head: rotation by neighbours becomes rotation by halves."""
    split = matrix.reshape(num_heads, -1, 2, matrix.shape[1])
    return split.swapaxes(1, 2).reshape(matrix.shape)


def _tokenizer(file: Path) -> TextTokenizer:
    fields = read_object(file)
    merges = [tuple(pair) for pair in fields["merges"]]
    tokens = [*_SPECIAL, *fields["alphabet"], *(left + right for left, right in merges)]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=_SPECIAL[_UNK]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", _SPACE)])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"\n|{_SPACE}*[^{_SPACE}\n]+|{_SPACE}+"), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in _SPECIAL])
    special = {"pad_token": _SPECIAL[_PAD], "unk_token": _SPECIAL[_UNK], "eos_token": _SPECIAL[_EOS]}
    return TextTokenizer(tokenizer, _PAD, special_tokens=special)
