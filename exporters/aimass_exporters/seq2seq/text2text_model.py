"""An encoder-decoder of text in PyTorch, float32, with its tokenizer: translation, summarisation and the
like.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from aimass.model.v1.manifest_pb2 import Text2TextSpec
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedModel

from aimass_exporters.bundles.text_tokenizer import TextTokenizer, read_tokenizer
from aimass_exporters.errors import UnsupportedModel
from aimass_exporters.seq2seq.seq2seq_families import seq2seq_parts
from aimass_exporters.sources.pretrained import load_pretrained
from aimass_exporters.sources.source import Source

_NEVER = -1e9


@dataclass(frozen=True, slots=True)
class Text2TextModel:
    """A model in evaluation mode, eager attention, float32: also the reference that parity is measured
    against.
    """

    model: PreTrainedModel
    text: TextTokenizer
    spec: Text2TextSpec

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        config: Any = self.model.generation_config
        eos = config.eos_token_id
        return tuple(eos) if isinstance(eos, list) else (eos,)

    @property
    def max_new_tokens(self) -> int:
        """Most tokens of an output by the checkpoint's own configuration; 0 when it does not say."""
        config: Any = self.model.generation_config
        if config.max_new_tokens:
            return int(config.max_new_tokens)
        asked = config.to_diff_dict().get("max_length")  # which counts the tokens an output begins with
        return max(1, asked - len(self.spec.decoder_start_ids)) if asked else 0


def load_text2text(source: Source) -> Text2TextModel:
    """Load a Hugging Face folder. Raises `InvalidCheckpoint` or `UnsupportedModel`."""
    model = load_pretrained(AutoModelForSeq2SeqLM, source.path, kind="an encoder-decoder")
    config = model.generation_config or GenerationConfig.from_model_config(model.config)
    _suppress(model, config)
    return Text2TextModel(model, read_tokenizer(source.path), _spec(model, config))


def _suppress(model: Any, config: GenerationConfig) -> None:
    """Write the tokens that must never be chosen, such as Marian's padding, into the bias of the logits."""
    words = config.bad_words_ids or []
    ids = [*(word[0] for word in words if len(word) == 1), *(config.suppress_tokens or [])]
    if any(len(word) > 1 for word in words) or (ids and not hasattr(model, "final_logits_bias")):
        raise UnsupportedModel(model.config.model_type, because="it forbids words that no bias can forbid")
    if ids:
        with torch.no_grad():
            model.final_logits_bias[:, ids] = _NEVER


def _spec(model: Any, config: GenerationConfig) -> Text2TextSpec:
    start = config.decoder_start_token_id
    if start is None:
        raise UnsupportedModel(model.config.model_type, because="it does not say how an output begins")
    forced = [] if config.forced_bos_token_id is None else [config.forced_bos_token_id]
    # transformers counts the tokens that an output begins with, and those that end it.
    least = max(config.min_new_tokens or 0, (config.min_length or 0) - 1 - len(forced))
    return Text2TextSpec(
        max_source_tokens=seq2seq_parts(model).max_source_positions,
        decoder_start_ids=[start, *forced],
        forced_eos_id=config.forced_eos_token_id,
        num_beams=config.num_beams or 1,
        length_penalty=1.0 if config.length_penalty is None else config.length_penalty,
        early_stopping=config.early_stopping is True,
        no_repeat_ngram_size=config.no_repeat_ngram_size or 0,
        min_new_tokens=max(0, least),
    )
