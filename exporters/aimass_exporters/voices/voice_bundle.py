"""Fills a draft with a voice: graphs, golden audio; measures and describes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from aimass.model.v1 import manifest_pb2 as manifest
from aimass.model.v1.synthesis_spec_pb2 import SYNTHESIS_KIND_SPECTRAL
from aimass_serving.session import Device, SessionConfig, open_session
from aimass_speech.synthesis.bundled_voice import (
    alphabet_of,
    reader_of,
    speak_in_stretches,
    voice_of,
)
from aimass_speech.synthesis.noise import NoNoise, SeededNoise
from aimass_speech.synthesis.reading import joined
from aimass_speech.synthesis.voice import Manner, Voice
from numpy.typing import NDArray

from aimass_exporters.bundles.manifest_writer import describe_graph
from aimass_exporters.bundles.parity import ParityReport
from aimass_exporters.errors import InvalidExportOption, UnsupportedModel
from aimass_exporters.precision import Precision
from aimass_exporters.progress import Progress
from aimass_exporters.sources.catalogue import Reader
from aimass_exporters.sources.source import Source
from aimass_exporters.voices.hibari_voice import HibariVoice
from aimass_exporters.voices.piper_voice import PiperVoice
from aimass_exporters.voices.vits_voice import TransformersVoice
from aimass_exporters.voices.voice_model import RecordedNoise, VoiceModel

_READERS: Mapping[Reader, Callable[[Path], VoiceModel]] = {
    Reader.PIPER: PiperVoice,
    Reader.HIBARI: HibariVoice,
    Reader.FOLDER: TransformersVoice,
}
_SEED = 17
_STRETCHES = (7, 50)
"""Frames at a time: fewer than the margins, and more."""
_MAX_DIFFERENCE = 1e-3
"""Samples are numbers up to 1; float32 in another order stays far below."""
_MAX_STRETCH_DIFFERENCE = 1e-4


def load_voice(source: Source) -> VoiceModel:
    """Read a voice's files. Raises `InvalidCheckpoint`, `UnsupportedModel`."""
    if source.reader not in _READERS:
        raise UnsupportedModel(source.reader, because="it is no voice")
    return _READERS[source.reader](source.path)


def build_voice(
    model: VoiceModel, draft: Path, *, precision: Precision, progress: Progress
) -> manifest.ModelManifest:
    """Write the files of a voice's bundle into `draft`; return the part of the manifest that speaks of them.

    Raises `InvalidExportOption` for a precision that is not fp32, `ParityFailed`, `UnsupportedModel`.
    """
    described = manifest.ModelManifest(family=model.family, speech_synthesis=model.spec)
    if precision is not Precision.FP32:
        raise InvalidExportOption("--precision", expected="fp32 for a voice", got=precision.value)
    if model.spec.kind == SYNTHESIS_KIND_SPECTRAL:
        described.precision = manifest.PRECISION_INT8  # so it comes
    progress.stage("export graphs")
    graphs = model.write_graphs(draft)
    described.graphs.extend(describe_graph(role, path) for role, path in graphs.items())
    progress.stage("measure against the voice as it came")
    config = SessionConfig(device=Device.CPU, num_threads=1)
    voice = voice_of(model.spec, lambda role: open_session(graphs[role], config))
    ids = _golden_ids(model, config)
    described.parity.CopyFrom(_measure(model, voice, ids))
    audio = speak_in_stretches(voice, ids, _STRETCHES[-1])
    tolerance = model.golden_tolerance
    np.savez(
        draft / "golden.npz", text=np.array(model.golden_text), ids=ids, audio=audio, tolerance=tolerance
    )
    return described


def _golden_ids(model: VoiceModel, config: SessionConfig) -> NDArray[np.int64]:
    alphabet = alphabet_of(model.spec)
    reading = reader_of(model.spec, alphabet, config).read(model.golden_text, {})
    return alphabet.encode(joined(reading.words))


def _measure(model: VoiceModel, voice: Voice, ids: NDArray[np.int64]) -> manifest.ParityRecord:
    """Compare with the voice as it came, without noise and with the same, and stretches with the whole."""
    report = ParityReport()
    still = Manner(noise_scale=0, duration_noise_scale=0)
    for name, manner in (("without_noise", still), ("pinned_noise", Manner())):
        noise = RecordedNoise(SeededNoise(_SEED, 0))
        speech = voice.begin(ids, manner, NoNoise() if manner is still else noise)
        whole = speech.render(0, speech.num_frames)
        expected = model.expected(ids, noise.drawn, has_noise=manner is not still)
        report.at_most(
            f"max_abs_diff_audio_{name}",
            _difference(whole, expected),
            bound=_MAX_DIFFERENCE,
            num_samples=len(expected),
        )
        for num_frames in _STRETCHES:
            again = voice.begin(ids, manner, NoNoise() if manner is still else SeededNoise(_SEED, 0))
            starts = range(0, again.num_frames, num_frames)
            pieces = [again.render(at, min(at + num_frames, again.num_frames)) for at in starts]
            report.at_most(
                f"max_abs_diff_stretches_of_{num_frames}_{name}",
                _difference(np.concatenate(pieces), whole),
                bound=_MAX_STRETCH_DIFFERENCE,
                num_samples=len(whole),
            )
    return report.record(reference=None if model.family == "vits" else f"the {model.family} voice as it came")


def _difference(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.abs(got - expected).max()) if got.shape == expected.shape else float("inf")
