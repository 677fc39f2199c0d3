"""A player at the end of a stream of audio: it starts with the first chunk, and notes when it runs dry.

Pure; times are arguments. Knows no voice and no call.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Playback:
    """One stream's player. Owned by the thread that reads the stream."""

    num_underruns: int = 0
    """Chunks that came after everything before them had been played."""
    least_margin_s: float = float("inf")
    """Least time between a later chunk's coming and its being needed; below 0 it came late."""
    _dry_at_s: float | None = None
    """When all that has come will have been played."""

    def take(self, audio_s: float, *, now_s: float) -> None:
        """Take a chunk of so many seconds that came at `now_s`. A player that ran dry goes on from here."""
        if self._dry_at_s is not None:
            margin_s = self._dry_at_s - now_s
            self.least_margin_s = min(self.least_margin_s, margin_s)
            self.num_underruns += margin_s < 0
        self._dry_at_s = max(now_s, self._dry_at_s or now_s) + audio_s
