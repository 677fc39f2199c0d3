"""Fills a draft with a Whisper model: graphs, tokenizer, golden outputs; measures and describes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from aimass.model.v1.manifest_pb2 import ModelManifest
from aimass_speech.features import Behind, LogMel, MelShape

from aimass_exporters.bundles.bundle_text import write_tokenizer
from aimass_exporters.bundles.manifest_writer import describe_graph
from aimass_exporters.bundles.parity import ParityReport
from aimass_exporters.decoders.decoder_bundle import GOLDEN_FILE
from aimass_exporters.graphs.static_quantization import Feeds
from aimass_exporters.precision import SEQ2SEQ_BOUNDS, Precision
from aimass_exporters.progress import Progress
from aimass_exporters.seq2seq.seq2seq_families import seq2seq_parts
from aimass_exporters.seq2seq.seq2seq_graphs import write_seq2seq_graphs
from aimass_exporters.seq2seq.seq2seq_spec import seq2seq_decoder_spec
from aimass_exporters.sources.speech_samples import speech_samples
from aimass_exporters.sources.spoken_sentences import SpokenSentence, spoken_sentences
from aimass_exporters.speech.speech_model import SpeechModel
from aimass_exporters.speech.speech_parity import SpeechUnderTest, golden_arrays, measure_speech
from aimass_exporters.speech.word_errors import measure_word_errors, read_sentences

_NUM_RANGE_SENTENCES, _NUM_JUDGED_SENTENCES = 24, 80


def build_speech(
    speech: SpeechModel, draft: Path, *, precision: Precision, progress: Progress
) -> ModelManifest:
    """Write the files of a speech bundle into `draft`; return the part of the manifest that speaks of them.

    Raises `InvalidExportOption` for a precision that is not fp32 or int8, `ParityFailed`, `UnsupportedModel`.
    """
    wants_sentences = precision.is_quantized
    sentences = (
        spoken_sentences(_NUM_RANGE_SENTENCES + _NUM_JUDGED_SENTENCES, progress) if wants_sentences else []
    )
    for_ranges, judged = sentences[:_NUM_RANGE_SENTENCES], sentences[_NUM_RANGE_SENTENCES:]
    graphs = write_seq2seq_graphs(
        speech.model,
        draft,
        precision,
        progress,
        alignment_heads=speech.alignment_heads,
        typical=lambda: typical_windows(speech, for_ranges),
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
        read = list(read_sentences(test, judged, progress))
        measure_word_errors(read, bounds.max_word_error_increase, report)
    described.parity.CopyFrom(report.record())
    np.savez(draft / GOLDEN_FILE, **golden_arrays(test, bounds))  # type: ignore[arg-type]  # names are free
    return described


def typical_windows(speech: SpeechModel, sentences: Sequence[SpokenSentence]) -> list[Feeds]:
    """Return windows as the encoder is given them, silence and zeros behind the speech in turns."""
    spec = speech.spec
    shape = MelShape(spec.num_mel_bins, spec.sample_rate_hz, spec.fft_samples, spec.hop_samples)
    frames = speech.model.config.max_source_positions
    num_samples = frames * spec.mel_columns_per_frame * spec.hop_samples
    return [
        {
            "mel": LogMel(shape)(
                sentence.samples,
                num_samples=num_samples,
                behind=Behind.ZEROS if index % 2 else Behind.SILENCE,
            )[np.newaxis],
            "attention_mask": np.ones((1, frames), np.int64),  # every position counts
        }
        for index, sentence in enumerate(sentences)
    ]
