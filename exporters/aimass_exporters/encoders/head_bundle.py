"""Fills a draft with an encoder and its head: graph, tokenizer, golden logits; measures and describes it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from aimass.model.v1.manifest_pb2 import ModelManifest

from aimass_exporters.bundles.bundle_text import write_tokenizer
from aimass_exporters.bundles.manifest_writer import describe_graph
from aimass_exporters.bundles.parity import ParityReport
from aimass_exporters.encoders.encoder_export import GRAPH_FILE, export_encoder
from aimass_exporters.encoders.head_parity import HeadUnderTest, golden_logits, measure_head
from aimass_exporters.encoders.labelled_measures import calibrated, measure_entities
from aimass_exporters.encoders.task_encoder import HEADS, TaskEncoder
from aimass_exporters.graphs.graph_quantization import WeightBits, quantize_graph
from aimass_exporters.precision import Precision
from aimass_exporters.progress import Progress
from aimass_exporters.sources.catalogue import TaskName

GOLDEN_FILE = "golden.npz"
_WEIGHT_BITS = {Precision.INT8: WeightBits(body=8), Precision.INT4: WeightBits(body=4)}


def build_head(
    encoder: TaskEncoder,
    draft: Path,
    *,
    precision: Precision,
    held_out: Callable[[], list[str]],
    progress: Progress,
) -> ModelManifest:
    """Write the files of the bundle into `draft`; return the part of the manifest that speaks of them.

    `held_out` gives text for precisions that are judged on it. Raises `ParityFailed` and `UnsupportedModel`.
    """
    graph = _write_graph(encoder, draft, precision, progress)
    described = ModelManifest(encoder=encoder.spec, tokenizer=write_tokenizer(encoder.text, draft))
    described.graphs.append(describe_graph("encoder", graph))
    test, report = HeadUnderTest.open(graph, encoder), ParityReport()
    measure_head(test, held_out() if precision.is_quantized else [], precision, report, progress)
    if encoder.folder is not None:
        _measure_labelled(test, encoder.folder, described, report, progress)
    described.parity.CopyFrom(report.record())
    np.savez(draft / GOLDEN_FILE, allow_pickle=False, **golden_logits(test, precision))
    return described


def _measure_labelled(
    test: HeadUnderTest,
    folder: Path,
    described: ModelManifest,
    report: ParityReport,
    progress: Progress,
) -> None:
    """Measure on the labelled texts that lie beside the weights, if there are any, and calibrate on them."""
    if test.reference.kind is HEADS[TaskName.TOKEN_CLASSIFICATION]:
        measure_entities(test, folder, report, progress)
    elif found := calibrated(test, folder, report, progress):
        described.encoder.calibration.CopyFrom(found)


def _write_graph(encoder: TaskEncoder, draft: Path, precision: Precision, progress: Progress) -> Path:
    progress.stage("export and fuse the graph")
    if not precision.is_quantized:
        return _export(encoder, draft, precision)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=draft.parent) as scratch:
        floating = _export(encoder, Path(scratch), precision)
        progress.stage("quantise the weights")
        quantize_graph(floating, draft / GRAPH_FILE, _WEIGHT_BITS[precision], progress)
    return draft / GRAPH_FILE


def _export(encoder: TaskEncoder, folder: Path, precision: Precision) -> Path:
    kind = encoder.kind
    return export_encoder(
        encoder.model, folder, precision=precision, task=kind.optimum_task, outputs=kind.outputs
    ).path
