"""Where visible characters of a text begin and end, in Unicode code points. Pure; knows no token."""

from __future__ import annotations

import unicodedata

_JOINER = "\u200d"
_SKIN_TONES = range(0x1F3FB, 0x1F400)


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the ends of a piece without the spaces around it."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def whole_characters(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the ends of a piece trimmed, and moved outwards to the edges of visible characters."""
    start, end = trimmed(text, start, end)
    while 0 < start < end and _continues(text, start):
        start -= 1
    while start < end < len(text) and _continues(text, end):
        end += 1
    return start, end


def _continues(text: str, place: int) -> bool:
    """Whether the character at `place` is seen as one with that before it: an accent, a joined emoji."""
    character, before = text[place], text[place - 1]
    return (
        unicodedata.category(character).startswith("M")
        or character == _JOINER
        or ord(character) in _SKIN_TONES
        or (before == _JOINER and not character.isspace())
    )
