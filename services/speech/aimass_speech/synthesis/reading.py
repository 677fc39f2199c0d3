"""A sentence as a voice will speak it: its words, each in the voice's symbols. Knows no language."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Word:
    """A word, or a punctuation mark."""

    text: str
    """As it is spoken: `seven` for `7` where the reader writes it out."""
    symbols: str
    """Symbols of the voice; empty when there is nothing to speak."""
    has_space: bool = True
    """Whether a space follows."""

    @property
    def is_spoken(self) -> bool:
        """Whether it is more than punctuation."""
        return any(symbol.isalpha() for symbol in self.symbols)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a text comes to."""

    words: Sequence[Word]
    unpronounceable: Sequence[str] = ()
    """Symbols that are left out, each once, in order."""


class TextReader(Protocol):
    """Turns sentences into words. Not for two threads at once."""

    @property
    def takes_phonemes(self) -> bool:
        """Whether the voice's symbols are phonemes."""

    def read(self, text: str, pronunciations: Mapping[str, str]) -> Reading:
        """Return the words of a sentence.

        `pronunciations` gives symbols of the voice for words in lower case.
        """


def joined(words: Iterable[Word]) -> str:
    """Return the symbols of words with the spaces between them."""
    return "".join(word.symbols + " " * word.has_space for word in words).rstrip()


def is_silent(character: str) -> bool:
    """Whether a character has no sound of its own: spaces, punctuation, marks and controls."""
    return unicodedata.category(character)[0] in "ZPMC" or character == "\N{VARIATION SELECTOR-16}"
