"""A VITS voice in three graphs: symbols to distributions and durations, draws to frames, frames to audio.

The graphs are cut where noise enters, so that the noise is drawn here and a seed pins the audio. What follows
the draw is convolutions only: a stretch of frames needs no more than a margin on both sides, so flow and
vocoder are run stretch by stretch. Must not know requests.

Source: Kim et al. 2021, "Conditional Variational Autoencoder with Adversarial Learning for End-to-End
Text-to-Speech".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from aimass_serving.session import Session
from numpy.typing import NDArray

from aimass_speech.synthesis.noise import Noise
from aimass_speech.synthesis.voice import Manner, checked_durations

FLOW_BLOCK_FRAMES = 256
"""Frames that the flow is run on at once, after the first stretch: each run also costs its margins."""


@dataclass(frozen=True, slots=True)
class VitsShape:
    """What a VITS voice's graphs take and give."""

    sample_rate_hz: int
    hop_samples: int
    flow_margin: int
    """Frames on both sides that the flow's result depends on."""
    vocoder_margin: int
    """Frames on both sides that the vocoder's result depends on."""
    noise_scale: float
    duration_noise_scale: float


class VitsVoice:
    """A voice of three open graphs."""

    def __init__(self, text: Session, flow: Session, vocoder: Session, shape: VitsShape) -> None:
        self._text, self._flow, self._vocoder = text, flow, vocoder
        self.shape = shape

    @property
    def sample_rate_hz(self) -> int:
        return self.shape.sample_rate_hz

    @property
    def hop_samples(self) -> int:
        return self.shape.hop_samples

    @property
    def execution_provider(self) -> str:
        return self._vocoder.execution_provider

    def begin(self, ids: NDArray[np.int64], manner: Manner, noise: Noise) -> VitsSpeech:
        means, log_scales, durations = self.distributions(ids, manner, noise.draw(2, len(ids)))
        frames = np.repeat(np.arange(len(ids)), durations)
        noise_scale = _or(manner.noise_scale, self.shape.noise_scale)
        latent = means[:, frames]  # [channels, frames]
        if noise_scale:
            latent = latent + noise.draw(*latent.shape) * np.exp(log_scales[:, frames]) * np.float32(
                noise_scale
            )
        return VitsSpeech(self, latent, durations)

    def distributions(
        self, ids: NDArray[np.int64], manner: Manner, duration_noise: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """Return means and logarithms of the spreads, [channels, n] each, and the durations [n] of ids [n].

        `duration_noise` [2, n] is what the durations are drawn with.
        """
        scales = [1 / manner.rate, _or(manner.duration_noise_scale, self.shape.duration_noise_scale)]
        given = self._text.run(
            {"ids": ids[None], "scales": np.array(scales, np.float32), "duration_noise": duration_noise[None]}
        )
        frame_s = self.hop_samples / self.sample_rate_hz
        durations = checked_durations(given["durations"].reshape(-1), frame_s=frame_s)
        return given["means"][0], given["log_scales"][0], durations

    def flow(self, latent: NDArray[np.float32], start: int, end: int) -> NDArray[np.float32]:
        """Return latent frames `start` to `end` [channels, n] of draws [channels, frames]."""
        before, after = _window(start, end, margin=self.shape.flow_margin, num_frames=latent.shape[1])
        piece = np.ascontiguousarray(latent[None, :, before:after])
        mask = np.ones((1, 1, after - before), np.float32)
        flowed: NDArray[np.float32] = self._flow.run({"draws": piece, "mask": mask})["frames"][0]
        return flowed[:, start - before : end - before]

    def vocode(self, frames: NDArray[np.float32], *, skip: int, count: int) -> NDArray[np.float32]:
        """Return the samples of `count` frames behind the first `skip` of latent frames [channels, n]."""
        given = self._vocoder.run({"frames": np.ascontiguousarray(frames[None])})
        audio: NDArray[np.float32] = given["audio"].reshape(-1)
        return audio[skip * self.hop_samples : (skip + count) * self.hop_samples]


class VitsSpeech:
    """A phrase of a VITS voice: its draws, and the latent frames computed so far."""

    def __init__(self, voice: VitsVoice, latent: NDArray[np.float32], durations: NDArray[np.int64]) -> None:
        self._voice = voice
        self._latent = latent
        self.durations = durations
        self._frames = np.empty_like(latent)  # [channels, frames], valid up to _num_flowed
        self._num_flowed = 0

    @property
    def num_frames(self) -> int:
        return int(self._latent.shape[1])

    def render(self, start: int, end: int) -> NDArray[np.float32]:
        margin = self._voice.shape.vocoder_margin
        before, after = _window(start, end, margin=margin, num_frames=self.num_frames)
        self._flow_up_to(after)
        return self._voice.vocode(self._frames[:, before:after], skip=start - before, count=end - start)

    def _flow_up_to(self, end: int) -> None:
        """Compute latent frames up to `end`; after the first stretch, ahead by whole blocks."""
        begin = self._num_flowed
        if begin >= end:
            return
        if begin:
            end = min(self.num_frames, max(end, begin + FLOW_BLOCK_FRAMES))
        self._frames[:, begin:end] = self._voice.flow(self._latent, begin, end)
        self._num_flowed = end


def _window(start: int, end: int, *, margin: int, num_frames: int) -> tuple[int, int]:
    return max(0, start - margin), min(num_frames, end + margin)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
