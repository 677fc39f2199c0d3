"""Watches a stream of text for stop strings and never lets part of one out. Knows no tokens and no requests.

The rule: the stop string that is complete first ends the text; of those complete at the same character, the
longest. It depends only on the text, never on how the text was cut into pieces.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

_ROOT = 0


@dataclass(frozen=True, slots=True)
class Scan:
    """What one piece of text released: final text, and the stop string that ended it, if one did."""

    text: str
    stop_string: str | None = None


class StopAutomaton:
    """Aho-Corasick automaton over characters: one transition a character, however many stop strings.

    A state is the longest suffix of the text that is a prefix of a stop string; its depth is the length of
    that suffix, hence the number of characters that must be held back.
    Source: Aho and Corasick, Efficient string matching, CACM 18(6), 1975.
    """

    def __init__(self, stop_strings: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._fallback: list[int] = [_ROOT]
        self.depth: list[int] = [0]
        self.match: list[str | None] = [None]
        for stop in stop_strings:
            self._add(stop)
        self._link()

    def step(self, state: int, char: str) -> int:
        """Return the state after one more character."""
        while True:
            following = self._next[state].get(char)
            if following is not None:
                return following
            if state == _ROOT:
                return _ROOT
            state = self._fallback[state]

    def _add(self, stop: str) -> None:
        state = _ROOT
        for char in stop:
            if char not in self._next[state]:
                self._next[state][char] = len(self._next)
                self._next.append({})
                self._fallback.append(_ROOT)
                self.depth.append(self.depth[state] + 1)
                self.match.append(None)
            state = self._next[state][char]
        self.match[state] = stop

    def _link(self) -> None:
        """Point each state at its longest proper suffix, nearest first, and inherit that one's match."""
        waiting = deque(self._next[_ROOT].values())
        while waiting:
            state = waiting.popleft()
            for char, following in self._next[state].items():
                self._fallback[following] = self.step(self._fallback[state], char)
                waiting.append(following)
            if self.match[state] is None:
                self.match[state] = self.match[self._fallback[state]]


class StopMatcher:
    """Passes text on, holding back every suffix that may still become a stop string.

    Owned by one generation. Takes time linear in the text.
    """

    def __init__(self, stop_strings: Sequence[str], *, include_stop_string: bool = False) -> None:
        self._automaton = StopAutomaton(stop_strings) if stop_strings else None
        self._include_stop_string = include_stop_string
        self._state = _ROOT
        self._held = ""

    def push(self, text: str) -> Scan:
        """Return the text that is final now. After a match the text is at its end: push nothing more."""
        automaton = self._automaton
        if automaton is None:
            return Scan(text)
        state, seen = self._state, self._held + text
        for end, char in enumerate(text, start=len(self._held) + 1):
            state = automaton.step(state, char)
            stop = automaton.match[state]
            if stop is not None:
                return Scan(seen[: end if self._include_stop_string else end - len(stop)], stop)
        self._state = state
        cut = len(seen) - automaton.depth[state]
        self._held = seen[cut:]
        return Scan(seen[:cut])

    def flush(self) -> str:
        """Return the text still held back, because no more will come."""
        held, self._held, self._state = self._held, "", _ROOT
        return held
