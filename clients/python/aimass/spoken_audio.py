"""What a voice said. Plain values; knows no call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from aimass.recognition_options import AudioEncoding
from aimass.speech.v1 import audio_pb2
from aimass.speech.v1 import synthesis_service_pb2 as pb
from aimass.transcripts import seconds_of
from aimass.wire import enum_word


class TimingKind(StrEnum):
    """What a timing is about."""

    UNSPECIFIED = "unspecified"
    WORD = "word"
    PHONEME = "phoneme"
    MARK = "mark"


@dataclass(frozen=True, slots=True)
class SpeechTiming:
    """When something is spoken, in seconds from the start of the audio."""

    kind: TimingKind
    text: str
    """The word as it is spoken, the phoneme, or the name of the mark."""
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class SpeechInfo:
    """How the audio is packed."""

    request_id: str
    encoding: AudioEncoding
    sample_rate_hz: int
    seed: int
    """Asked for, or chosen by the server."""


@dataclass(frozen=True, slots=True)
class SpeechChunk:
    """The next bytes of the audio; all of them, joined, are one stream."""

    data: bytes
    timings: Sequence[SpeechTiming] = ()


@dataclass(frozen=True, slots=True)
class SpeechEnd:
    """What is known when all is spoken."""

    audio_s: float
    unpronounceable: Sequence[str]
    """Symbols that the voice cannot speak and left out."""
    first_audio_ms: float
    """From the first text to the first audio, on the server."""
    total_ms: float


@dataclass(frozen=True, slots=True)
class SpokenAudio:
    """A whole audio."""

    data: bytes
    info: SpeechInfo
    timings: Sequence[SpeechTiming]
    end: SpeechEnd


@dataclass(frozen=True, slots=True)
class Voice:
    """One voice of a service."""

    name: str
    version: str
    languages: Sequence[str]
    sample_rate_hz: int
    licence: str
    phonemes: Sequence[str]
    """Symbols it can speak."""
    takes_phonemes: bool


def info_of(message: pb.SynthesisInfo) -> SpeechInfo:
    """Return the values of a message."""
    word = enum_word(audio_pb2.AudioEncoding, "AUDIO_ENCODING_", message.encoding)
    return SpeechInfo(message.request_id, AudioEncoding(word), message.sample_rate_hz, message.seed)


def chunk_of(message: pb.AudioChunk) -> SpeechChunk:
    """Return the values of a message."""
    return SpeechChunk(message.data, tuple(_timing_of(timing) for timing in message.timings))


def _timing_of(timing: pb.Timing) -> SpeechTiming:
    kind = TimingKind(enum_word(pb.Timing.Kind, "KIND_", timing.kind))
    return SpeechTiming(kind, timing.text, seconds_of(timing.start), seconds_of(timing.end))


def end_of(message: pb.SynthesisEnd) -> SpeechEnd:
    """Return the values of a message."""
    return SpeechEnd(
        seconds_of(message.audio_duration),
        tuple(message.unpronounceable),
        message.first_audio_ms,
        message.total_ms,
    )


def voice_of(message: pb.Voice) -> Voice:
    """Return the values of a message."""
    return Voice(
        message.name,
        message.version,
        tuple(message.languages),
        message.sample_rate_hz,
        message.licence,
        tuple(message.phonemes),
        message.takes_phonemes,
    )
