"""Settings of the speech service: `AIMASS_SPEECH_<FIELD>`. Knows no model and no request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SpeechConfig:
    """What the speech service takes, and how it shares the machine."""

    max_audio_s: float = 14_400.0
    """Longest recording of one call, in seconds."""
    max_queue_frames: int = 1_000_000
    """Frames that may wait for voice activity detection; more are refused. A frame is 32 ms."""
    max_detector_batch: int = 64
    """Streams whose frames are computed in one run."""
