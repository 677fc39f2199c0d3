"""Finds keywords in the readings of a live stream. Pure: events in, finds out; knows no model and no wire."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aimass_serving.errors import InvalidField

from aimass_speech.live_recognizer import FinalRead, InterimRead, LiveEvent
from aimass_speech.recognition import MAX_BOOST, HotPhrase, Segment, Word
from aimass_speech.spoken_form import spoken_form

MAX_KEYWORDS, MAX_KEYWORD_CHARS = 100, 60


@dataclass(frozen=True, slots=True)
class Keyword:
    """A word, or a few, to listen for."""

    phrase: str
    threshold: float = 0.5
    boost: float = 0.0
    field: str = "config.keywords[0]"
    """How the wire names it, for error messages."""

    def __post_init__(self) -> None:
        """Refuse values outside their range, naming the field as the wire names it."""
        if not (spoken_form(self.phrase) and len(self.phrase) <= MAX_KEYWORD_CHARS):
            expected = f"1 to {MAX_KEYWORD_CHARS} characters with a letter or a digit"
            raise InvalidField(f"{self.field}.phrase", expected=expected, got=self.phrase)
        if not 0 <= self.threshold <= 1:
            raise InvalidField(f"{self.field}.threshold", expected="0 to 1", got=self.threshold)
        if not -MAX_BOOST <= self.boost <= MAX_BOOST:
            expected = f"-{MAX_BOOST:g} to {MAX_BOOST:g}"
            raise InvalidField(f"{self.field}.boost", expected=expected, got=self.boost)


@dataclass(frozen=True, slots=True)
class Spotted:
    """A keyword that was said, in samples from the start of the stream."""

    phrase: str
    score: float
    start: int
    end: int

    def is_also(self, other: Spotted) -> bool:
        """Whether both are the same occurrence, heard twice."""
        return self.phrase == other.phrase and self.start < other.end and other.start < self.end


def check_keywords(keywords: Sequence[Keyword]) -> None:
    """Raise `InvalidField` unless there are some, no two of which sound the same."""
    if not 1 <= len(keywords) <= MAX_KEYWORDS:
        raise InvalidField(
            "config.keywords", expected=f"1 to {MAX_KEYWORDS} keywords", got=len(keywords) or "none"
        )
    seen: set[str] = set()
    for keyword in keywords:
        if (form := spoken_form(keyword.phrase)) in seen:
            expected = "keywords that differ in words"
            raise InvalidField(f"{keyword.field}.phrase", expected=expected, got=keyword.phrase)
        seen.add(form)


def hot_phrases(keywords: Iterable[Keyword]) -> list[HotPhrase]:
    """Return what recognition is to favour."""
    return [HotPhrase(keyword.phrase, keyword.boost) for keyword in keywords if keyword.boost]


class KeywordSpotter:
    """Follows one stream. Tells each occurrence once: when two readings in a row, or the final, hold it."""

    def __init__(self, keywords: Sequence[Keyword]) -> None:
        self._keywords = [(keyword, spoken_form(keyword.phrase).split()) for keyword in keywords]
        self._told: list[Spotted] = []
        self._last: list[Spotted] = []

    def take(self, event: LiveEvent) -> list[Spotted]:
        """Return what an event makes certain, in order of time."""
        if not isinstance(event, InterimRead | FinalRead):
            return []
        found = self._found(event.transcript.segments, event.start)
        if isinstance(event, InterimRead):
            agreed = [one for one in found if any(one.is_also(other) for other in self._last)]
            self._last = found
        else:
            agreed, self._last = found, []
        new = [one for one in agreed if not any(one.is_also(other) for other in self._told)]
        self._told = [*self._told, *new] if isinstance(event, InterimRead) else []
        return new

    def _found(self, segments: Sequence[Segment], offset: int) -> list[Spotted]:
        words = [word for segment in segments for word in segment.words]
        heard = [(part, word) for word in words for part in spoken_form(word.text).split()]
        found = []
        for keyword, parts in self._keywords:
            for place in range(len(heard) - len(parts) + 1):
                own = heard[place : place + len(parts)]
                if [part for part, _ in own] == parts:
                    found.append(_spotted(keyword, [word for _, word in own], offset))
        wanted = {keyword.phrase: keyword.threshold for keyword, _ in self._keywords}
        return sorted((one for one in found if one.score >= wanted[one.phrase]), key=lambda one: one.start)


def _spotted(keyword: Keyword, words: Sequence[Word], offset: int) -> Spotted:
    logprob = sum(math.log(max(word.confidence, 1e-10)) for word in words) / len(words)
    start, end = offset + words[0].start, offset + words[-1].end
    return Spotted(keyword.phrase, math.exp(logprob), start, max(end, start + 1))
