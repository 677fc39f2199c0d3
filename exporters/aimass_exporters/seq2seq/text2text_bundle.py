"""Fills a draft with an encoder-decoder of text: graphs, tokenizer, golden outputs; measures and describes
it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from aimass.model.v1.manifest_pb2 import ModelManifest

from aimass_exporters.bundles.bundle_text import write_tokenizer
from aimass_exporters.bundles.manifest_writer import describe_graph
from aimass_exporters.bundles.parity import ParityReport
from aimass_exporters.decoders.decoder_bundle import GOLDEN_FILE
from aimass_exporters.precision import SEQ2SEQ_BOUNDS, Precision
from aimass_exporters.progress import Progress
from aimass_exporters.seq2seq.seq2seq_families import seq2seq_parts
from aimass_exporters.seq2seq.seq2seq_graphs import write_seq2seq_graphs
from aimass_exporters.seq2seq.seq2seq_spec import seq2seq_decoder_spec
from aimass_exporters.seq2seq.text2text_model import Text2TextModel
from aimass_exporters.seq2seq.text2text_parity import Text2TextUnderTest, golden_arrays, measure_text2text


def build_text2text(
    text2text: Text2TextModel, draft: Path, *, precision: Precision, progress: Progress
) -> ModelManifest:
    """Write the files of a bundle into `draft`; return the part of the manifest that speaks of them.

    Raises `InvalidExportOption` for a precision that is not fp32 or int8, `ParityFailed`, `UnsupportedModel`.
    """
    graphs = write_seq2seq_graphs(text2text.model, draft, precision, progress)
    described = ModelManifest(
        family=text2text.model.config.model_type,
        decoder=seq2seq_decoder_spec(seq2seq_parts(text2text.model), eos_token_ids=text2text.eos_token_ids),
        text2text=text2text.spec,
        tokenizer=write_tokenizer(text2text.text, draft),
    )
    if text2text.max_new_tokens:
        described.decoder.defaults.max_new_tokens = text2text.max_new_tokens
    described.graphs.extend(describe_graph(role, path) for role, path in graphs.by_role().items())
    test = Text2TextUnderTest.open(graphs, described.decoder, text2text)
    report, bounds = ParityReport(), SEQ2SEQ_BOUNDS[precision]
    measure_text2text(test, bounds, report, progress)
    described.parity.CopyFrom(report.record())
    np.savez(draft / GOLDEN_FILE, **golden_arrays(test, bounds))  # type: ignore[arg-type]  # names are free
    return described
