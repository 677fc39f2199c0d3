"""Cuts the words of a sentence into phrases, which a voice reads at once. Knows no voice.

A voice reads a whole phrase before its first sample is there, so the first phrase of a request is short.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from aimass_speech.synthesis.reading import Word

MAX_PHRASE_SYMBOLS = 400
_FIRST_PHRASE_SYMBOLS = 120
"""A first sentence that is longer than this is cut at its first clause mark, where there is one."""
_MIN_CLAUSE_SYMBOLS = 15
_CLAUSE_MARKS = frozenset(",;:—")


def phrases_of(words: Sequence[Word], *, is_first: bool) -> Iterator[list[Word]]:
    """Yield phrases of at most `MAX_PHRASE_SYMBOLS`, a longer word alone excepted."""
    begun: list[Word] = []
    if is_first and _length(words) > _FIRST_PHRASE_SYMBOLS:
        end = _clause_end(words)
        if end:
            yield list(words[:end])
            words = words[end:]
    for word in words:
        while begun and _length(begun) + _length([word]) > MAX_PHRASE_SYMBOLS:
            end = _last_clause_end(begun) or len(begun)
            yield begun[:end]
            begun = begun[end:]
        begun.append(word)
    if begun:
        yield begun


def _length(words: Sequence[Word]) -> int:
    return sum(len(word.symbols) + word.has_space for word in words)


def _clause_end(words: Sequence[Word]) -> int:
    """Return the number of words up to the first clause mark that has enough before it; 0 without one."""
    length = 0
    for place, word in enumerate(words[:-1], 1):
        length += _length([word])
        if length > MAX_PHRASE_SYMBOLS:
            return 0
        if word.symbols in _CLAUSE_MARKS and length >= _MIN_CLAUSE_SYMBOLS:
            return place
    return 0


def _last_clause_end(words: Sequence[Word]) -> int:
    ends = [place for place, word in enumerate(words, 1) if word.symbols in _CLAUSE_MARKS]
    return ends[-1] if ends else 0
