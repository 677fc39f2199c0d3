"""Reads American English by hibari's rules: numbers, dates and abbreviations written out, words to phonemes.

`hibari.g2p` is a port of misaki (Apache-2.0) that needs no espeak: lexicons, a tagger, and a small network
for words that no lexicon has. The network runs in a session of ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
from aimass_serving.session import Session
from hibari.g2p import G2P, SYMBOL_PHONEMES
from hibari.g2p.lexicon import CURRENCIES, SYMBOLS
from hibari.g2p.normalize import SYMBOLS as SPOKEN_SYMBOLS
from hibari.g2p.normalize import normalize
from hibari.g2p.token import Tok

from aimass_speech.synthesis.alphabet import Alphabet
from aimass_speech.synthesis.reading import Reading, Word, is_silent

_LINK, _NO_LINK = "](", "] ("
"""`[text](/phonemes/)` is a command to the library, which plain text must not give."""
_FIRST_STAND_IN = 0xE000
"""Private characters that stand for the pronunciations of a request while the library works."""
_MAX_STAND_INS = 0x1000
_SPOKEN = frozenset(
    symbol for table in (SYMBOL_PHONEMES, SYMBOLS, CURRENCIES, SPOKEN_SYMBOLS) for symbol in table
)
_LONG_NUMBER = re.compile(r"\d(?:,?\d){21,}")
"""The library has words up to decillions, and fails above them: longer numbers are read digit by digit."""
_LONG_WORD = re.compile(r"\S{50}(?=\S)")
"""A longer word is read in parts, each short enough for one phrase."""
_LIBRARY_FAILURES = (ValueError, LookupError, TypeError, AttributeError, StopIteration)
"""What the library raises for texts it was not made for, such as a raised digit before a letter."""
_CERTAIN = 5
"""The library's rating of a pronunciation that was given."""


class EnglishReader:
    """A reader of American English."""

    takes_phonemes = True

    def __init__(self, alphabet: Alphabet, network: WordNetwork) -> None:
        self._alphabet = alphabet
        self._letters = network.letters
        self._g2p = G2P(oov=network)

    def read(self, text: str, pronunciations: Mapping[str, str]) -> Reading:
        try:
            return self._read(text, pronunciations)
        except _LIBRARY_FAILURES:
            return self._read_word_by_word(text.split(), pronunciations)

    def _read_word_by_word(self, parts: list[str], pronunciations: Mapping[str, str]) -> Reading:
        """Read a text that the library fails on as a whole; report the words that it fails on alone."""
        words: list[Word] = []
        missing: list[str] = []
        for part in parts:
            try:
                reading = self._read(part, pronunciations)
            except _LIBRARY_FAILURES:
                missing += part
                continue
            words += [*reading.words[:-1], *(replace(word, has_space=True) for word in reading.words[-1:])]
            missing += reading.unpronounceable
        return Reading(words, list(dict.fromkeys(missing)))

    def _read(self, text: str, pronunciations: Mapping[str, str]) -> Reading:
        stand_ins = {word: chr(_FIRST_STAND_IN + n) for n, word in enumerate(pronunciations)}
        tokens = self._g2p.tokenize(normalize(_readable(text)))
        for token in tokens:
            if stand_in := stand_ins.get(token.text.lower()):
                token.phonemes, token.rating = stand_in, _CERTAIN
        given = {stand_ins[word]: symbols for word, symbols in pronunciations.items()}
        spoken = [(token, self._symbols(token, given)) for token in self._g2p.phonemize_tokens(tokens)]
        words = [
            Word(token.text, self._alphabet.known(symbols), bool(token.whitespace))
            for token, symbols in spoken
        ]
        return Reading(words, self._unpronounceable(text, spoken))

    def _symbols(self, token: Tok, given: Mapping[str, str]) -> str:
        symbols = self._alphabet.of_source(token.phonemes or "")
        return "".join(given.get(symbol, symbol) for symbol in symbols)

    def _unpronounceable(self, text: str, spoken: list[tuple[Tok, str]]) -> list[str]:
        """Return what nothing was spoken for: characters of the text, and symbols the voice does not have."""
        missing = [character for character in text if _is_private(character)]
        for token, symbols in spoken:
            if not symbols:
                missing += [c for c in token.text if not is_silent(c) and c not in CURRENCIES]
            else:
                missing += [c for c in token.text if not self._is_readable(c)]
        unknown = (symbol for _, symbols in spoken for symbol in self._alphabet.unknown(symbols))
        missing += [symbol for symbol in unknown if not is_silent(symbol)]
        return list(dict.fromkeys(missing))

    def _is_readable(self, character: str) -> bool:
        is_letter = character.isalpha() and (character.isascii() or character in self._letters)
        return is_letter or character.isnumeric() or character in _SPOKEN or is_silent(character)


def _readable(text: str) -> str:
    """Return a text that the library can read: no commands, no numbers beyond its words, no endless words."""
    plain = "".join(" " if _is_private(character) else character for character in text)
    spelled = _LONG_NUMBER.sub(lambda number: " ".join(number[0].replace(",", "")), plain)
    return _LONG_WORD.sub(r"\g<0> ", spelled.replace(_LINK, _NO_LINK))


def _is_private(character: str) -> bool:
    return _FIRST_STAND_IN <= ord(character) < _FIRST_STAND_IN + _MAX_STAND_INS


class WordNetwork:
    """The library's network for unknown words, in a session of ours. Collapses repeats, as CTC does."""

    def __init__(self, session: Session, letters: list[str], phonemes: list[str], max_letters: int) -> None:
        self._session = session
        self._letters = {letter: number for number, letter in enumerate(letters, 1)}
        self._phonemes = phonemes
        self._max_letters = max_letters

    @property
    def letters(self) -> frozenset[str]:
        """Letters the network knows."""
        return frozenset(self._letters)

    def __call__(self, word: str) -> str | None:
        ids = [self._letters[letter] for letter in word if letter in self._letters][: self._max_letters]
        if not ids:
            return None
        path = self._session.run({"chars": np.array([ids], np.int64)})["ids"][0]
        changed = np.flatnonzero(np.diff(path, prepend=0))
        return "".join(self._phonemes[path[place] - 1] for place in changed if path[place])


def word_network(open_graph: Callable[[Path], Session]) -> WordNetwork:
    """Return the library's network for American English."""
    assets = Path(str(resources.files("hibari") / "assets"))
    table = json.loads((assets / "oov.json").read_text("utf-8"))
    return WordNetwork(open_graph(assets / "oov.onnx"), table["in"], table["out"], table["maxlen"])
