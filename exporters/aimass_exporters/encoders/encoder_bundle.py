"""Fills a draft with an encoder: graph, tokenizer, golden vectors; measures it and describes it for the
manifest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from aimass.model.v1.manifest_pb2 import ModelManifest, ParityRecord
from transformers import PreTrainedModel

from aimass_exporters.bundles.bundle_text import write_tokenizer
from aimass_exporters.bundles.manifest_writer import describe_graph
from aimass_exporters.bundles.parity import ParityReport
from aimass_exporters.encoders.encoder_export import GRAPH_FILE, export_encoder
from aimass_exporters.encoders.encoder_parity import (
    EncoderUnderTest,
    golden_vectors,
    measure_neighbours,
    measure_vectors,
)
from aimass_exporters.encoders.sentence_encoder import SentenceEncoder
from aimass_exporters.graphs.graph_quantization import WeightBits, quantize_graph
from aimass_exporters.precision import ENCODER_BOUNDS, Precision
from aimass_exporters.progress import Progress

GOLDEN_FILE = "golden.npz"
_WEIGHT_BITS = {Precision.INT8: WeightBits(body=8), Precision.INT4: WeightBits(body=4)}


def build_encoder(
    encoder: SentenceEncoder,
    draft: Path,
    *,
    precision: Precision,
    held_out: Callable[[], list[str]],
    progress: Progress,
) -> ModelManifest:
    """Write the files of an encoder bundle into `draft`; return the part of the manifest that speaks of them.

    `held_out` gives text for precisions that are judged on it. Raises `ParityFailed` and `UnsupportedModel`.
    """
    graph = _write_graph(encoder.model, draft, precision, progress)
    described = ModelManifest(encoder=encoder.spec, tokenizer=write_tokenizer(encoder.text, draft))
    described.graphs.append(describe_graph("encoder", graph))
    test = EncoderUnderTest.open(graph, encoder)
    described.parity.CopyFrom(_parity(test, precision, held_out, progress))
    np.savez(draft / GOLDEN_FILE, allow_pickle=False, **golden_vectors(test, ENCODER_BOUNDS[precision]))
    return described


def _write_graph(model: PreTrainedModel, draft: Path, precision: Precision, progress: Progress) -> Path:
    progress.stage("export and fuse the graph")
    if not precision.is_quantized:
        return export_encoder(model, draft, precision=precision).path
    with tempfile.TemporaryDirectory(prefix=".export-", dir=draft.parent) as scratch:
        floating = export_encoder(model, Path(scratch), precision=precision).path
        progress.stage("quantise the weights")
        quantize_graph(floating, draft / GRAPH_FILE, _WEIGHT_BITS[precision], progress)
    return draft / GRAPH_FILE


def _parity(
    test: EncoderUnderTest, precision: Precision, held_out: Callable[[], list[str]], progress: Progress
) -> ParityRecord:
    bounds, report = ENCODER_BOUNDS[precision], ParityReport()
    measure_vectors(test, bounds, report, progress)
    if precision.is_quantized:
        measure_neighbours(test, held_out(), bounds, report, progress)
    return report.record()
