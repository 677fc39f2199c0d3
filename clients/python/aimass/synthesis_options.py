"""How text is to be spoken. Knows no call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aimass.recognition_options import AudioEncoding
from aimass.speech.v1 import audio_pb2
from aimass.speech.v1 import synthesis_service_pb2 as pb
from aimass.wire import refusing, set_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesisOptions:
    """How to speak. What is None takes the server's default."""

    rate: float | None = None
    """1 is the voice's own, 2 twice as fast; 0.25 to 4."""
    volume_db: float | None = None
    """Change of loudness, -96 to 16."""
    encoding: AudioEncoding = AudioEncoding.WAV
    sample_rate_hz: int | None = None
    """8000 to 48000; None takes the voice's own, or the next higher one that the encoding has."""
    seed: int | None = None
    """The same seed, voice and request give the same audio."""
    pronunciations: Mapping[str, str] = field(default_factory=dict)
    """IPA of words of the text."""
    word_timings: bool = False
    phoneme_timings: bool = False

    def message(self) -> pb.SynthesisOptions:
        """Return the message of these values."""
        number = audio_pb2.AudioEncoding.Value(f"AUDIO_ENCODING_{self.encoding.value.upper()}")
        message = pb.SynthesisOptions(
            encoding=number, word_timings=self.word_timings, phoneme_timings=self.phoneme_timings
        )
        set_fields(message, self, ("rate", "volume_db", "sample_rate_hz", "seed"), path="options.")
        for word, ipa in self.pronunciations.items():
            with refusing("options.pronunciations"):
                message.pronunciations.add(word=word, ipa=ipa)
        return message
