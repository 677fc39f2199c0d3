"""Audio to probabilities of speech: one frame of each of many streams at once, or many frames of one.

Knows the detector's graphs, and nothing of spans, requests or time. One thread at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from aimass_serving.session import Session
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class DetectorShape:
    """How a detector cuts audio, and what a stream carries from frame to frame."""

    sample_rate_hz: int = 16_000
    frame_samples: int = 512
    context_samples: int = 64
    """Samples of the frame before that stand in front of each frame."""
    state_size: int = 128


class FrameCutter:
    """Cuts one stream of samples into a detector's frames. Keeps what is not a whole frame yet."""

    def __init__(self, shape: DetectorShape) -> None:
        self._shape = shape
        self._held = np.zeros(shape.context_samples, np.float32)

    def feed(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the frames [n, context + frame] that are complete with these samples; n may be 0."""
        held = np.concatenate([self._held, samples])
        step, width = self._shape.frame_samples, self._shape.context_samples + self._shape.frame_samples
        count = max(0, (len(held) - self._shape.context_samples) // step)
        self._held = held[count * step :].copy()
        if not count:
            return np.zeros((0, width), np.float32)
        return np.lib.stride_tricks.sliding_window_view(held, width)[::step][:count].copy()

    def finish(self) -> NDArray[np.float32]:
        """Return the last frame, filled up with silence; none when nothing is held."""
        rest = len(self._held) - self._shape.context_samples
        return self.feed(np.zeros((self._shape.frame_samples - rest) * (rest > 0), np.float32))

    def silence(self) -> None:
        """Replace what is held by silence: frames go on where they were, and hear nothing of before."""
        self._held = np.zeros_like(self._held)


class VoiceActivityRunner:
    """Runs a detector's two graphs, which compute the same."""

    def __init__(self, frame_session: Session, sequence_session: Session, shape: DetectorShape) -> None:
        self._frames = frame_session
        self._sequence = sequence_session
        self.shape = shape
        self._rate = np.array(shape.sample_rate_hz, np.int64)

    @property
    def execution_provider(self) -> str:
        """ONNX Runtime execution provider that runs the graphs."""
        return self._frames.execution_provider

    def new_state(self) -> NDArray[np.float32]:
        """Return the state [2, state_size] of a stream that begins."""
        return np.zeros((2, self.shape.state_size), np.float32)

    def step(
        self, frames: NDArray[np.float32], states: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the probabilities [streams] of one frame of each stream, and the new states.

        `frames` is [streams, context + frame], `states` [2, streams, state_size].
        """
        outputs = self._frames.run({"input": frames, "state": states, "sr": self._rate})
        return outputs["output"][:, 0], outputs["stateN"]

    def sequence(
        self, frames: NDArray[np.float32], state: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the probabilities [n] of consecutive frames [n, context + frame], and the new state."""
        hidden, cell = state[:, None, None, :]
        outputs = self._sequence.run({"input": frames, "h": hidden, "c": cell})
        return outputs["speech_probs"], np.stack([outputs["hn"][0, 0], outputs["cn"][0, 0]])
