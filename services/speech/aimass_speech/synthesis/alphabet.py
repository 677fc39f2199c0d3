"""A voice's symbols: what a pronunciation is written in, and the ids its graph reads. Knows no text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Replacements = Sequence[tuple[str, str]]

STRESS_MARKS = frozenset("ˈˌ")
"""Marks that belong to the phoneme behind them."""
LENGTH_MARKS = frozenset("\u02d0\u02d1\u0303\u0329\u032f")
"""Marks that belong to the phoneme before them."""


@dataclass(frozen=True, slots=True)
class Alphabet:
    """The symbols of one voice."""

    ids: Mapping[str, int]
    start_ids: Sequence[int] = ()
    end_ids: Sequence[int] = ()
    blank_id: int | None = None
    """Id behind every symbol."""
    replacements: Replacements = ()
    """From the symbol source's alphabet."""
    ipa_replacements: Replacements = ()
    """From the IPA that callers write."""

    def of_source(self, symbols: str) -> str:
        """Return symbols of the symbol source in this alphabet."""
        return _replaced(symbols, self.replacements)

    def of_ipa(self, ipa: str) -> str:
        """Return a caller's IPA in this alphabet."""
        return _replaced(ipa, self.ipa_replacements)

    def unknown(self, symbols: str) -> list[str]:
        """Return the symbols that this alphabet does not have, each once, in order."""
        return list(dict.fromkeys(symbol for symbol in symbols if symbol not in self.ids))

    def known(self, symbols: str) -> str:
        """Return the symbols that this alphabet has."""
        return "".join(symbol for symbol in symbols if symbol in self.ids)

    def encode(self, symbols: str) -> NDArray[np.int64]:
        """Return the ids [n] of known symbols, with those around and between them."""
        ids = [*self.start_ids]
        for symbol in symbols:
            ids += [self.ids[symbol]] if self.blank_id is None else [self.ids[symbol], self.blank_id]
        return np.array([*ids, *self.end_ids], np.int64)

    def symbol_frames(self, symbols: str, durations: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the frame at which each symbol begins, and the one at which the last ends: [symbols + 1].

        `durations` [n] are those of the ids of `encode`. A blank belongs to the symbol before it.
        """
        width = 1 if self.blank_id is None else 2
        begins = np.concatenate([[0], np.cumsum(durations)])
        places = len(self.start_ids) + width * np.arange(len(symbols) + 1)
        frames: NDArray[np.int64] = begins[places]
        return frames


def phonemes_of(symbols: str) -> list[tuple[int, int]]:
    """Return the places of the phonemes in a string of symbols, as ranges: a phoneme and its marks."""
    ranges: list[tuple[int, int]] = []
    begin = 0
    for place, symbol in enumerate(symbols):
        if symbol in LENGTH_MARKS and ranges and ranges[-1][1] == place:
            ranges[-1] = (ranges[-1][0], place + 1)
            begin = place + 1
        elif symbol not in STRESS_MARKS:
            ranges.append((begin, place + 1))
            begin = place + 1
    return ranges


def _replaced(text: str, replacements: Replacements) -> str:
    for before, after in replacements:
        text = text.replace(before, after)
    return text
