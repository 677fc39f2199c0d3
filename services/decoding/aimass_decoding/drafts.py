"""Guesses what comes next from the text itself, so that one run of the graph confirms several tokens. Pure.

Where the last two tokens stood before, what followed them then is likely to follow again: names, quotations,
code, lists, and everything that small models repeat. Known as prompt lookup decoding. A guess costs nothing
when it is wrong but the time of its place in the run, and never changes a token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from aimass_decoding.forecast import Smoothed

_SMOOTHING = 0.1
_FIRST_TRUST = 0.5
_MOST_TRUST = 0.95
_ASSUMED_SHARE, _LEAST_SHARE = 0.25, 0.02


class Drafter:
    """The text of one sequence, and how often what it suggests came true. Owned by the engine thread."""

    def __init__(self, prompt_ids: NDArray[np.int64]) -> None:
        self._prompt_ids = prompt_ids
        self._tokens: list[int] = []
        self._followers: dict[tuple[int, int], int] = {}
        """Where the token stands that followed two others the last time."""
        self._place: int | None = None
        """Where the token stands that is likely to be the next one; None for no idea."""
        self._trust = _FIRST_TRUST
        """How often, lately, the next token was the likely one, where there was one."""

    def add(self, token_id: int) -> None:
        """Take the next token of the text, and learn whether it could have been told."""
        if not self._tokens:
            for prompt_id in self._prompt_ids.tolist():
                self._append(prompt_id)
        self._append(token_id)

    def draft(self, *, most: int, cost: float) -> tuple[int, ...]:
        """Return the tokens that are likely to come, at most `most`; none where that is not worth it.

        Each costs `cost` of a step, above 0, and saves a whole one if it and all before it are right.
        """
        if self._place is None or self._trust <= cost:
            return ()
        count = min(most, int(math.log(cost) / math.log(self._trust)))
        tokens = self._tokens[self._place : self._place + count]
        period = len(self._tokens) - self._place
        while len(tokens) < count:  # the text goes on as it repeats itself
            tokens.append(tokens[len(tokens) - period])
        return tuple(tokens)

    def _append(self, token_id: int) -> None:
        if self._place is not None:
            was_right = self._tokens[self._place] == token_id
            self._trust = min(_MOST_TRUST, self._trust + _SMOOTHING * (was_right - self._trust))
        self._tokens.append(token_id)
        if len(self._tokens) > 1:
            pair = (self._tokens[-2], self._tokens[-1])
            self._place = self._followers.get(pair)
            self._followers[pair] = len(self._tokens)


@dataclass(slots=True)
class DraftCosts:
    """What a drafted token costs, as measured, beside a step for one token."""

    _step_s: Smoothed = field(default_factory=Smoothed)
    _token_s: Smoothed = field(default_factory=Smoothed)

    @property
    def share(self) -> float:
        """A drafted token's part of the time of a step; assumed before both were measured."""
        if not (self._step_s.value and self._token_s.value):
            return _ASSUMED_SHARE
        return self._token_s.value / self._step_s.value

    def observe_step(self, seconds: float) -> None:
        """Record a step of one sequence without a draft."""
        self._step_s.observe(seconds)

    def observe_draft(self, num_tokens: int, seconds: float) -> None:
        """Record a step of one sequence with so many drafted tokens."""
        step_s = self._step_s.value
        if step_s:
            self._token_s.observe(max(_LEAST_SHARE * step_s, (seconds - step_s) / num_tokens))
