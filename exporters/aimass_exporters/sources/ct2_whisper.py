"""A Whisper model of CTranslate2 (faster-whisper) as transformers has it: same weights in float32.

CTranslate2 keeps query, key and value in one matrix, and a zero where Whisper's keys have no bias. Its
folder holds `model.bin`, `config.json` and `tokenizer.json`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from aimass_exporters.errors import InvalidCheckpoint
from aimass_exporters.sources.ct2_model import read_ct2_model
from aimass_exporters.sources.json_file import read_object

MODEL_FILE, CONFIG_FILE, TOKENIZER_FILE = "model.bin", "config.json", "tokenizer.json"
_SPEC = "WhisperSpec"
_HEAD_DIM = 64  # of every Whisper model; the file does not say
_LAYER = re.compile(r"(?P<stack>encoder|decoder)/layer_(?P<layer>\d+)/")
_LANGUAGE = re.compile(r"<\|(?P<code>[a-z]{2,3})\|>")
_MULTILINGUAL_VOCAB = 51865

Arrays = Mapping[str, NDArray[Any]]


def read_ct2_whisper(folder: Path) -> WhisperForConditionalGeneration:
    """Return the model in evaluation mode, float32, with its generation configuration.

    Raises `InvalidCheckpoint` when the folder holds anything else.
    """
    content = read_ct2_model(folder / MODEL_FILE)
    if content.spec != _SPEC:
        raise InvalidCheckpoint(folder, detail=f"expected a {_SPEC}, got a {content.spec}")
    try:
        config = _config(content.arrays)
        model = WhisperForConditionalGeneration(config)
        loaded = model.load_state_dict(_StateDict(content.arrays).read(), strict=False)
    except (KeyError, RuntimeError, ValueError) as error:
        raise InvalidCheckpoint(folder, detail=f"its weights do not fit a Whisper model: {error}") from error
    if loaded.missing_keys or loaded.unexpected_keys:
        names = ", ".join([*loaded.missing_keys, *loaded.unexpected_keys][:5])
        raise InvalidCheckpoint(folder, detail=f"weights are missing or unknown: {names}")
    model.generation_config = _generation_config(folder, config)
    model.eval()
    return model


def _config(arrays: Arrays) -> WhisperConfig:
    vocab_size, width = arrays["decoder/embeddings/weight"].shape
    num_layers = {stack: 1 + max(_layers(arrays, stack)) for stack in ("encoder", "decoder")}
    end = 50257 if vocab_size >= _MULTILINGUAL_VOCAB else 50256
    return WhisperConfig(
        vocab_size=vocab_size,
        d_model=width,
        encoder_layers=num_layers["encoder"],
        decoder_layers=num_layers["decoder"],
        encoder_attention_heads=width // _HEAD_DIM,
        decoder_attention_heads=width // _HEAD_DIM,
        encoder_ffn_dim=arrays["encoder/layer_0/ffn/linear_0/weight"].shape[0],
        decoder_ffn_dim=arrays["decoder/layer_0/ffn/linear_0/weight"].shape[0],
        num_mel_bins=arrays["encoder/conv1/weight"].shape[1],
        max_source_positions=arrays["encoder/position_encodings/encodings"].shape[0],
        max_target_positions=arrays["decoder/position_encodings/encodings"].shape[0],
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=end + 1,
        attn_implementation="eager",
    )


def _layers(arrays: Arrays, stack: str) -> set[int]:
    matches = (_LAYER.match(name) for name in arrays)
    return {int(match["layer"]) for match in matches if match and match["stack"] == stack}


def _generation_config(folder: Path, config: WhisperConfig) -> GenerationConfig:
    """Return what faster-whisper keeps beside the weights, under the names of transformers."""
    given = read_object(folder / CONFIG_FILE)
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    is_multilingual = config.vocab_size >= _MULTILINGUAL_VOCAB
    options: dict[str, Any] = {
        "is_multilingual": is_multilingual,
        "alignment_heads": given["alignment_heads"],
        "suppress_tokens": given["suppress_ids"],
        "begin_suppress_tokens": given["suppress_ids_begin"],
        "no_timestamps_token_id": tokenizer.token_to_id("<|notimestamps|>"),
        "max_length": config.max_target_positions,
    }
    if is_multilingual:
        options["lang_to_id"] = _languages(tokenizer, frozenset(given["lang_ids"]))
        options["task_to_id"] = {
            task: tokenizer.token_to_id(f"<|{task}|>") for task in ("transcribe", "translate")
        }
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        **options,
    )


def _languages(tokenizer: Tokenizer, ids: frozenset[int]) -> dict[str, int]:
    tokens = {
        token: number
        for token, number in tokenizer.get_vocab(with_added_tokens=True).items()
        if number in ids
    }
    return {token: number for token, number in sorted(tokens.items()) if _LANGUAGE.fullmatch(token)}


class _StateDict:
    """Renames and cuts the arrays of a file. Owned by one reading."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays
        self._state: dict[str, torch.Tensor] = {}

    def read(self) -> dict[str, torch.Tensor]:
        """Return the weights under the names of transformers."""
        for stack in ("encoder", "decoder"):
            target = f"model.{stack}"
            self._state[f"{target}.embed_positions.weight"] = self._tensor(
                f"{stack}/position_encodings/encodings"
            )
            self._norm(f"{stack}/layer_norm", f"{target}.layer_norm")
            for layer in sorted(_layers(self._arrays, stack)):
                self._layer(f"{stack}/layer_{layer}", f"{target}.layers.{layer}", stack)
        for conv in ("conv1", "conv2"):
            self._linear(f"encoder/{conv}", f"model.encoder.{conv}")
        embedding = self._tensor("decoder/embeddings/weight")
        self._state["model.decoder.embed_tokens.weight"] = embedding
        self._state["proj_out.weight"] = embedding
        return self._state

    def _layer(self, source: str, target: str, stack: str) -> None:
        attention = f"{source}/self_attention"
        self._split(f"{attention}/linear_0", f"{target}.self_attn", ("q_proj", "k_proj", "v_proj"))
        self._linear(f"{attention}/linear_1", f"{target}.self_attn.out_proj")
        self._norm(f"{attention}/layer_norm", f"{target}.self_attn_layer_norm")
        if stack == "decoder":
            cross = f"{source}/attention"
            self._linear(f"{cross}/linear_0", f"{target}.encoder_attn.q_proj")
            self._split(f"{cross}/linear_1", f"{target}.encoder_attn", ("k_proj", "v_proj"))
            self._linear(f"{cross}/linear_2", f"{target}.encoder_attn.out_proj")
            self._norm(f"{cross}/layer_norm", f"{target}.encoder_attn_layer_norm")
        self._linear(f"{source}/ffn/linear_0", f"{target}.fc1")
        self._linear(f"{source}/ffn/linear_1", f"{target}.fc2")
        self._norm(f"{source}/ffn/layer_norm", f"{target}.final_layer_norm")

    def _split(self, source: str, target: str, names: tuple[str, ...]) -> None:
        """Cut a matrix of several projections into equal parts. The part for keys has a bias of zeros."""
        weights = self._tensor(f"{source}/weight").chunk(len(names))
        biases = self._tensor(f"{source}/bias").chunk(len(names))
        for name, weight, bias in zip(names, weights, biases, strict=True):
            self._state[f"{target}.{name}.weight"] = weight
            if name != "k_proj":
                self._state[f"{target}.{name}.bias"] = bias
            elif bias.any():
                raise ValueError(f"{source} has a bias for keys, which Whisper has not")

    def _linear(self, source: str, target: str) -> None:
        for part in ("weight", "bias"):
            self._state[f"{target}.{part}"] = self._tensor(f"{source}/{part}")

    def _norm(self, source: str, target: str) -> None:
        self._state[f"{target}.weight"] = self._tensor(f"{source}/gamma")
        self._state[f"{target}.bias"] = self._tensor(f"{source}/beta")

    def _tensor(self, name: str) -> torch.Tensor:
        array = self._arrays[name]
        if array.dtype not in (np.float16, np.float32):
            raise ValueError(f"{name} is {array.dtype}: quantised weights cannot be exported, float ones can")
        return torch.from_numpy(array.astype(np.float32))
