"""A text encoder in PyTorch, float32, with its tokenizer and what turns its token vectors into one vector."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from aimass.model.v1.manifest_pb2 import (
    POOLING_CLS,
    POOLING_LAST,
    POOLING_MEAN,
    EncoderSpec,
    Pooling,
)
from transformers import AutoModel, PreTrainedModel

from aimass_exporters.bundles.text_tokenizer import TextTokenizer, read_tokenizer
from aimass_exporters.errors import UnsupportedModel
from aimass_exporters.sources.catalogue import Reader
from aimass_exporters.sources.json_file import read_object, read_objects
from aimass_exporters.sources.nano_e5 import PROMPTS, read_nano_e5
from aimass_exporters.sources.pretrained import load_pretrained
from aimass_exporters.sources.source import Source

_POOLING_MODES: dict[str, Pooling.ValueType] = {
    "cls": POOLING_CLS,
    "cls_token": POOLING_CLS,
    "mean": POOLING_MEAN,
    "mean_tokens": POOLING_MEAN,
    "lasttoken": POOLING_LAST,
}
_KNOWN_MODULES = frozenset({"Transformer", "Pooling", "Normalize"})
# Their position ids start after the padding id, so two of the table's rows are never reached.
_OFFSET_FAMILIES = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet"})


@dataclass(frozen=True, slots=True)
class SentenceEncoder:
    """A model in evaluation mode: also the reference that parity is measured against."""

    model: PreTrainedModel
    text: TextTokenizer
    spec: EncoderSpec
    folder: Path


def load_sentence_encoder(source: Source) -> SentenceEncoder:
    """Load a Hugging Face or sentence-transformers folder. Raises `InvalidCheckpoint` or
    `UnsupportedModel`.
    """
    if source.reader is Reader.NANO_E5:
        return _nano_e5(source.path)
    if source.reader is not Reader.FOLDER:
        raise UnsupportedModel(source.reader, because="encoders are read from Hugging Face folders only")
    folder = source.path
    model = _load(folder)
    return SentenceEncoder(model, read_tokenizer(folder), _spec(folder, model), folder)


def _nano_e5(file: Path) -> SentenceEncoder:
    read = read_nano_e5(file)
    spec = EncoderSpec(
        hidden_size=read.model.config.hidden_size,
        max_tokens=read.model.config.max_position_embeddings,
        pooling=POOLING_MEAN,
        normalize=True,
        prompts=PROMPTS,
    )
    return SentenceEncoder(read.model, TextTokenizer(read.tokenizer, read.pad_token_id), spec, file)


def _load(folder: Path) -> PreTrainedModel:
    # A pooler is a head of its own pre-training task: nothing here reads it.
    model = load_pretrained(AutoModel, folder, may_lack=lambda name: name.startswith("pooler."))
    if model.config.is_encoder_decoder or getattr(model.config, "is_decoder", False):
        raise UnsupportedModel(model.config.model_type, because="it is not an encoder")
    return model


def _spec(folder: Path, model: PreTrainedModel) -> EncoderSpec:
    modules = _module_folders(folder)
    return EncoderSpec(
        hidden_size=model.config.hidden_size,
        max_tokens=longest_input(folder, model),
        pooling=_pooling(modules["Pooling"]) if "Pooling" in modules else POOLING_MEAN,
        normalize="Normalize" in modules or not modules,
        prompts=_prompts(folder),
    )


def _module_folders(folder: Path) -> dict[str, Path]:
    """Return the folders of a sentence-transformers model's modules by kind; empty for a plain folder."""
    file = folder / "modules.json"
    if not file.is_file():
        return {}
    modules = {str(m["type"]).rsplit(".", 1)[-1]: folder / m["path"] for m in read_objects(file)}
    if unknown := sorted(modules.keys() - _KNOWN_MODULES):
        family = read_object(folder / "config.json").get("model_type", "unknown")
        raise UnsupportedModel(family, because=f"its modules {', '.join(unknown)} have no counterpart here")
    return modules


def _pooling(folder: Path) -> Pooling.ValueType:
    config = read_object(folder / "config.json")
    mode = config.get("pooling_mode")
    flags = [
        name.removeprefix("pooling_mode_")
        for name, on in config.items()
        if name.startswith("pooling_mode_") and on
    ]
    modes = [mode] if isinstance(mode, str) else flags
    if len(modes) != 1 or modes[0] not in _POOLING_MODES:
        chosen = " and ".join(modes) or "none"
        raise UnsupportedModel(
            folder.name, because=f"its pooling is {chosen}; supported: cls, mean and last token"
        )
    return _POOLING_MODES[modes[0]]


def longest_input(folder: Path, model: PreTrainedModel) -> int:
    """Return the longest input in tokens. Raises `UnsupportedModel` when the files do not tell."""
    limits = [_positions(model)]
    for file, key in (
        ("sentence_bert_config.json", "max_seq_length"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        limit = read_object(folder / file).get(key) if (folder / file).is_file() else None
        if isinstance(limit, int):
            limits.append(limit)
    shortest = min(limits)
    if not math.isfinite(shortest):
        raise UnsupportedModel(model.config.model_type, because="its files state no longest input")
    return int(shortest)


def _positions(model: PreTrainedModel) -> float:
    positions = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(positions, int):
        return math.inf
    return positions - 2 if model.config.model_type in _OFFSET_FAMILIES else positions


def _prompts(folder: Path) -> dict[str, str]:
    file = folder / "config_sentence_transformers.json"
    prompts = read_object(file).get("prompts") if file.is_file() else None
    return {str(name): str(text) for name, text in (prompts or {}).items()}
