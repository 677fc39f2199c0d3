"""Synthesis's messages, to and from the voices' own words."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping

from aimass.speech.v1 import synthesis_service_pb2 as pb
from aimass_serving.errors import InvalidField
from aimass_serving.registry import HostedEngine, ServedModel

from aimass_speech.served import engine_of
from aimass_speech.synthesis.engine import SynthesisEngine
from aimass_speech.synthesis.script import Phonemes, Piece, Spoken, SynthesisOptions, checked_text
from aimass_speech.synthesis.sentences import sentences_of
from aimass_speech.synthesis.speaking import Timing, TimingKind
from aimass_speech.synthesis.ssml import parse_ssml
from aimass_speech.wire import duration_of_samples

_SEED_BITS = 53
"""So that a seed of the server's also fits the numbers of JavaScript."""
_KINDS: Mapping[TimingKind, pb.Timing.Kind.ValueType] = {
    TimingKind.WORD: pb.Timing.KIND_WORD,
    TimingKind.PHONEME: pb.Timing.KIND_PHONEME,
    TimingKind.MARK: pb.Timing.KIND_MARK,
}


def synthesis_options(options: pb.SynthesisOptions, *, field: str) -> SynthesisOptions:
    """Return how to speak. Raises `InvalidField`."""
    default = SynthesisOptions()
    return SynthesisOptions(
        rate=_number(options, "rate", default.rate, field),
        volume_db=_number(options, "volume_db", default.volume_db, field),
        sample_rate_hz=_sample_rate(options, field),
        seed=options.seed if options.HasField("seed") else None,
        pronunciations=_pronunciations(options, field),
        has_words=options.word_timings,
        has_phonemes=options.phoneme_timings,
        field_name=field,
    )


def _number(options: pb.SynthesisOptions, name: str, default: float, field: str) -> float:
    if not options.HasField(name):  # type: ignore[arg-type]  # a field by name
        return default
    value = float(getattr(options, name))
    if math.isnan(value):
        raise InvalidField(f"{field}.{name}", expected="a number", got=value)
    return value


def _sample_rate(options: pb.SynthesisOptions, field: str) -> int:
    if options.HasField("sample_rate_hz") and not options.sample_rate_hz:
        raise InvalidField(f"{field}.sample_rate_hz", expected="8000 to 48000", got=0)
    return options.sample_rate_hz


def _pronunciations(options: pb.SynthesisOptions, field: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for place, item in enumerate(options.pronunciations):
        if item.word.lower() in given:
            name = f"{field}.pronunciations[{place}].word"
            raise InvalidField(name, expected="each word once", got=item.word)
        given[item.word.lower()] = item.ipa
    return given


def seed_of(options: SynthesisOptions) -> int:
    """Return the seed asked for, or a new one."""
    return secrets.randbits(_SEED_BITS) if options.seed is None else options.seed


def script_of(request: pb.SynthesizeRequest, engine: SynthesisEngine) -> list[Piece]:
    """Return what a request wants spoken. Raises `InvalidField`."""
    kind = request.WhichOneof("input")
    if kind is None:
        raise InvalidField("input", expected="one of: text, ssml, phonemes", got="none")
    content = checked_text(getattr(request, kind), field=kind)
    if kind == "text":
        return [Spoken(sentence) for sentence in sentences_of(content)]
    if kind == "ssml":
        pieces = parse_ssml(content)
        if any(isinstance(piece, Phonemes) for piece in pieces):
            engine.check_phonemes("ssml")
        return pieces
    engine.check_phonemes(kind)
    return [Phonemes(sentence) for sentence in sentences_of(content)]


def timing_pb(timing: Timing, *, rate_hz: int) -> pb.Timing:
    """Return a timing as it travels."""
    return pb.Timing(
        kind=_KINDS[timing.kind],
        text=timing.text,
        start=duration_of_samples(timing.start, rate_hz),
        end=duration_of_samples(timing.end, rate_hz),
    )


def speaks(engine: SynthesisEngine, language: str) -> bool:
    """Whether a voice speaks a language, or a variety of it."""
    asked = language.lower()
    spoken = [tag.lower() for tag in engine.spec.languages]
    return not asked or any(tag == asked or tag.startswith(f"{asked}-") for tag in spoken)


def voice_pb(served: ServedModel[HostedEngine]) -> pb.Voice:
    """Return a voice as it travels."""
    engine = engine_of(served, SynthesisEngine)
    assert served.bundle is not None, "a model that is ready has been read"
    return pb.Voice(
        name=served.name,
        version=served.version,
        languages=engine.spec.languages,
        sample_rate_hz=engine.parts.voice.sample_rate_hz,
        licence=served.bundle.manifest.licence,
        phonemes=sorted(symbol for symbol in engine.parts.alphabet.ids if symbol.strip()),
        takes_phonemes=engine.parts.reader.takes_phonemes,
    )
