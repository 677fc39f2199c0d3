"""Chooses among variants of one session by measured time. Pure: no clock, no runtime, no threads.

No number of threads is right both on a quiet and on a busy machine, and which it is changes from second to
second. So the variant that was fastest lately runs, and another is tried now and then:

- Runs are told apart by kind: what is best for one row need not be best for sixteen.
- A trial costs the time by which it was slower than the variant in use. All trials of a kind together cost at
  most `max_loss_share` of the time spent in it, beyond a small loan at the start and when another kind
  changed, and a trial waits until as much is saved up as the last one cost: prompts are long and seldom.
- Between trials of a kind lies a quarter of a second, and more, up to a second, while they change nothing.
  When the variant in use becomes slower or faster than it was, or another kind changed its variant, the next
  trial comes at once.
- A variant replaces another when it was faster by `_MARGIN` twice in a row. Kinds that ran too seldom or too
  long ago to judge for themselves, as prompts do beside the steps that follow them, go along with it.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

_MARGIN = 0.06
_SURPRISE = 1.3
"""A run that is slower or faster by this factor than the ones before, twice in a row, is a change."""
_SMOOTHING = 0.3
_MIN_INTERVAL_S, _MAX_INTERVAL_S = 0.25, 1.0
_MIN_RUNS_BEFORE_TRIAL = 3
_MAX_SILENCE_S = 2.0
"""What was measured longer ago says nothing about the machine of now."""
_LOAN_S = 0.05
_MOST_SAVED_LOSSES = 1.5
"""Credit ends at the loan, or at this many times what the last trial cost if that is more."""


@dataclass(slots=True)
class _Kind:
    """What is known of one kind of run."""

    best: int
    cost: float = 0.0
    """Smoothed seconds a unit of the best variant; 0 before the first."""
    num_runs: int = 0
    """Runs of the best variant since it was chosen."""
    last_run_s: float = 0.0
    num_surprises: int = 0
    trial: int | None = None
    """The variant on trial; it runs until it has lost once or won twice."""
    num_wins: int = 0
    last_trial: int = 0
    next_trial_s: float = 0.0
    interval_s: float = _MIN_INTERVAL_S
    credit_s: float = _LOAN_S
    last_loss_s: float = 0.0
    """What the last trial cost; 0 when that says nothing about the machine of now."""

    def earn(self, seconds: float) -> None:
        """Save up for the next trial."""
        self.credit_s = min(self.credit_s + seconds, max(_LOAN_S, _MOST_SAVED_LOSSES * self.last_loss_s))

    def pay(self, seconds: float) -> None:
        """Take the loss of a trial; a gain pays nothing back."""
        self.last_loss_s = max(0.0, seconds)
        self.credit_s -= self.last_loss_s

    def try_at_once(self, now_s: float) -> None:
        """Let the next run be a trial: the machine is not what it was."""
        self.next_trial_s, self.last_loss_s = min(self.next_trial_s, now_s), 0.0

    def begin_anew(self, now_s: float) -> None:
        """Forget what runs took on the machine as it was: the next run tells, the one after is a trial."""
        self.cost, self.num_runs, self.num_surprises = 0.0, _MIN_RUNS_BEFORE_TRIAL - 1, 0
        self.trial, self.num_wins = None, 0
        self.credit_s = max(self.credit_s, _LOAN_S)
        self.try_at_once(now_s)


@dataclass(slots=True)
class ThreadChoice:
    """The choice among `num_variants` variants for every kind of run. Owned by whoever runs them."""

    num_variants: int
    max_loss_share: float = 0.02
    num_trials: int = 0
    """Runs of a variant other than the best."""
    num_changes: int = 0
    """How often a kind's best variant was replaced."""
    _kinds: dict[Hashable, _Kind] = field(default_factory=dict)
    _last_best: int = 0

    def choose(self, kind: Hashable, now_s: float) -> int:
        """Return the variant for the next run of this kind. `observe` must follow."""
        state = self._kinds.get(kind)
        if state is None:
            state = self._kinds[kind] = self._unknown()
        if state.trial is None and self._may_try(state, now_s):
            state.trial = self._next_trial(state)
        return state.best if state.trial is None else state.trial

    def observe(self, kind: Hashable, *, seconds: float, num_units: int, now_s: float) -> None:
        """Record how long the run chosen last for this kind took, and of how many units it was."""
        state = self._kinds[kind]
        state.last_run_s = now_s
        cost = seconds / num_units
        if state.trial is None:
            state.earn(self.max_loss_share * seconds)
            _update(state, cost, now_s)
            return
        self.num_trials += 1
        state.pay(seconds - state.cost * num_units)
        if cost < state.cost * (1 - _MARGIN):
            self._win(state, cost, now_s)
        else:
            _lose(state, now_s)

    def best_of(self, kind: Hashable) -> int | None:
        """Return the variant in use for a kind of run; None for one never seen."""
        state = self._kinds.get(kind)
        return None if state is None else state.best

    def _may_try(self, state: _Kind, now_s: float) -> bool:
        is_due = state.num_runs >= _MIN_RUNS_BEFORE_TRIAL and now_s >= state.next_trial_s
        return is_due and state.credit_s > state.last_loss_s and self.num_variants > 1

    def _next_trial(self, state: _Kind) -> int:
        """Take turns among the variants that are not in use."""
        following = (state.last_trial + 1) % self.num_variants
        state.last_trial = following if following != state.best else (following + 1) % self.num_variants
        return state.last_trial

    def _win(self, state: _Kind, cost: float, now_s: float) -> None:
        state.num_wins += 1
        if state.num_wins < 2:
            return
        assert state.trial is not None, "only a trial wins"
        self.num_changes += 1
        self._last_best = state.best = state.trial
        state.cost, state.num_runs, state.num_surprises = cost, 0, 0
        state.trial, state.num_wins, state.last_loss_s = None, 0, 0.0
        state.interval_s = _MIN_INTERVAL_S
        self._tell_others(state, now_s)
        state.next_trial_s = now_s + _MIN_INTERVAL_S

    def _unknown(self) -> _Kind:
        """Return what is known of a kind that never ran: that another kind is best off with some variant."""
        return _Kind(self._last_best, last_trial=self._last_best)

    def _tell_others(self, changed: _Kind, now_s: float) -> None:
        """Let the other kinds look again, or go along: what changed is likely to hold for them too."""
        for kind, other in self._kinds.items():
            if other is changed:
                continue
            if other.num_runs < _MIN_RUNS_BEFORE_TRIAL or now_s - other.last_run_s > _MAX_SILENCE_S:
                self._kinds[kind] = self._unknown()
            else:
                other.begin_anew(now_s)


def _lose(state: _Kind, now_s: float) -> None:
    state.trial, state.num_wins = None, 0
    state.next_trial_s = now_s + state.interval_s
    state.interval_s = min(_MAX_INTERVAL_S, 2 * state.interval_s)


def _update(state: _Kind, cost: float, now_s: float) -> None:
    """Take a run of the best variant into account."""
    state.num_runs += 1
    if state.cost and not state.cost / _SURPRISE < cost < state.cost * _SURPRISE:
        state.num_surprises += 1
    else:
        state.num_surprises = 0
    if state.num_surprises == 2:
        state.cost, state.num_surprises = cost, 0
        state.interval_s = _MIN_INTERVAL_S
        state.try_at_once(now_s)
    elif state.num_surprises == 0:
        state.cost += (_SMOOTHING if state.cost else 1.0) * (cost - state.cost)
