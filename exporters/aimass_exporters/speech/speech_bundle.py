"""Fills a draft with a Whisper model: graphs, tokenizer, golden outputs; measures and describes it."""

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
from aimass_exporters.sources.speech_samples import speech_samples
from aimass_exporters.sources.spoken_sentences import spoken_sentences
from aimass_exporters.speech.speech_model import SpeechModel
from aimass_exporters.speech.speech_parity import SpeechUnderTest, golden_arrays, measure_speech
from aimass_exporters.speech.word_errors import measure_word_errors, read_sentences

_NUM_JUDGED_SENTENCES = 80


def build_speech(
    speech: SpeechModel, draft: Path, *, precision: Precision, progress: Progress
) -> ModelManifest:
    """Write the files of a speech bundle into `draft`; return the part of the manifest that speaks of them.

    Raises `InvalidExportOption` for a precision that is not fp32 or int8, `ParityFailed`, `UnsupportedModel`.
    """
    graphs = write_seq2seq_graphs(
        speech.model,
        draft,
        precision,
        progress,
        alignment_heads=speech.alignment_heads,
    )
    described = ModelManifest(
        family=speech.model.config.model_type,
        decoder=seq2seq_decoder_spec(seq2seq_parts(speech.model), eos_token_ids=[speech.spec.end_of_text_id]),
        speech_recognition=speech.spec,
        tokenizer=write_tokenizer(speech.text, draft),
    )
    described.graphs.extend(describe_graph(role, path) for role, path in graphs.by_role().items())
    test, report, bounds = (
        SpeechUnderTest.open(graphs, described.decoder, speech),
        ParityReport(),
        SEQ2SEQ_BOUNDS[precision],
    )
    measure_speech(test, speech_samples(progress), bounds, report, progress)
    if bounds.max_word_error_increase is not None:
        judged = spoken_sentences(_NUM_JUDGED_SENTENCES, progress)
        read = list(read_sentences(test, judged, progress))
        measure_word_errors(read, bounds.max_word_error_increase, report)
    described.parity.CopyFrom(report.record())
    np.savez(draft / GOLDEN_FILE, **golden_arrays(test, bounds))  # type: ignore[arg-type]  # names are free
    return described
