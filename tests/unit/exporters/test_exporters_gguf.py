"""A GGUF file gives the very model it was written from."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from aimass_exporters.errors import InvalidCheckpoint, UnsupportedModel
from aimass_exporters.sources.gguf_llama import read_gguf_llama
from aimass_exporters.testing import CHAT_TEMPLATE, SPECIAL_TOKENS, tiny_config, tiny_tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _gguf_name(name: str) -> str:
    if name.startswith("model.layers."):
        _, _, layer, module = name.removesuffix(".weight").split(".", 3)
        return f"blk.{layer}.{NAMES[module]}.weight"
    return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]


def _permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's converter orders the rows of query and key."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def _write(path: Path, model: LlamaForCausalLM, *, architecture: str = "llama") -> None:
    config, tokenizer = model.config, tiny_tokenizer()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    _write_tokenizer(writer, tokenizer)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(
            name.split(".")[-2]
        )
        weight = tensor.numpy()
        writer.add_tensor(
            _gguf_name(name), np.ascontiguousarray(_permuted(weight, heads) if heads else weight)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    fields = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(fields["vocab"], key=fields["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if t in SPECIAL_TOKENS else 1 for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in fields["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)


@pytest.fixture(scope="module")
def written() -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = tiny_config("llama")
    config._attn_implementation = "eager"  # as the reader's: another order of sums moves logits by 1e-5
    model: LlamaForCausalLM = LlamaForCausalLM(config).eval()
    return model


def test_logits_of_the_model_read_back_are_equal(written: LlamaForCausalLM, tmp_path: Path) -> None:
    _write(tmp_path / "model.gguf", written)
    model, _ = read_gguf_llama(tmp_path / "model.gguf")
    ids = torch.arange(5, 45).unsqueeze(0)
    with torch.no_grad():
        difference = (model(ids).logits - written(ids).logits).abs().max()
    assert difference < 1e-6


def test_the_tokenizer_inside_the_file_is_the_one_written(written: LlamaForCausalLM, tmp_path: Path) -> None:
    _write(tmp_path / "model.gguf", written)
    _, text = read_gguf_llama(tmp_path / "model.gguf")
    for sample in ("the old mill", "<|im_start|>user\nhé 🙂<|im_end|>", "  spaces\n\n1928"):
        assert text.encode(sample) == tiny_tokenizer().backend_tokenizer.encode(sample).ids
    assert text.chat_template == CHAT_TEMPLATE
    assert (text.pad_token_id, text.special_tokens["eos_token"]) == (0, "<|im_end|>")


def test_another_architecture_is_refused(written: LlamaForCausalLM, tmp_path: Path) -> None:
    _write(tmp_path / "model.gguf", written, architecture="mamba")
    with pytest.raises(UnsupportedModel, match="mamba"):
        read_gguf_llama(tmp_path / "model.gguf")


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUX" + bytes(64))
    with pytest.raises(InvalidCheckpoint, match="GGUF"):
        read_gguf_llama(tmp_path / "model.gguf")
