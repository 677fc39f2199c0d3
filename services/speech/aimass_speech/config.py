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
    max_slots: int = 16
    """Windows that a recogniser decodes together; each takes some 20 MB with the smallest model."""
    max_queue_windows: int = 256
    """Windows of recordings that may wait for a decoder; more are refused."""
    file_windows: int = 4
    """Windows of one recording that are in work at once."""
    live_window_margin_s: float = 2.0
    """An utterance of a live stream is filled up with at least so much silence, not to a full window: a final
    then costs less than half. 0 takes full windows. Measured: `docs/decisions/018-recognition.md`."""
    live_window_floor_s: float = 10.0
    """No window is shorter than this."""
    max_live_streams: int = 256
    """Streams of recognition at once; more are refused."""
    max_early_windows: int = 2
    """Windows of live streams in work above which interims, and finals begun in a pause, are left out."""
    max_synthesis_streams: int = 64
    """Requests of synthesis at once on one voice; more are refused."""
    max_synthesis_ahead: int = 16
    """Chunks of a request that wait for a slow reader; then others are computed instead."""
    max_synthesis_idle_s: float = 120.0
    """A stream of text that sends nothing for so long is ended."""
