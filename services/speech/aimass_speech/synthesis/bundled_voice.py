"""A voice's bundle to an open voice and the reader of its texts, checked against its golden audio.

Must not know the wire.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from aimass.model.v1 import synthesis_spec_pb2 as spec_pb
from aimass_serving.bundle import Bundle
from aimass_serving.errors import BadBundle
from aimass_serving.session import Session, SessionConfig, open_session
from numpy.typing import NDArray

from aimass_speech.synthesis.alphabet import Alphabet
from aimass_speech.synthesis.characters import CharacterReader
from aimass_speech.synthesis.english import EnglishReader, word_network
from aimass_speech.synthesis.noise import NoNoise
from aimass_speech.synthesis.reading import TextReader, joined
from aimass_speech.synthesis.spectral_voice import SpectralVoice
from aimass_speech.synthesis.vits_voice import VitsShape, VitsVoice
from aimass_speech.synthesis.voice import Manner, UnspeakablePhrase, Voice

TEXT_ROLE, FLOW_ROLE, VOCODER_ROLE = "text", "flow", "vocoder"
GOLDEN_MANNER = Manner(noise_scale=0, duration_noise_scale=0)
_GOLDEN_CHUNK_FRAMES = 50


def alphabet_of(spec: spec_pb.SpeechSynthesisSpec) -> Alphabet:
    """Return the symbols of a voice."""
    return Alphabet(
        ids=dict(spec.symbol_ids),
        start_ids=tuple(spec.start_ids),
        end_ids=tuple(spec.end_ids),
        blank_id=spec.blank_id if spec.HasField("blank_id") else None,
        replacements=[(item.to_replace, item.replacement) for item in spec.replacements],
        ipa_replacements=[(item.to_replace, item.replacement) for item in spec.ipa_replacements],
    )


def reader_of(
    spec: spec_pb.SpeechSynthesisSpec, alphabet: Alphabet, session_config: SessionConfig
) -> TextReader:
    """Return what reads texts for a voice. Raises `ValueError` for a source that is not known here."""
    # The network reads one word at a time: threads inside its operators only cost.
    config = replace(session_config, num_threads=1)
    readers: Mapping[int, Callable[[], TextReader]] = {
        spec_pb.SYMBOL_SOURCE_CHARACTERS: lambda: CharacterReader(alphabet),
        spec_pb.SYMBOL_SOURCE_ENGLISH_PHONEMES: lambda: EnglishReader(
            alphabet, word_network(lambda graph: open_session(graph, config))
        ),
    }
    if spec.symbol_source not in readers:
        raise ValueError(f"symbol source {spec.symbol_source} is not known here")
    return readers[spec.symbol_source]()


def voice_of(spec: spec_pb.SpeechSynthesisSpec, open_graph: Callable[[str], Session]) -> Voice:
    """Return a voice whose graphs are opened by role. Raises `ValueError` for a kind not known here."""
    if spec.kind == spec_pb.SYNTHESIS_KIND_SPECTRAL:
        return SpectralVoice(open_graph(TEXT_ROLE))
    if spec.kind != spec_pb.SYNTHESIS_KIND_VITS:
        raise ValueError(f"a voice of kind {spec.kind} is not known here")
    if min(spec.sample_rate_hz, spec.hop_samples) < 1:
        raise ValueError("a VITS voice needs a sample rate and a hop")
    shape = VitsShape(
        sample_rate_hz=spec.sample_rate_hz,
        hop_samples=spec.hop_samples,
        flow_margin=spec.flow_margin_frames,
        vocoder_margin=spec.vocoder_margin_frames,
        noise_scale=spec.noise_scale,
        duration_noise_scale=spec.duration_noise_scale,
    )
    return VitsVoice(open_graph(TEXT_ROLE), open_graph(FLOW_ROLE), open_graph(VOCODER_ROLE), shape)


def open_bundled_voice(bundle: Bundle, session_config: SessionConfig) -> tuple[Voice, Alphabet, TextReader]:
    """Open a bundle's voice and reader, and hold both to what the export recorded. Raises `BadBundle`."""
    spec = bundle.manifest.speech_synthesis
    alphabet = alphabet_of(spec)
    try:
        voice = voice_of(spec, lambda role: open_session(bundle.graph(role), session_config))
        reader = reader_of(spec, alphabet, session_config)
    except ValueError as error:
        raise BadBundle(bundle.ref, detail=str(error)) from error
    golden = bundle.golden()
    try:
        _replay(voice, golden, bundle.ref)
        _reread(reader, alphabet, golden, bundle.ref)
    except KeyError as error:
        raise BadBundle(bundle.ref, detail=f"golden.npz has no array named {error}") from error
    return voice, alphabet, reader


def _replay(voice: Voice, golden: Mapping[str, NDArray[np.float32]], ref: str) -> None:
    """Speak the golden ids in stretches. Raises `BadBundle` when other audio comes out."""
    expected, tolerance = golden["audio"], float(golden["tolerance"])
    try:
        got = speak_in_stretches(voice, golden["ids"].astype(np.int64), _GOLDEN_CHUNK_FRAMES)
    except UnspeakablePhrase as error:
        raise BadBundle(ref, detail=f"the golden phrase gave {error}") from error
    if got.shape != expected.shape:
        raise BadBundle(ref, detail=f"the golden phrase gave {len(got)} samples, expected {len(expected)}")
    difference = float(np.abs(got - expected).max())
    if not difference <= tolerance:  # NaN is not
        detail = f"golden audio differs by {difference:.3g}, expected at most {tolerance:.3g}"
        raise BadBundle(ref, detail=detail)


def _reread(
    reader: TextReader, alphabet: Alphabet, golden: Mapping[str, NDArray[np.float32]], ref: str
) -> None:
    """Read the golden text again. Raises `BadBundle` when other symbols come out."""
    reading = reader.read(str(golden["text"]), {})
    ids = alphabet.encode(joined(reading.words))
    if ids.tolist() != golden["ids"].tolist():
        raise BadBundle(ref, detail="the golden text is read with other symbols here than at its export")


def speak_in_stretches(voice: Voice, ids: NDArray[np.int64], num_frames: int) -> NDArray[np.float32]:
    """Return the samples [n] of ids [m] without noise, computed `num_frames` frames at a time."""
    speech = voice.begin(ids, GOLDEN_MANNER, NoNoise())
    starts = range(0, speech.num_frames, num_frames)
    pieces = [speech.render(start, min(start + num_frames, speech.num_frames)) for start in starts]
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
