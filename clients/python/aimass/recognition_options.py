"""How audio is packed and how it is to be recognised. Knows no call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from aimass.speech.v1 import audio_pb2
from aimass.speech.v1 import recognition_service_pb2 as pb
from aimass.wire import refusing, set_fields


class AudioEncoding(StrEnum):
    """A container or a raw sample format."""

    AUTO = "unspecified"
    """Recognised from the first bytes; raw samples cannot be."""
    WAV = "wav"
    PCM_S16LE = "pcm_s16le"
    MULAW = "mulaw"
    ALAW = "alaw"
    FLAC = "flac"
    OGG_OPUS = "ogg_opus"
    MP3 = "mp3"


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioFormat:
    """How audio is packed."""

    encoding: AudioEncoding = AudioEncoding.AUTO
    sample_rate_hz: int | None = None
    """Required for raw samples."""
    num_channels: int | None = None

    def message(self) -> audio_pb2.AudioFormat:
        """Return the message of these values."""
        number = audio_pb2.AudioEncoding.Value(f"AUDIO_ENCODING_{self.encoding.value.upper()}")
        message = audio_pb2.AudioFormat(encoding=number)
        set_fields(message, self, ("sample_rate_hz", "num_channels"), path="format.")
        return message


@dataclass(frozen=True, slots=True, kw_only=True)
class RecognitionOptions:
    """How to recognise. What is None takes the server's default."""

    language: str | None = None
    """BCP 47 primary tag such as `en`; None lets the model find out."""
    translate: bool = False
    """Write English, whatever is spoken. Multilingual models only."""
    beam_size: int | None = None
    word_times: bool = False
    max_alternatives: int | None = None
    hot_phrases: Mapping[str, float | None] = field(default_factory=dict)
    """Phrases to favour, each with its boost, or None for the default."""
    phrases: Sequence[str] = ()
    """Answer one of these phrases, or none."""
    phrase_threshold: float | None = None
    """Lowest score of a phrase that is answered."""
    best_of: int | None = None
    """Outputs drawn where the most probable text fails its checks."""
    initial_prompt: str | None = None
    """Text that came before, as context."""
    voice_activity_filter: bool | None = None
    """Skip what is not speech."""

    def message(self) -> pb.RecognitionOptions:
        """Return the message of these values."""
        message = pb.RecognitionOptions(word_times=self.word_times)
        if self.translate:
            message.task = pb.RECOGNITION_TASK_TRANSLATE
        names = (
            "language",
            "beam_size",
            "max_alternatives",
            "phrases",
            "phrase_threshold",
            "best_of",
            "initial_prompt",
            "voice_activity_filter",
        )
        set_fields(message, self, names, path="options.")
        for phrase, boost in self.hot_phrases.items():
            with refusing("options.hot_phrases"):
                message.hot_phrases.add(phrase=phrase, boost=boost)
        return message
