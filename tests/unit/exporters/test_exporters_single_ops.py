"""What is traced to one node is what the node computes, and nothing of it outlives the trace."""

from __future__ import annotations

import copy

import pytest
import torch
from aimass_exporters.graphs.attention import slot_attention
from aimass_exporters.graphs.single_ops import is_half_rotation, is_rms_norm, single_ops
from aimass_exporters.testing import tiny_config
from transformers import AutoModelForCausalLM
from transformers.models.cohere import modeling_cohere
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama import modeling_llama
from transformers.models.mistral.modeling_mistral import MistralRMSNorm


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_is_itself_again_after_the_trace(family: str) -> None:
    model = AutoModelForCausalLM.from_config(tiny_config(family)).eval()
    ids = torch.arange(3, 12).unsqueeze(0)
    rotation = modeling_llama.apply_rotary_pos_emb
    with torch.no_grad():
        before = model(ids).logits
        with pytest.raises(RuntimeError), slot_attention(model), single_ops(model):
            raise RuntimeError
        assert torch.equal(model(ids).logits, before)
    assert modeling_llama.apply_rotary_pos_emb is rotation
    assert not any("forward" in vars(module) for module in model.modules())


def test_another_model_of_the_family_is_not_touched_during_a_trace() -> None:
    traced = AutoModelForCausalLM.from_config(tiny_config("llama"))
    other = copy.deepcopy(traced)
    with single_ops(traced):
        assert "forward" in vars(traced.model.norm)
        assert "forward" not in vars(other.model.norm)


def test_a_norm_is_recognised_by_what_it_computes() -> None:
    norm, look_alike = MistralRMSNorm(8), GemmaRMSNorm(8)
    assert is_rms_norm(norm)
    torch.nn.init.uniform_(look_alike.weight)
    vars(look_alike)["variance_epsilon"] = look_alike.eps  # Gemma multiplies by 1 + weight
    assert not is_rms_norm(look_alike)


def test_an_interleaved_rotation_is_not_taken_for_one_by_halves() -> None:
    assert is_half_rotation(modeling_llama.apply_rotary_pos_emb)
    assert not is_half_rotation(modeling_cohere.apply_rotary_pos_emb)
    assert not is_half_rotation(None)
