"""What the service must know of a Whisper model: its spectrogram, its special tokens. Knows no graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aimass.model.v1.manifest_pb2 import SpeechRecognitionSpec

from aimass_speech.features import MelShape


@dataclass(frozen=True, slots=True)
class WhisperSpec:
    """A Whisper model in the recogniser's own words."""

    mel: MelShape
    window_samples: int
    """Samples of a full window; the model was trained on windows padded to it with silence."""
    frame_samples: int
    """Samples of one position of the encoder's output."""
    max_positions: int
    """Tokens that fit the decoder, prompt and output together."""
    start_of_transcript: int
    end_of_text: int
    start_of_previous: int
    no_speech: int
    no_timestamps: int
    timestamp_begin: int
    timestamp_step_samples: int
    """Samples between two timestamp tokens."""
    languages: Mapping[str, int]
    """Token of each language by its code; empty for a model of English only."""
    transcribe: int | None = None
    translate: int | None = None
    suppressed: tuple[int, ...] = ()
    """Tokens never chosen."""
    suppressed_first: tuple[int, ...] = ()
    """Tokens not chosen as the first of the text."""
    num_alignment_heads: int = 0

    @property
    def is_multilingual(self) -> bool:
        """Whether the model expects a language and a task after the first token."""
        return bool(self.languages)

    @property
    def num_special(self) -> int:
        """Tokens from this one on are not text."""
        return self.end_of_text

    def start_ids(self, language: str, *, is_translation: bool) -> tuple[int, ...]:
        """Return the tokens an output begins with."""
        if not self.is_multilingual:
            return (self.start_of_transcript,)
        task = self.translate if is_translation else self.transcribe
        assert task is not None, "a multilingual model knows both tasks"
        return (self.start_of_transcript, self.languages[language], task)


def whisper_spec(spec: SpeechRecognitionSpec, *, max_positions: int) -> WhisperSpec:
    """Return what the manifest says of a model."""
    rate = spec.sample_rate_hz
    return WhisperSpec(
        mel=MelShape(spec.num_mel_bins, rate, spec.fft_samples, spec.hop_samples),
        window_samples=spec.window_s * rate,
        frame_samples=spec.hop_samples * spec.mel_columns_per_frame,
        max_positions=max_positions,
        start_of_transcript=spec.start_of_transcript_id,
        end_of_text=spec.end_of_text_id,
        start_of_previous=spec.start_of_previous_id,
        no_speech=spec.no_speech_id,
        no_timestamps=spec.no_timestamps_id,
        timestamp_begin=spec.timestamp_begin_id,
        timestamp_step_samples=spec.timestamp_step_ms * rate // 1000,
        languages=dict(spec.language_ids) if spec.is_multilingual else {},
        transcribe=spec.transcribe_id if spec.HasField("transcribe_id") else None,
        translate=spec.translate_id if spec.HasField("translate_id") else None,
        suppressed=tuple(spec.suppress_ids),
        suppressed_first=tuple(spec.begin_suppress_ids),
        num_alignment_heads=len(spec.alignment_heads),
    )
