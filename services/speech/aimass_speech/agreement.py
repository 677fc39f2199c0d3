"""Which part of a live transcript can be trusted: the words that two readings in a row agree on. Pure.

Source: LocalAgreement-2 of Liu et al. 2020, as used by whisper_streaming.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interim:
    """A reading of an open utterance."""

    committed: str
    """Agreed upon; no later interim changes it."""
    tentative: str
    """May change; follows the committed text."""

    @property
    def stability(self) -> float:
        """Share of the text that is committed, 0 to 1."""
        length = len(self.committed) + len(self.tentative)
        return len(self.committed) / length if length else 0.0


class LocalAgreement:
    """The readings of one utterance."""

    def __init__(self) -> None:
        self._committed: list[str] = []
        self._last: list[str] = []

    def take(self, text: str) -> Interim:
        """Take the newest reading; return it as committed and tentative text."""
        words = text.split()
        done = len(self._committed)
        agreed = _common_prefix(self._last[done:], words[done:])
        self._committed += words[done : done + agreed]
        self._last = words
        tentative = " ".join(words[len(self._committed) :])
        committed = " ".join(self._committed)
        return Interim(committed, f" {tentative}" if committed and tentative else tentative)


def _common_prefix(first: Sequence[str], second: Sequence[str]) -> int:
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count
