"""Writes the graphs of an encoder-decoder in the precision that was asked for."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
from transformers import PreTrainedModel

from aimass_exporters.errors import InvalidExportOption
from aimass_exporters.graphs.graph_quantization import WeightBits, quantize_model
from aimass_exporters.precision import SEQ2SEQ_BOUNDS, Precision
from aimass_exporters.progress import Progress
from aimass_exporters.seq2seq.seq2seq_export import Head, Seq2SeqGraphs, export_seq2seq

_INT8 = WeightBits(body=8)


def write_seq2seq_graphs(
    model: PreTrainedModel,
    draft: Path,
    precision: Precision,
    progress: Progress,
    *,
    alignment_heads: Sequence[Head] = (),
) -> Seq2SeqGraphs:
    """Write the graphs of a model, quantised in blocks when asked for.

    Raises `InvalidExportOption` for a precision that is not fp32 or int8, `UnsupportedModel`.
    """
    if precision not in SEQ2SEQ_BOUNDS:
        expected = f"one of {', '.join(SEQ2SEQ_BOUNDS)} for an encoder-decoder"
        raise InvalidExportOption("--precision", expected=expected, got=precision.value)
    progress.stage("trace the model into graphs")
    if not precision.is_quantized:
        return export_seq2seq(model, draft, alignment_heads=alignment_heads)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=draft.parent) as scratch:
        floating = export_seq2seq(model, Path(scratch), alignment_heads=alignment_heads)
        for path in floating.by_role().values():
            progress.stage(f"quantise {path.name}")
            quantize_model(onnx.load(path), draft / path.name, _INT8, progress)
    return floating.moved_to(draft)
