"""Encoder heads of eight families as ONNX graphs against PyTorch: random weights, every task.

Each export measures itself on padded batches against PyTorch text by text and fails beyond a thousandth of
the logits' spread (fp32 sums in another order). What the optimiser fuses is asserted, so that a change of
tools that loses a fusion is seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aimass.model.v1.manifest_pb2 import EncoderSpec
from aimass_exporters.sources.catalogue import TaskName

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 130,
    "num_labels": 3,
    "pad_token_id": 0,
    # Ten times the usual spread: logits that differ clearly, as a trained model's do.
    "initializer_range": 0.2,
}
FUSED_ATTENTION = {
    "bert": 2,
    "roberta": 2,
    "electra": 2,
    "xlm-roberta": 2,
    "albert": 1,  # its layers share weights: the optimiser fuses one of the two
    "distilbert": 0,  # masks with -inf before the softmax, a pattern the optimiser does not know
    "mpnet": 0,  # adds a relative position bias, which the Attention operator takes only in T5's form
    "deberta-v2": 0,  # disentangled attention: three products, no operator
}


def config_of(family: str) -> PretrainedConfig:
    from transformers import CONFIG_MAPPING

    if family == "distilbert":
        renamed = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
        names = {**renamed, "intermediate_size": "hidden_dim"}
        return CONFIG_MAPPING[family](**{names.get(k, k): v for k, v in SIZES.items()})
    more: dict[str, dict[str, Any]] = {
        "albert": {"embedding_size": 32},
        "electra": {"embedding_size": 32},
        "roberta": {"type_vocab_size": 1},
        "xlm-roberta": {"type_vocab_size": 1},
        "deberta-v2": {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "type_vocab_size": 0,
        },
    }
    return CONFIG_MAPPING[family](**SIZES, **more.get(family, {}))


def exported(family: str, task: TaskName, folder: Path) -> tuple[dict[str, int], list[tuple[str, float]]]:
    """Export a random model; return what was fused, and the measures, each within its bound."""
    import torch
    from aimass_exporters.bundles.parity import ParityReport
    from aimass_exporters.bundles.text_tokenizer import TextTokenizer
    from aimass_exporters.encoders.encoder_export import export_encoder
    from aimass_exporters.encoders.head_parity import HeadUnderTest, measure_head
    from aimass_exporters.encoders.task_encoder import HEADS, TaskEncoder
    from aimass_exporters.precision import Precision
    from aimass_exporters.progress import SilentProgress
    from aimass_exporters.testing import tiny_tokenizer

    kind, config = HEADS[task], config_of(family)
    if kind.reads_pairs:
        config.num_labels = 2
    torch.manual_seed(7)
    model = kind.loader.from_config(config, attn_implementation="eager").eval()
    model.config._name_or_path = str(folder)
    graph = export_encoder(
        model, folder, precision=Precision.FP32, task=kind.optimum_task, outputs=kind.outputs
    )
    text = TextTokenizer(tiny_tokenizer().backend_tokenizer, pad_token_id=0)
    test = HeadUnderTest.open(graph.path, TaskEncoder(model, text, EncoderSpec(max_tokens=100), kind))
    report = ParityReport()
    measure_head(test, [], Precision.FP32, report, SilentProgress())
    return dict(graph.fused), [(m.name, m.value / m.bound) for m in report.record().measures]


# transformers scripts DeBERTa's attention when it is imported.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("family", FUSED_ATTENTION)
def test_a_family_classifies_as_in_pytorch(family: str, tmp_path: Path) -> None:
    fused, measures = exported(family, TaskName.TEXT_CLASSIFICATION, tmp_path)
    assert fused.get("Attention", 0) == FUSED_ATTENTION[family], fused
    assert fused["LayerNormalization"] >= 4
    assert not {"SkipLayerNormalization", "MultiHeadAttention"} & fused.keys(), "slow on the CPU"
    assert [name for name, _ in measures] == ["max_abs_diff_logits_passages"]


@pytest.mark.parametrize(
    ("family", "task"),
    [
        ("bert", TaskName.NEXT_SENTENCE_PREDICTION),
        ("bert", TaskName.QUESTION_ANSWERING),
        ("roberta", TaskName.FILL_MASK),
        ("distilbert", TaskName.TOKEN_CLASSIFICATION),
        ("albert", TaskName.FILL_MASK),
        ("electra", TaskName.QUESTION_ANSWERING),
        ("mpnet", TaskName.TOKEN_CLASSIFICATION),
        ("xlm-roberta", TaskName.TOKEN_CLASSIFICATION),
    ],
)
def test_a_head_gives_the_logits_of_pytorch(family: str, task: TaskName, tmp_path: Path) -> None:
    _, measures = exported(family, task, tmp_path)
    assert all(share <= 1 for _, share in measures)
