"""How a sentence-transformers folder is read: pooling, normalisation, longest input, prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from aimass.model.v1.manifest_pb2 import POOLING_CLS, POOLING_LAST, POOLING_MEAN
from aimass_exporters.encoders.sentence_encoder import SentenceEncoder, load_sentence_encoder
from aimass_exporters.errors import InvalidCheckpoint, UnsupportedModel
from aimass_exporters.sources.source import folder_source
from aimass_exporters.testing import tiny_tokenizer
from transformers import BertConfig, BertModel

TRANSFORMER, POOLING, NORMALIZE = (
    "sentence_transformers.models." + n for n in ("Transformer", "Pooling", "Normalize")
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A BERT of one layer with 64 positions, without sentence-transformers' files."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=512, max_position_embeddings=64, **sizes)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def _write(folder: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))


def _modules(*kinds: str) -> list[dict[str, object]]:
    paths = {TRANSFORMER: "", POOLING: "1_Pooling", NORMALIZE: "2_Normalize"}
    return [{"idx": i, "path": paths.get(kind, "x"), "type": kind} for i, kind in enumerate(kinds)]


def _load(folder: Path) -> SentenceEncoder:
    return load_sentence_encoder(folder_source(folder, origin="model"))


def test_a_plain_folder_is_pooled_by_mean_and_normalised(folder: Path) -> None:
    spec = _load(folder).spec
    assert (spec.pooling, spec.normalize, spec.max_tokens, spec.hidden_size) == (POOLING_MEAN, True, 64, 16)


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, POOLING_CLS),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, POOLING_MEAN),
        ({"pooling_mode_lasttoken": True}, POOLING_LAST),
        ({"pooling_mode": "cls"}, POOLING_CLS),
    ],
)
def test_pooling_is_read_in_both_of_its_spellings(
    folder: Path, config: dict[str, object], pooling: int
) -> None:
    _write(folder, {"modules.json": _modules(TRANSFORMER, POOLING), "1_Pooling/config.json": config})
    spec = _load(folder).spec
    assert (spec.pooling, spec.normalize) == (pooling, False)


@pytest.mark.parametrize("modes", [["max_tokens"], ["cls_token", "mean_tokens"], []])
def test_other_poolings_are_refused(folder: Path, modes: list[str]) -> None:
    config = {f"pooling_mode_{mode}": True for mode in modes}
    _write(folder, {"modules.json": _modules(TRANSFORMER, POOLING), "1_Pooling/config.json": config})
    with pytest.raises(UnsupportedModel, match="cls, mean and last token"):
        _load(folder)


def test_the_shortest_of_the_stated_limits_holds(folder: Path) -> None:
    _write(folder, {"sentence_bert_config.json": {"max_seq_length": 32, "do_lower_case": False}})
    assert _load(folder).spec.max_tokens == 32


def test_prompts_and_normalisation_are_read(folder: Path) -> None:
    _write(
        folder,
        {
            "modules.json": _modules(TRANSFORMER, POOLING, NORMALIZE),
            "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
            "config_sentence_transformers.json": {"prompts": {"query": "query: "}},
        },
    )
    spec = _load(folder).spec
    assert (dict(spec.prompts), spec.normalize) == ({"query": "query: "}, True)


def test_a_module_without_a_counterpart_is_refused(folder: Path) -> None:
    _write(folder, {"modules.json": _modules(TRANSFORMER, POOLING, "sentence_transformers.models.Dense")})
    with pytest.raises(UnsupportedModel, match="Dense"):
        _load(folder)


def test_weights_that_are_missing_are_not_filled_with_random_numbers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    _write(folder, {"config.json": {**config, "num_hidden_layers": 2}})
    with pytest.raises(InvalidCheckpoint, match=r"weights are missing: encoder\.layer\.1"):
        _load(folder)


def test_the_tokenizer_of_a_bundle_neither_truncates_nor_pads(folder: Path) -> None:
    tokenizer = _load(folder).text.tokenizer
    assert tokenizer.truncation is None
    assert tokenizer.padding is None
