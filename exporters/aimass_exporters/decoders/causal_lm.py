"""A causal language model in PyTorch, float32, with its tokenizer and generation defaults: what an export
starts from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from aimass.model.v1 import manifest_pb2 as manifest
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from aimass_exporters.bundles.text_tokenizer import TextTokenizer, read_tokenizer
from aimass_exporters.errors import InvalidCheckpoint, UnsupportedModel
from aimass_exporters.sources.catalogue import Reader
from aimass_exporters.sources.gguf_llama import read_gguf_llama
from aimass_exporters.sources.glass_llama import read_glass_llama
from aimass_exporters.sources.source import Source

DEFAULT_MAX_NEW_TOKENS = 256


@dataclass(frozen=True, slots=True)
class CausalLM:
    """A model in evaluation mode, eager attention, float32: also the reference that parity is measured
    against.
    """

    model: PreTrainedModel
    text: TextTokenizer

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        config = self.model.generation_config
        eos = config.eos_token_id if config is not None else None
        eos = self.model.config.eos_token_id if eos is None else eos
        if eos is None:
            return ()
        return tuple(eos) if isinstance(eos, list) else (eos,)

    def generation_defaults(self, max_positions: int) -> manifest.GenerationDefaults:
        """Return the sampling and length that the checkpoint asks for; greedy when it does not ask for
        sampling.
        """
        config = self.model.generation_config or GenerationConfig()
        asked = config.to_diff_dict()
        defaults = manifest.GenerationDefaults(
            max_new_tokens=min(asked.get("max_new_tokens") or DEFAULT_MAX_NEW_TOKENS, max_positions)
        )
        if penalty := asked.get("repetition_penalty"):
            defaults.repetition_penalty = penalty
        if config.do_sample:
            defaults.temperature = config.temperature or 0.0
            for name in ("top_k", "top_p", "min_p"):
                if asked.get(name) is not None:
                    setattr(defaults, name, asked[name])
        return defaults


def load_causal_lm(source: Source) -> CausalLM:
    """Load the weights. Raises `InvalidCheckpoint` or `UnsupportedModel`."""
    if source.reader is Reader.GGUF:
        return CausalLM(*read_gguf_llama(source.path))
    if source.reader is Reader.GLASS:
        return CausalLM(*read_glass_llama(source.path))
    return _load_folder(source.path)


def _load_folder(folder: Path) -> CausalLM:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InvalidCheckpoint(
            folder, detail=f"transformers cannot load it as a causal language model: {error}"
        ) from error
    model, report = loaded
    _check_keys(folder, report["missing_keys"])
    if model.dtype is not torch.float32:
        raise UnsupportedModel(
            model.config.model_type, because=f"its weights stay {model.dtype} when float32 is asked for"
        )
    return CausalLM(model.eval(), read_tokenizer(folder))


def _check_keys(folder: Path, missing: Sequence[str]) -> None:
    """Refuse weights that transformers would fill with random numbers, with no more than a warning."""
    if missing:
        names = ", ".join(sorted(missing)[:5])
        raise InvalidCheckpoint(folder, detail=f"{len(missing)} weights are missing: {names}")
