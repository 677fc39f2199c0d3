"""A model that the graph cannot say is refused with the reason, before the long trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from aimass_exporters.decoders.decoder_export import export_decoder
from aimass_exporters.errors import UnsupportedModel
from aimass_exporters.testing import tiny_config
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BloomConfig,
    PretrainedConfig,
    T5Config,
)


def _refusal(config: PretrainedConfig, folder: Path) -> str:
    kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with pytest.raises(UnsupportedModel) as raised:
        export_decoder(kind.from_config(config).eval(), folder)
    assert list(folder.iterdir()) == []
    return str(raised.value)


def test_a_model_without_the_attention_interface_is_refused(tmp_path: Path) -> None:
    config = BloomConfig(hidden_size=32, n_layer=2, n_head=2, vocab_size=64)
    assert "'bloom'" in _refusal(config, tmp_path)


def test_rotation_that_depends_on_the_length_is_refused(tmp_path: Path) -> None:
    config = tiny_config("llama")
    config.rope_scaling = {"rope_type": "dynamic", "factor": 2.0}
    assert "rotary scaling (dynamic)" in _refusal(config, tmp_path)


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    config = T5Config(d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=64)
    assert "not a decoder-only language model" in _refusal(config, tmp_path)


def test_a_refused_model_still_runs(tmp_path: Path) -> None:
    config = tiny_config("llama")
    config.rope_scaling = {"rope_type": "dynamic", "factor": 2.0}
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.arange(4).unsqueeze(0)
    with torch.no_grad():
        before = model(ids).logits
        with pytest.raises(UnsupportedModel):
            export_decoder(model, tmp_path)
        assert torch.equal(model(ids).logits, before)
