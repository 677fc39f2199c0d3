"""Guesses what comes next, so that one run of the graph confirms several tokens. Pure.

From the text itself (`Drafter`): where the last two tokens stood before, what followed them then is likely to
follow again: names, quotations, code, lists, and everything that small models repeat. Known as prompt lookup
decoding. Or by a cheaper graph of the same model (`Guesses`), known as speculative decoding. A guess costs
nothing when it is wrong but its time, and never changes a token.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

import numpy as np
from numpy.typing import NDArray

from aimass_decoding.sampler import SamplingState

_SMOOTHING = 0.1
_FIRST_TRUST = 0.5
_MOST_TRUST = 0.95
_ASSUMED_SHARE, _LEAST_SHARE = 0.25, 0.02
_GUESS_SMOOTHING, _FIRST_GUESS_TRUST, _MOST_GUESS_TRUST = 0.05, 0.95, 0.99
_RECOVERY = 0.005
_FEW, _SOME = 3, 7
_MAX_DRAFTS_BETWEEN_STEPS, _MAX_STEPS_BETWEEN_DRAFTS = 16, 64


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

    @property
    def trust(self) -> float:
        """How often, lately, the likely token came."""
        return self._trust

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


class Guesses:
    """What a draft graph guesses behind the last token of one sequence, and how often that came true lately.

    Owned by the engine thread.
    """

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.is_complete = False
        """Whether the last of them would end the text."""
        self.sampling: SamplingState | None = None
        """How the next one is chosen: the sequence's way, as it will be behind the guesses; None at first."""
        self.trust = _FIRST_GUESS_TRUST
        """How often, lately, a guess was right when all before it were."""

    def add(self, token_id: int, *, is_last: bool) -> None:
        """Take one more guess, behind which nothing is worth guessing when it `is_last`."""
        self.token_ids.append(token_id)
        self.is_complete = is_last

    def learn(self, num_right: int, *, has_missed: bool) -> None:
        """Forget the guesses, of which so many were right, followed by a wrong one or not."""
        for was_right in [True] * num_right + [False] * has_missed:
            self.trust += _GUESS_SMOOTHING * (was_right - self.trust)
        self.trust = min(self.trust, _MOST_GUESS_TRUST)
        self.drop()

    def rest(self) -> None:
        """Take note of a step without guesses: one that is not asked may have become better."""
        self.trust += _RECOVERY * max(0.0, _FIRST_GUESS_TRUST - self.trust)
        self.drop()

    def drop(self) -> None:
        """Forget the guesses."""
        self.token_ids, self.is_complete, self.sampling = [], False, None


def gain(trust: float, count: int, *, cost: float) -> float:
    """Return how many tokens come in the time of one step, on average, with so many guesses at each.

    A guess is right with probability `trust` when all before it are, and costs `cost` of a step.
    """
    return sum(trust**place for place in range(count + 1)) / (1 + count * cost)


def best_count(trust: float, *, most: int, cost: float) -> int:
    """Return how many guesses give the most tokens in a time, at most `most`; 0 where none pay."""
    return max(range(most + 1), key=lambda count: gain(trust, count, cost=cost))


class _Recent:
    """The median of the last few measurements, which one run that was disturbed does not move."""

    def __init__(self, most: int) -> None:
        self._values: deque[float] = deque(maxlen=most)

    @property
    def value(self) -> float:
        """The median; 0 before the first."""
        return statistics.median(self._values) if self._values else 0.0

    def observe(self, value: float) -> None:
        """Take one more into account."""
        self._values.append(value)

    def forget(self) -> None:
        """Begin anew."""
        self._values.clear()


class DraftCosts:
    """What a drafted token costs, as measured, beside a step for one token.

    A cost that keeps anything from being drafted is forgotten after some steps, lest it never be measured
    again.
    """

    def __init__(self) -> None:
        self._step_s = _Recent(_FEW)
        self._token_s, self._guess_s = _Recent(_SOME), _Recent(_SOME)
        self._num_drafts_since_step = self._num_steps_since_draft = 0

    @property
    def share(self) -> float:
        """A drafted token's part of the time of a step; assumed before both were measured."""
        return self._share_of(self._token_s)

    @property
    def share_of_guess(self) -> float:
        """The same with the draft graph's time for guessing it."""
        return self.share + self._share_of(self._guess_s)

    @property
    def is_step_known(self) -> bool:
        """Whether a step without a draft was measured, and not too long ago to be compared with others."""
        return self._step_s.value > 0 and self._num_drafts_since_step < _MAX_DRAFTS_BETWEEN_STEPS

    def observe_step(self, seconds: float) -> None:
        """Record a step of one sequence without a draft."""
        self._step_s.observe(seconds)
        self._num_drafts_since_step = 0
        self._num_steps_since_draft += 1
        if self._num_steps_since_draft % _MAX_STEPS_BETWEEN_DRAFTS == 0:
            self._token_s.forget()
            self._guess_s.forget()

    def observe_guess(self, seconds: float) -> None:
        """Record a run of the draft graph for one token."""
        self._guess_s.observe(seconds)

    def observe_draft(self, num_tokens: int, seconds: float) -> None:
        """Record a step of one sequence with so many drafted tokens."""
        self._num_drafts_since_step += 1
        self._num_steps_since_draft = 0
        step_s = self._step_s.value
        if step_s:
            self._token_s.observe(max(_LEAST_SHARE * step_s, (seconds - step_s) / num_tokens))

    def _share_of(self, measured: _Recent) -> float:
        if not (self._step_s.value and measured.value):
            return _ASSUMED_SHARE
        return measured.value / self._step_s.value
