"""The tokenizer of a checkpoint, as a bundle carries it: one `tokenizer.json`, a chat template, the special
tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from aimass_exporters.errors import InvalidCheckpoint


@dataclass(frozen=True, slots=True)
class TextTokenizer:
    """How a model's text becomes tokens."""

    tokenizer: Tokenizer
    pad_token_id: int
    chat_template: str = ""
    """Jinja; empty when the model has none."""
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """Text of the tokens that a chat template may name, such as `bos_token`."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, with the special tokens that the model expects around it."""
        return list(self.tokenizer.encode(text).ids)

    def encode_all(self, texts: Sequence[str], *, max_tokens: int, in_pairs: bool = False) -> list[Encoding]:
        """Return the tokens of each text, or of each text with the next, cut to `max_tokens`."""
        self.tokenizer.enable_truncation(max_tokens)
        encodings: list[Encoding] = self.tokenizer.encode_batch(
            list(pairwise(texts)) if in_pairs else list(texts)
        )
        self.tokenizer.no_truncation()
        return encodings

    def padded(self, batch: Sequence[Encoding]) -> dict[str, NDArray[np.int64]]:
        """Return a batch as encoder graphs take it: arrays [batch, seq] by input, padded on the right."""
        shape = len(batch), max(map(len, batch))
        feeds = {
            "input_ids": np.full(shape, self.pad_token_id, np.int64),
            "attention_mask": np.zeros(shape, np.int64),
            "token_type_ids": np.zeros(shape, np.int64),
        }
        for row, encoding in enumerate(batch):
            length = len(encoding)
            feeds["input_ids"][row, :length] = encoding.ids
            feeds["attention_mask"][row, :length] = 1
            feeds["token_type_ids"][row, :length] = encoding.type_ids
        return feeds


def read_tokenizer(folder: Path) -> TextTokenizer:
    """Read a folder's tokenizer through transformers, so that it tokenises as it does there.

    Raises `InvalidCheckpoint` when the folder has none, or one that the `tokenizers` library cannot run.
    """
    try:
        loaded = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_fast=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise InvalidCheckpoint(folder, detail=f"no tokenizer could be read: {error}") from error
    if not loaded.is_fast:
        raise InvalidCheckpoint(
            folder, detail="its tokenizer has no form that the tokenizers library can run"
        )
    return TextTokenizer(
        _untruncated(loaded), _pad_token_id(loaded), _chat_template(loaded), _special_tokens(loaded)
    )


def _untruncated(loaded: PreTrainedTokenizerBase) -> Tokenizer:
    """Copy the tokenizer without its length settings: the service truncates and pads."""
    tokenizer = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _pad_token_id(loaded: PreTrainedTokenizerBase) -> int:
    chosen = [i for i in (loaded.pad_token_id, loaded.eos_token_id) if isinstance(i, int)]
    return chosen[0] if chosen else 0


def _chat_template(loaded: PreTrainedTokenizerBase) -> str:
    template = loaded.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return template or ""


def _special_tokens(loaded: PreTrainedTokenizerBase) -> dict[str, str]:
    return {name: token for name, token in loaded.special_tokens_map.items() if isinstance(token, str)}
