"""Fills a draft with an encoder and its head: graph, tokenizer, golden logits; measures and describes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from aimass.model.v1.manifest_pb2 import ModelManifest

from aimass_exporters.bundles.bundle_text import write_tokenizer
from aimass_exporters.bundles.manifest_writer import describe_graph
from aimass_exporters.bundles.parity import ParityReport
from aimass_exporters.encoders.bigru_tagger import BiGruTagger, export_bigru
from aimass_exporters.encoders.encoder_export import export_encoder
from aimass_exporters.encoders.encoder_graph import typical_feeds, write_encoder_graph
from aimass_exporters.encoders.head_parity import HeadUnderTest, golden_logits, measure_head
from aimass_exporters.encoders.labelled_measures import calibrated, measure_entities
from aimass_exporters.encoders.task_encoder import HEADS, TaskEncoder
from aimass_exporters.errors import InvalidExportOption
from aimass_exporters.precision import Precision
from aimass_exporters.progress import Progress
from aimass_exporters.sources.catalogue import TaskName

GOLDEN_FILE = "golden.npz"


def build_head(
    encoder: TaskEncoder,
    draft: Path,
    *,
    precision: Precision,
    held_out: Callable[[], list[str]],
    progress: Progress,
) -> ModelManifest:
    """Write the files of the bundle into `draft`; return the part of the manifest that speaks of them.

    `held_out` gives text: half of it the ranges of 8-bit activations are taken from, on the other half
    quantised models are judged. Raises `InvalidExportOption`, `ParityFailed` and `UnsupportedModel`.
    """
    if precision not in encoder.precisions:
        expected = f"{' or '.join(encoder.precisions)} for {encoder.model.config.model_type}"
        raise InvalidExportOption("--precision", expected=expected, got=precision.value)
    texts = held_out() if precision.is_quantized else []
    graph = write_encoder_graph(
        lambda folder: _export(encoder, folder, precision),
        draft,
        precision=precision,
        typical=lambda: typical_feeds(
            encoder.text, texts[1::2], max_tokens=encoder.spec.max_tokens, in_pairs=encoder.kind.reads_pairs
        ),
        progress=progress,
    )
    described = ModelManifest(encoder=encoder.spec, tokenizer=write_tokenizer(encoder.text, draft))
    described.graphs.append(describe_graph("encoder", graph))
    test, report = HeadUnderTest.open(graph, encoder), ParityReport()
    measure_head(test, texts[::2], precision, report, progress)
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


def _export(encoder: TaskEncoder, folder: Path, precision: Precision) -> Path:
    if isinstance(encoder.model, BiGruTagger):
        return export_bigru(encoder.model, folder)
    kind = encoder.kind
    return export_encoder(
        encoder.model, folder, precision=precision, task=kind.optimum_task, outputs=kind.outputs
    ).path
