"""Which of a list of phrases was said, or none: from log-probabilities to shares. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from aimass_speech.spoken_form import spoken_form

MAX_SCORES = 10
_MARKS = ("", ".", "?", "!")


@dataclass(frozen=True, slots=True)
class PhraseScore:
    """How probable it is that a phrase was said."""

    phrase: str
    score: float
    """Share of the probability of all phrases and of what was heard without them, 0 to 1."""


@dataclass(frozen=True, slots=True)
class PhraseMatch:
    """The answer of phrases mode."""

    phrase: str | None = None
    """None when none was said."""
    scores: Sequence[PhraseScore] = ()
    """Best first."""


def spellings(phrase: str) -> list[str]:
    """Return how a recogniser may write a phrase: as given or with a capital, with or without a mark."""
    text = " ".join(phrase.split())
    bare = text.rstrip("".join(_MARKS))
    starts = dict.fromkeys([bare, bare[:1].upper() + bare[1:], bare[:1].lower() + bare[1:]])
    return [f" {start}{mark}" for start in starts for mark in _MARKS]


def matched(
    phrases: Sequence[str],
    logprobs: Mapping[int, float],
    *,
    heard: str,
    heard_logprob: float,
    threshold: float,
) -> PhraseMatch:
    """Return the phrase with the largest share, if it reaches `threshold`.

    `logprobs` are those of the phrases by number. What was `heard` without them stands for everything else,
    unless it is one of them.
    """
    known = {spoken_form(phrase) for phrase in phrases}
    others = [] if spoken_form(heard) in known else [heard_logprob]
    total = _log_sum([*logprobs.values(), *others])
    ranked = sorted(logprobs.items(), key=lambda item: -item[1])[:MAX_SCORES]
    scores = [PhraseScore(phrases[number], math.exp(logprob - total)) for number, logprob in ranked]
    is_said = bool(scores) and scores[0].score >= threshold
    return PhraseMatch(scores[0].phrase if is_said else None, scores)


def _log_sum(values: Iterable[float]) -> float:
    finite = [value for value in values if value > -math.inf]
    if not finite:
        return 0.0
    highest = max(finite)
    return highest + math.log(sum(math.exp(value - highest) for value in finite))
