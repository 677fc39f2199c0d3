"""How long a sequence will wait for a slot, and take once it has one, by those before it. Pure: no clock."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

_SMOOTHING = 0.1
_WINDOW_S = 10.0
_LEAST_MEASURED_S = 0.5


@dataclass(slots=True)
class Smoothed:
    """A smoothed measurement; 0 before the first."""

    value: float = 0.0

    def observe(self, value: float) -> None:
        """Take one more into account."""
        weight = _SMOOTHING if self.value else 1.0
        self.value += weight * (value - self.value)


@dataclass(slots=True)
class _Ratio:
    """Sum of one thing over the sum of another; each observation makes the earlier ones count less."""

    _above: float = 0.0
    _below: float = 0.0

    @property
    def value(self) -> float:
        """The ratio; 0 before the first observation."""
        return self._above / self._below if self._below else 0.0

    def observe(self, above: float, below: float) -> None:
        """Take one more into account."""
        self._above += above - _SMOOTHING * self._above
        self._below += below - _SMOOTHING * self._below


@dataclass(slots=True)
class Forecast:
    """Measured from sequences among others, so the load of the last seconds is in it."""

    _prompt_token_s: _Ratio = field(default_factory=_Ratio)
    _token_s: _Ratio = field(default_factory=_Ratio)
    _stops_per_token: _Ratio = field(default_factory=_Ratio)

    def observe(
        self,
        *,
        entered_s: float,
        first_token_s: float,
        last_token_s: float,
        num_prompt_tokens: int,
        num_tokens: int,
        has_stopped: bool,
    ) -> None:
        """Record a sequence that left its slot with `num_tokens` tokens, at least 1.

        `num_prompt_tokens` were computed before them. One that the model did not end by itself tells only
        that it may be longer.
        """
        self._prompt_token_s.observe(first_token_s - entered_s, max(1, num_prompt_tokens))
        if num_tokens > 1:
            self._token_s.observe(last_token_s - first_token_s, num_tokens - 1)
        self._stops_per_token.observe(float(has_stopped), num_tokens)

    def seconds(self, *, num_prompt_tokens: int, max_new_tokens: int) -> float:
        """Return the time from its slot to its last token for a sequence; 0 before anything was measured."""
        start_s = self._prompt_token_s.value * num_prompt_tokens
        return start_s + self._token_s.value * max(0.0, self._num_tokens(max_new_tokens) - 1)

    def _num_tokens(self, max_new_tokens: int) -> float:
        """Return the mean length if each token is the last with the same probability."""
        stop = self._stops_per_token.value
        return (1 - (1 - stop) ** max_new_tokens) / stop if stop else max_new_tokens


@dataclass(slots=True)
class DrainRate:
    """Tokens a second that leave a queue, of the time in which something waited; old times count less.

    Time without a queue does not count: an engine that was idle is as fast as it was before.
    """

    _tokens: float = 0.0
    _seconds: float = 0.0
    _since_s: float | None = None
    """When something began to wait or left last; None while nothing waits."""

    def begin(self, now_s: float) -> None:
        """Note that something waits."""
        if self._since_s is None:
            self._since_s = now_s

    def record(self, num_tokens: int, now_s: float) -> None:
        """Note that something got its slot."""
        waited_s = self._open_s(now_s)
        decay = math.exp(-waited_s / _WINDOW_S)
        self._tokens = self._tokens * decay + num_tokens
        self._seconds = self._seconds * decay + waited_s
        self._since_s = now_s

    def stop(self) -> None:
        """Note that nothing waits any more."""
        self._since_s = None

    def seconds(self, num_tokens: int, now_s: float) -> float:
        """Return how long so many tokens take to leave; 0 before there is much to go by."""
        measured_s = self._seconds + self._open_s(now_s)
        if measured_s < _LEAST_MEASURED_S or not self._tokens:
            return 0.0
        return num_tokens * measured_s / self._tokens

    def _open_s(self, now_s: float) -> float:
        return 0.0 if self._since_s is None else now_s - self._since_s
