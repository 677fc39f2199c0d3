"""Speech with its exact words: recordings of LibriVox, and sentences that a voice reads (synthetic).

Made or fetched once and kept in the user's cache. The choice is the same in every run. Knows no recogniser.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from aimass_exporters.sources.cache import cache_folder
from numpy.typing import NDArray

from bench.texts import plain_sentences

RATE_HZ = 16_000
LIBRIVOX, SYNTHETIC = "librivox", "synthetic"
DEBIAN_PACKAGE = "pocketsphinx-testdata"
_TRANSCRIPT = re.compile(r"(?:<s> )?(?P<words>.*?)(?: </s>)? \((?P<name>[\w.-]+)\)")
_NUM_WORDS = range(5, 17)
_MARGIN_S = 0.3
"""Silence around a synthetic sentence."""


@dataclass(frozen=True, slots=True)
class Clip:
    """Audio and what is said in it."""

    source: str
    """Where it comes from: `LIBRIVOX` or `SYNTHETIC`."""
    name: str
    samples: NDArray[np.float32]  # [n] at 16 kHz
    words: str

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.samples) / RATE_HZ


def clips(num_synthetic: int) -> list[Clip]:
    """Return every recording, and so many synthetic sentences."""
    return [*librivox(), *synthetic(num_synthetic)]


@cache
def librivox() -> list[Clip]:
    """Return five recordings of one reader, 25 s in all, from a Debian package."""
    folder = _debian_folder() / "usr/share/pocketsphinx/test/data/librivox"
    found = []
    for line in (folder / "transcription").read_text().splitlines():
        if match := _TRANSCRIPT.fullmatch(line.strip()):
            samples = _read(folder / f"{match['name']}.wav")
            found.append(Clip(LIBRIVOX, match["name"], samples, match["words"]))
    return found


def synthetic(count: int) -> list[Clip]:
    """Return sentences of film reviews as the voice of hibari reads them."""
    folder = cache_folder() / "bench" / "speech-hibari"
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for words in plain_sentences(count, num_words=_NUM_WORDS):
        file = folder / f"{hashlib.sha256(words.encode()).hexdigest()[:16]}.flac"
        if not file.exists():
            _speak(words, file)
        found.append(Clip(SYNTHETIC, file.stem, _read(file), words))
    return found


def joined(parts: list[Clip], *, gap_s: float) -> NDArray[np.float32]:
    """Return clips one after the other with silence behind each."""
    gap = np.zeros(int(gap_s * RATE_HZ), np.float32)
    return np.concatenate([piece for clip in parts for piece in (clip.samples, gap)])


def _speak(words: str, file: Path) -> None:
    voice = _voice()
    spoken = np.asarray(voice(words, seed=0), np.float32).reshape(-1)
    margin = np.zeros(int(_MARGIN_S * RATE_HZ), np.float32)
    resampled = soxr.resample(spoken, voice.sample_rate, RATE_HZ)
    scratch = file.with_suffix(".part.flac")
    soundfile.write(scratch, np.concatenate([margin, resampled, margin]), RATE_HZ, format="FLAC")
    scratch.rename(file)


@cache
def _voice() -> Any:  # the package has no types
    import hibari

    return hibari.Hibari()


def _read(file: Path) -> NDArray[np.float32]:
    samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1, dtype=np.float32)
    return mono if rate == RATE_HZ else np.asarray(soxr.resample(mono, rate, RATE_HZ), np.float32)


def _debian_folder() -> Path:
    """Return the unpacked package; fetched with apt-get, which needs no right to install."""
    target = cache_folder() / "bench" / DEBIAN_PACKAGE
    if not target.is_dir():
        scratch = target.with_name(f".{DEBIAN_PACKAGE}.part")
        scratch.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", DEBIAN_PACKAGE], cwd=scratch, check=True, capture_output=True)
        (archive,) = scratch.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", str(archive), str(scratch)], check=True)
        scratch.rename(target)
    return target
