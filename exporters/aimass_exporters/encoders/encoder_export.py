"""Turns a text encoder of transformers into one ONNX graph, with attention, layer norm and GELU fused.

optimum exports; onnxruntime's transformer optimiser fuses. Must not know pooling, nor how the bundle is
packed.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model
from optimum.exporters.onnx.convert import onnx_export_from_model

from aimass_exporters.errors import UnsupportedModel
from aimass_exporters.graphs.cpu_operators import use_cpu_operators
from aimass_exporters.graphs.external_file import save_graph
from aimass_exporters.graphs.tracing import quiet_tracing
from aimass_exporters.precision import Precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GRAPH_FILE = "encoder.onnx"
_FUSION_MODEL = "bert"  # the optimiser's name for every encoder with BERT's blocks
_OUTPUT = "last_hidden_state"
FUSED_OPERATORS = frozenset(
    {
        "Attention",
        "BiasGelu",
        "EmbedLayerNormalization",
        "FastGelu",
        "Gelu",
        "LayerNormalization",
        "MultiHeadAttention",
        "SkipLayerNormalization",
    }
)
"""Operators that stand for several of the model's own."""


@dataclass(frozen=True, slots=True)
class EncoderGraph:
    """An exported encoder, and what the optimiser fused in it."""

    path: Path
    fused: Mapping[str, int]
    """Number of fused nodes by operator."""


def export_encoder(
    model: PreTrainedModel,
    folder: Path,
    *,
    precision: Precision,
    task: str = "feature-extraction",
    outputs: Collection[str] = (_OUTPUT,),
) -> EncoderGraph:
    """Write `encoder.onnx` into `folder`: fused, fp16 inside when asked for; integer weights are made later.

    `task` is optimum's name of what the graph computes; other outputs than `outputs` are dropped. Raises
    `UnsupportedModel` when optimum cannot export the family.
    """
    with tempfile.TemporaryDirectory(prefix=".encoder-", dir=folder) as scratch, quiet_tracing():
        raw = _export(model, Path(scratch), task)
        optimized = _optimize(raw, model, precision)
        _keep_only(optimized, outputs)
        if precision is Precision.FP16:
            optimized.convert_float_to_float16(keep_io_types=True)
        else:
            use_cpu_operators(optimized.model)
        fused = Counter(n.op_type for n in optimized.model.graph.node if n.op_type in FUSED_OPERATORS)
        path = save_graph(optimized.model, folder / GRAPH_FILE)
    return EncoderGraph(path, fused)


def _export(model: PreTrainedModel, folder: Path, task: str) -> Path:
    try:
        onnx_export_from_model(model, folder, task=task, do_validation=False, no_post_process=True)
    except (KeyError, ValueError, NotImplementedError) as error:
        raise UnsupportedModel(
            model.config.model_type, because=f"optimum cannot export it: {error}"
        ) from error
    return folder / "model.onnx"


def _optimize(raw: Path, model: PreTrainedModel, precision: Precision) -> Any:
    options = FusionOptions(_FUSION_MODEL)
    if precision is not Precision.FP16:  # fp16 is for CUDA, whose kernels are made for what follows
        options.use_multi_head_attention = True
        options.use_raw_attention_mask(True)
        options.enable_embed_layer_norm = False
        options.enable_bias_gelu = False
    return optimize_model(
        str(raw),
        model_type=_FUSION_MODEL,
        num_heads=model.config.num_attention_heads,
        hidden_size=model.config.hidden_size,
        optimization_options=options,
        opt_level=0,
    )


def _keep_only(optimized: Any, names: Collection[str]) -> None:
    """Drop other outputs, such as a pooler's, and what only they need."""
    outputs = optimized.model.graph.output
    for extra in [value for value in outputs if value.name not in names]:
        outputs.remove(extra)
    optimized.prune_graph()
