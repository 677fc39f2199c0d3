"""A voice of one graph that gives each frame's spectrum in parts; the parts become audio here.

The spectrum is a pulse train at the pitch, filtered, plus shaped noise, plus a part with phases of its own
(`hibari.dsp`). A sample depends on the two frames before and behind it, so any stretch can be computed alone.
Must not know requests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from aimass_serving.session import Session
from hibari import dsp
from numpy.typing import NDArray

from aimass_speech.synthesis.noise import Noise
from aimass_speech.synthesis.voice import Manner, checked_durations

_MARGIN = dsp.N_FFT // dsp.HOP // 2


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The parts of a phrase's spectrum, [bins, frames] each, as `hibari.dsp` names them; `f0` is [frames]."""

    lh: NDArray[np.float32]
    theta: NDArray[np.float32]
    ln: NDArray[np.float32]
    lr: NDArray[np.float32]
    phi: NDArray[np.float32]
    f0: NDArray[np.float32]


class SpectralVoice:
    """A voice of one open graph."""

    sample_rate_hz: int = dsp.SR
    hop_samples: int = dsp.HOP

    def __init__(self, text: Session) -> None:
        self._text = text

    @property
    def execution_provider(self) -> str:
        return self._text.execution_provider

    def begin(self, ids: NDArray[np.int64], manner: Manner, noise: Noise) -> SpectralSpeech:
        given = self._text.run({"ids": ids[None], "speed": np.array([manner.rate], np.float32)})
        frame_s = self.hop_samples / self.sample_rate_hz
        durations = checked_durations(given["durations"].reshape(-1).astype(np.float32), frame_s=frame_s)
        spectrum = Spectrum(*(given[name][0] for name in ("lh", "theta", "ln", "lr", "phi", "f0")))
        return SpectralSpeech(spectrum, durations, noise)


class SpectralSpeech:
    """A phrase of a spectral voice: its spectrum, its pulses and its noise."""

    def __init__(self, spectrum: Spectrum, durations: NDArray[np.int64], noise: Noise) -> None:
        self._spectrum = spectrum
        self.durations = durations
        self.num_frames = len(spectrum.f0)
        self._pulses = dsp.stft(dsp.pulses(spectrum.f0), self.num_frames)  # [bins, frames]
        drawn = noise.draw(spectrum.lh.shape[0], 2 * self.num_frames)
        self._noise = drawn.view(np.complex64)  # [bins, frames]

    def render(self, start: int, end: int) -> NDArray[np.float32]:
        before, after = max(0, start - _MARGIN), min(self.num_frames, end + _MARGIN)
        audio: NDArray[np.float32] = dsp.ola(self._stretch(slice(before, after)))
        return audio[(start - before) * dsp.HOP : (end - before) * dsp.HOP]

    def _stretch(self, frames: slice) -> NDArray[np.complex64]:
        """Return the sum of the three parts, [bins, n]."""
        parts = self._spectrum
        turned = _polar(dsp.ex(parts.lh[:, frames]), np.float32(np.pi) * np.tanh(parts.theta[:, frames]))
        free = _polar(dsp.ex(parts.lr[:, frames]), parts.phi[:, frames])
        noise = self._noise[:, frames] * dsp.ex(parts.ln[:, frames])
        summed: NDArray[np.complex64] = self._pulses[:, frames] * turned + noise + free
        return summed


def _polar(length: NDArray[np.float32], angle: NDArray[np.float32]) -> NDArray[np.complex64]:
    turned = np.empty(length.shape, np.complex64)
    turned.real, turned.imag = length * np.cos(angle), length * np.sin(angle)
    return turned
