"""One window of audio to be decoded, and what came of it. Frozen values; knows no engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from aimass_speech.hot_phrases import HotPhrases
from aimass_speech.phrase_tree import PhraseTree
from aimass_speech.word_alignment import AlignedWord

FALLBACK_TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


class Priority(IntEnum):
    """What is served first. Partials are the first to wait, finals the last."""

    FILE = 0
    PARTIAL = 1
    FINAL = 2


@dataclass(frozen=True, slots=True)
class QualityRules:
    """When an output is taken for a failure, and tried again at a higher temperature.

    Source: the defaults of OpenAI's `transcribe`.
    """

    max_compression_ratio: float = 2.4
    """Text that compresses better than this repeats itself."""
    min_avg_logprob: float = -1.0
    max_no_speech: float = 0.6
    """Above it, and below `min_avg_logprob`, there was no speech at all."""

    def is_silence(self, *, avg_logprob: float, no_speech: float) -> bool:
        """Whether an output was made of silence."""
        return no_speech > self.max_no_speech and avg_logprob < self.min_avg_logprob

    def is_failure(self, *, compression_ratio: float, avg_logprob: float, no_speech: float) -> bool:
        """Whether an output is worth another attempt."""
        if self.is_silence(avg_logprob=avg_logprob, no_speech=no_speech):
            return False
        return compression_ratio > self.max_compression_ratio or avg_logprob < self.min_avg_logprob


@dataclass(frozen=True, slots=True, eq=False)
class WindowRequest:
    """A window to decode."""

    samples: NDArray[np.float32] = field(repr=False)  # [n], at most the model's window
    language: str = ""
    """Empty lets the model find out."""
    is_translation: bool = False
    prompt_ids: tuple[int, ...] = ()
    """Text before this window."""
    draft_ids: tuple[int, ...] = ()
    """A guess at the output. What a greedy search confirms of it costs one run of the decoder, not one a
    token; the output is the same without.
    """
    has_timestamps: bool = True
    temperatures: tuple[float, ...] = FALLBACK_TEMPERATURES
    """Tried in turn until an output passes the rules."""
    rules: QualityRules = QualityRules()
    num_beams: int = 1
    """At temperature 0; above it outputs are drawn."""
    best_of: int = 1
    """Outputs drawn at each temperature above 0, of which the most probable counts."""
    num_readings: int = 1
    """Readings wanted that differ in words; more than one takes a second search."""
    max_new_tokens: int = 224
    hot_phrases: HotPhrases | None = None
    phrases: PhraseTree | None = None
    """Phrases to score beside the free reading."""
    wants_words: bool = False
    priority: Priority = Priority.FILE
    deadline_s: float | None = None
    """On `time.monotonic`."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One output of the decoder."""

    token_ids: tuple[int, ...]
    """Text and timestamps, without the token that ended it."""
    logprobs: tuple[float, ...]
    """Natural log-probability of each token under the rules, at temperature 1."""
    avg_logprob: float
    """Mean over the tokens, the one that ended it included."""

    @property
    def logprob(self) -> float:
        """Sum over the tokens, the one that ended it included."""
        return self.avg_logprob * (len(self.token_ids) + 1)


@dataclass(frozen=True, slots=True)
class WindowResult:
    """What was decoded."""

    reading: Reading
    alternatives: Sequence[Reading]
    """Other outputs, best first; all differ in words when several readings were wanted."""
    no_speech: float
    """Probability that there was no speech."""
    temperature: float
    """Of the last attempt, also where an earlier output was taken because all had failed."""
    language: str
    language_probability: float
    words: Sequence[AlignedWord] = ()
    phrase_logprobs: Mapping[int, float] = field(default_factory=dict)
    """Natural log-probability of each phrase, by its number, as far as it counts."""
    submitted_ns: int = 0
    started_ns: int = 0
    encoded_ns: int = 0
    finished_ns: int = 0
