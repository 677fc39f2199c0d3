"""Reads text for voices whose symbols are letters: lower case, letter by letter."""

from __future__ import annotations

from collections.abc import Mapping

from aimass_speech.synthesis.alphabet import Alphabet
from aimass_speech.synthesis.reading import Reading, Word, is_silent


class CharacterReader:
    """A reader of the letters of an alphabet. What is not in it is reported, but for punctuation."""

    takes_phonemes = False

    def __init__(self, alphabet: Alphabet) -> None:
        self._alphabet = alphabet

    def read(self, text: str, pronunciations: Mapping[str, str]) -> Reading:
        lowered = self._alphabet.of_source(text.lower())
        words = [Word(part, self._alphabet.known(part)) for part in lowered.split()]
        unknown = [symbol for symbol in self._alphabet.unknown(lowered) if not is_silent(symbol)]
        return Reading([word for word in words if word.symbols], unknown)
