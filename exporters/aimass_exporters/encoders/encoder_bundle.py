"""Fills a draft with an encoder: graph, tokenizer, golden vectors; measures it and describes it for the
manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from aimass.model.v1.manifest_pb2 import ModelManifest, ParityRecord

from aimass_exporters.bundles.bundle_text import write_tokenizer
from aimass_exporters.bundles.manifest_writer import describe_graph
from aimass_exporters.bundles.parity import ParityReport
from aimass_exporters.encoders.encoder_export import export_encoder
from aimass_exporters.encoders.encoder_graph import typical_feeds, write_encoder_graph
from aimass_exporters.encoders.encoder_parity import (
    EncoderUnderTest,
    golden_vectors,
    measure_neighbours,
    measure_vectors,
)
from aimass_exporters.encoders.sentence_encoder import SentenceEncoder
from aimass_exporters.precision import ENCODER_BOUNDS, Precision
from aimass_exporters.progress import Progress

GOLDEN_FILE = "golden.npz"


def build_encoder(
    encoder: SentenceEncoder,
    draft: Path,
    *,
    precision: Precision,
    held_out: Callable[[], list[str]],
    progress: Progress,
) -> ModelManifest:
    """Write the files of an encoder bundle into `draft`; return the part of the manifest that speaks of them.

    `held_out` gives text: half of it the ranges of 8-bit activations are taken from, on the other half
    quantised models are judged. Raises `ParityFailed` and `UnsupportedModel`.
    """
    texts = held_out() if precision.is_quantized else []
    graph = write_encoder_graph(
        lambda folder: export_encoder(encoder.model, folder, precision=precision).path,
        draft,
        precision=precision,
        typical=lambda: typical_feeds(encoder.text, texts[1::2], max_tokens=encoder.spec.max_tokens),
        progress=progress,
    )
    described = ModelManifest(encoder=encoder.spec, tokenizer=write_tokenizer(encoder.text, draft))
    described.graphs.append(describe_graph("encoder", graph))
    test = EncoderUnderTest.open(graph, encoder)
    described.parity.CopyFrom(_parity(test, precision, texts[::2], progress))
    np.savez(draft / GOLDEN_FILE, allow_pickle=False, **golden_vectors(test, ENCODER_BOUNDS[precision]))
    return described


def _parity(
    test: EncoderUnderTest, precision: Precision, texts: Sequence[str], progress: Progress
) -> ParityRecord:
    bounds, report = ENCODER_BOUNDS[precision], ParityReport()
    measure_vectors(test, bounds, report, progress)
    if precision.is_quantized:
        measure_neighbours(test, texts, bounds, report, progress)
    return report.record()
