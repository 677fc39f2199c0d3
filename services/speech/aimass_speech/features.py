"""Samples to the log-mel spectrogram that Whisper reads. Knows no model beyond its spectrogram's shape.

Source: OpenAI's whisper/audio.py; equal to transformers' WhisperFeatureExtractor to 1e-4. Only columns
that see audio are computed: the others are known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

_MIN_POWER = 1e-10
_RANGE = 8.0
"""Orders of magnitude below the loudest that are kept."""


@dataclass(frozen=True, slots=True)
class MelShape:
    """The sizes of a spectrogram."""

    num_mel_bins: int = 80
    sample_rate_hz: int = 16_000
    fft_samples: int = 400
    hop_samples: int = 160


class Behind(Enum):
    """What a spectrogram holds behind the end of its audio."""

    SILENCE = "silence"
    """The spectrogram of silence, as transformers' extractor gives."""
    ZEROS = "zeros"
    """Zeros, as in the last window of a recording by `transcribe` of OpenAI's whisper, and faster-whisper."""


class LogMel:
    """Computes spectrograms of one shape. Holds constants only: safe to share between threads."""

    def __init__(self, shape: MelShape) -> None:
        self._shape = shape
        positions = np.arange(shape.fft_samples, dtype=np.float64)
        self._window = (0.5 - 0.5 * np.cos(2 * np.pi * positions / shape.fft_samples)).astype(np.float32)
        self._filters = mel_filters(shape)  # [fft_samples // 2 + 1, num_mel_bins]

    def __call__(
        self, samples: NDArray[np.float32], *, num_samples: int, behind: Behind = Behind.SILENCE
    ) -> NDArray[np.float32]:
        """Return the spectrogram [num_mel_bins, num_samples // hop] of samples [n] in so long a window."""
        num_columns = num_samples // self._shape.hop_samples
        heard = self._heard(samples, num_samples=num_samples, behind=behind)
        lowest = heard.max() - _RANGE
        if behind is Behind.ZEROS:
            heard, rest = heard[: max(1, len(samples) // self._shape.hop_samples)], 0.0
        else:
            rest = float(_scaled(np.maximum(heard.dtype.type(math.log10(_MIN_POWER)), lowest)))
        mel = np.full((self._shape.num_mel_bins, num_columns), rest, np.float32)
        mel[:, : len(heard)] = _scaled(np.maximum(heard, lowest)).T
        return mel

    def _heard(
        self, samples: NDArray[np.float32], *, num_samples: int, behind: Behind
    ) -> NDArray[np.float32]:
        """Return the logarithms of the columns [columns, num_mel_bins] that see audio, silence behind it.

        Audio is filled up before the transform, as the model was trained: the columns at its end see both.
        A full window is mirrored at its ends; a recording goes on behind it, if with silence.
        """
        half, hop = self._shape.fft_samples // 2, self._shape.hop_samples
        padded = np.zeros(num_samples + 2 * half, np.float32)
        padded[half : half + len(samples)] = samples
        padded[:half] = padded[half + 1 : 2 * half + 1][::-1]
        if behind is Behind.SILENCE:
            padded[-half:] = padded[-2 * half - 1 : -half - 1][::-1]
        frames = np.lib.stride_tricks.sliding_window_view(padded, self._shape.fft_samples)[::hop]
        num_heard = min(num_samples // hop, math.ceil((len(samples) + half) / hop))
        spectrum = np.fft.rfft(frames[:num_heard] * self._window, axis=1)  # [columns, fft_samples // 2 + 1]
        power = spectrum.real**2 + spectrum.imag**2
        heard: NDArray[np.float32] = np.log10(
            np.maximum(power.astype(np.float32) @ self._filters, _MIN_POWER)
        )
        return heard


def _scaled(log_mel: NDArray[np.float32]) -> NDArray[np.float32]:
    scaled: NDArray[np.float32] = (log_mel + np.float32(4)) / np.float32(4)
    return scaled


def mel_filters(shape: MelShape) -> NDArray[np.float32]:
    """Return the triangular filters of Slaney's mel scale, each of unit area: [frequencies, num_mel_bins]."""
    nyquist = shape.sample_rate_hz / 2
    frequencies = np.linspace(0, nyquist, shape.fft_samples // 2 + 1)
    edges = _hz_of_mel(np.linspace(0, _mel_of_hz(nyquist), shape.num_mel_bins + 2))
    widths = np.diff(edges)
    slopes = edges[None, :] - frequencies[:, None]  # [frequencies, bins + 2]
    rising, falling = -slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]
    triangles = np.maximum(0, np.minimum(rising, falling))
    filters: NDArray[np.float32] = (triangles * (2 / (edges[2:] - edges[:-2]))).astype(np.float32)
    return filters


_LINEAR_HZ, _LINEAR_MELS = 1000.0, 15.0
_LOG_STEP = math.log(6.4) / 27


def _mel_of_hz(hz: float) -> float:
    if hz < _LINEAR_HZ:
        return 3 * hz / 200
    return _LINEAR_MELS + math.log(hz / _LINEAR_HZ) / _LOG_STEP


def _hz_of_mel(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    linear = 200 * mels / 3
    return np.where(mels < _LINEAR_MELS, linear, _LINEAR_HZ * np.exp(_LOG_STEP * (mels - _LINEAR_MELS)))
