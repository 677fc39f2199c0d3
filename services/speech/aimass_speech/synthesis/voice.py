"""What a voice can do: take symbols' ids, tell how long each lasts, and compute any stretch of their audio.

Knows no text, no graph and no request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from aimass_speech.synthesis.noise import Noise

MAX_SPEECH_S = 240.0
"""A phrase that would last longer than this is a model's failure, not speech."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How a phrase is spoken."""

    rate: float = 1.0
    """1 is the voice's own; 2 is twice as fast."""
    noise_scale: float | None = None
    """Spread of the noise in what is spoken; None takes the voice's own."""
    duration_noise_scale: float | None = None
    """Spread of the noise in the durations; None takes the voice's own."""


class Speech(Protocol):
    """One phrase, ready to be computed in stretches. Not for two threads at once."""

    @property
    def durations(self) -> NDArray[np.int64]:
        """Frames of each id, [ids]."""

    @property
    def num_frames(self) -> int:
        """Frames of the phrase."""

    def render(self, start: int, end: int) -> NDArray[np.float32]:
        """Return the samples [(end - start) * hop] of frames `start` to `end`.

        They do not depend on how the phrase is cut: the stretches, joined, are the whole to rounding.
        """


class Voice(Protocol):
    """A voice whose graphs are open. Not for two threads at once."""

    @property
    def sample_rate_hz(self) -> int:
        """Samples a second."""

    @property
    def hop_samples(self) -> int:
        """Samples of one frame."""

    @property
    def execution_provider(self) -> str:
        """ONNX Runtime execution provider that runs the graphs."""

    def begin(self, ids: NDArray[np.int64], manner: Manner, noise: Noise) -> Speech:
        """Read a phrase's ids [n] and draw all its noise. Raises `UnspeakablePhrase`."""


class UnspeakablePhrase(Exception):
    """The graph gave durations that are not numbers, or that have no end."""


def checked_durations(durations: NDArray[np.float32], *, frame_s: float) -> NDArray[np.int64]:
    """Return durations in frames as whole numbers. Raises `UnspeakablePhrase`."""
    if not np.isfinite(durations).all() or durations.min(initial=0) < 0:
        raise UnspeakablePhrase("durations that are not numbers of frames")
    if float(durations.sum()) * frame_s > MAX_SPEECH_S:
        raise UnspeakablePhrase(f"a phrase of more than {MAX_SPEECH_S:g} s")
    return durations.astype(np.int64)
