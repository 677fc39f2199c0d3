"""Sentences of reviews that a voice reads, with their exact words: synthetic speech.

What activation ranges are taken from, and what word errors are counted on. Knows no recogniser.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import hibari
import numpy as np
import soxr
from numpy.typing import NDArray

from aimass_exporters.progress import Progress
from aimass_exporters.sources.held_out import held_out_texts
from aimass_exporters.sources.speech_samples import SAMPLE_RATE_HZ

_PLAIN = re.compile(r"[A-Z][a-z,' ]+[.!?]")
_NUM_WORDS = range(5, 17)
_MARGIN_S = 0.3
"""Silence around a sentence."""


@dataclass(frozen=True, slots=True)
class SpokenSentence:
    """A sentence and how it sounds."""

    words: str
    samples: NDArray[np.float32]  # [n] at 16 kHz


def spoken_sentences(count: int, progress: Progress) -> list[SpokenSentence]:
    """Return so many sentences of plain words, one of a review. Raises `SourceUnavailable`."""
    texts = [text for _, text in zip(range(count), _sentences(progress), strict=False)]
    progress.stage("let a voice read sentences")
    voice, spoken = hibari.Hibari(), []
    margin = np.zeros(int(_MARGIN_S * SAMPLE_RATE_HZ), np.float32)
    for done, text in enumerate(texts):
        progress.advance(done, count)
        audio = np.asarray(voice(text, seed=0), np.float32).reshape(-1)
        resampled = soxr.resample(audio, voice.sample_rate, SAMPLE_RATE_HZ)
        spoken.append(SpokenSentence(text, np.concatenate([margin, resampled, margin])))
    return spoken


def _sentences(progress: Progress) -> Iterator[str]:
    for review in held_out_texts(progress):
        for sentence in re.split(r"(?<=[.!?])\s+", review):
            if len(sentence.split()) in _NUM_WORDS and _PLAIN.fullmatch(sentence):
                yield sentence
                break
