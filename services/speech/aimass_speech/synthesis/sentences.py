"""Cuts text that arrives piece by piece into sentences, each as soon as it is certain that it has ended.

Knows no voice. The sentences, joined, are the text but for the spaces around them.
"""

from __future__ import annotations

import re

MAX_SENTENCE_CHARS = 1000
"""A sentence without an end is cut after so many characters, between words if it has any."""
_ENDS = ".!?…"
_FULL_WIDTH_ENDS = "。！？"  # noqa: RUF001 - they end sentences in Chinese and Japanese
_CLOSERS = "\"')]}\N{RIGHT SINGLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}»"
_END = re.compile(
    rf"[{_ENDS}]+[{re.escape(_CLOSERS)}]*(?=\s)|[{_FULL_WIDTH_ENDS}]+[{re.escape(_CLOSERS)}]*|\n\s*\n"
)
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'])(?:[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|St|Mt|Ft|Gen|Gov|Sen|Rep|Capt|Lt|Col|Sgt|Rev|Hon|No|vs|etc|e\.g|i\.e"
    r"|approx|fig|Fig|Inc|Ltd|Co|Jr|Sr)\.$"
)


class SentenceCutter:
    """Cuts one text. Holds the sentence that has not ended yet, and no more than its longest length."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> list[str]:
        """Take more text; return the sentences that have ended."""
        self._held += text
        sentences = []
        while (end := self._sentence_end()) is not None:
            sentences.append(self._held[:end])
            self._held = self._held[end:]
        return [sentence.strip() for sentence in sentences if sentence.strip()]

    def finish(self) -> list[str]:
        """Return what is held, and begin anew."""
        rest, self._held = self._held.strip(), ""
        return [rest] if rest else []

    def _sentence_end(self) -> int | None:
        for match in _END.finditer(self._held, 0, MAX_SENTENCE_CHARS + 1):
            if self._ends_here(match):
                return match.end()
        if len(self._held) <= MAX_SENTENCE_CHARS:
            return None
        space = max(self._held.rfind(space, 0, MAX_SENTENCE_CHARS) for space in " \n\t")
        return space + 1 if space > 0 else MAX_SENTENCE_CHARS

    def _ends_here(self, match: re.Match[str]) -> bool:
        """Whether a mark ends a sentence: not behind an abbreviation, and not before a small letter."""
        if match.group()[0] in "\n" + _FULL_WIDTH_ENDS:
            return True
        following = self._held[match.end() :].lstrip()
        if not following:
            # What comes next is not known: a space after the mark is enough, but not after an abbreviation.
            return not _ABBREVIATION.search(self._held[: match.end()])
        return not (following[0].islower() or _ABBREVIATION.search(self._held[: match.end()]))


def sentences_of(text: str) -> list[str]:
    """Return the sentences of a whole text."""
    cutter = SentenceCutter()
    return [*cutter.feed(text), *cutter.finish()]
