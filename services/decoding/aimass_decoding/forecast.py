"""How long a sequence will take once it has a slot, by those that ended lately. Pure: no clock, no queue."""

from __future__ import annotations

from dataclasses import dataclass, field

_SMOOTHING = 0.2


@dataclass(slots=True)
class Smoothed:
    """A smoothed measurement; 0 before the first."""

    value: float = 0.0

    def observe(self, value: float) -> None:
        """Take one more into account."""
        weight = _SMOOTHING if self.value else 1.0
        self.value += weight * (value - self.value)


@dataclass(slots=True)
class Forecast:
    """Measured from sequences among others, so the load of the last seconds is in it."""

    _prompt_token_s: Smoothed = field(default_factory=Smoothed)
    _token_s: Smoothed = field(default_factory=Smoothed)
    _tokens: Smoothed = field(default_factory=Smoothed)

    def observe(
        self,
        *,
        entered_s: float,
        first_token_s: float,
        last_token_s: float,
        num_prompt_tokens: int,
        num_tokens: int,
        is_whole: bool,
    ) -> None:
        """Record a sequence that left its slot with `num_tokens` tokens, at least 1.

        `num_prompt_tokens` were computed before them. One that is not whole was given up: it tells how fast
        tokens come, but not how many.
        """
        self._prompt_token_s.observe((first_token_s - entered_s) / max(1, num_prompt_tokens))
        if num_tokens > 1:
            self._token_s.observe((last_token_s - first_token_s) / (num_tokens - 1))
        if is_whole:
            self._tokens.observe(num_tokens)

    def seconds(self, *, num_prompt_tokens: int, max_new_tokens: int) -> float:
        """Return the time from its slot to its last token for a sequence; 0 before anything was measured.

        It is taken to be as long as others lately, or as long as it may be where that is less.
        """
        num_tokens = min(max_new_tokens, self._tokens.value)
        start_s = self._prompt_token_s.value * num_prompt_tokens
        return start_s + self._token_s.value * max(0.0, num_tokens - 1)
