"""What a scenario of the generation benchmark asks of every contender. Knows no contender.

Scenario `4` is four ragged prompts that start together; `prefill` is one long prompt and its first token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.measurement import Outcome

PREFILL = "prefill"


@dataclass(frozen=True, slots=True)
class Work:
    """Prompts that start together, and how many tokens each gets."""

    prompts: Sequence[Sequence[int]]
    new_tokens: int
    is_prefill: bool

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.prompts))

    def outcome(
        self, rows: Sequence[Sequence[int]], seconds: float, details: dict[str, float] | None = None
    ) -> Outcome:
        """Return the outcome of a run that gave these new tokens, one row a prompt.

        Units are new tokens; of `prefill`, tokens of the prompt.
        """
        units = sum(map(len, self.prompts if self.is_prefill else rows))
        return Outcome(units, seconds, tuple(digest(row) for row in rows), details or {})


@dataclass(frozen=True, slots=True)
class Workload:
    """The prompts of all scenarios."""

    prompts: Sequence[Sequence[int]]
    long_prompt: Sequence[int]
    new_tokens: int

    def of(self, scenario: str) -> Work:
        """Return what a scenario asks for."""
        if scenario == PREFILL:
            return Work([self.long_prompt], 1, is_prefill=True)
        return Work(self.prompts[: int(scenario)], self.new_tokens, is_prefill=False)

    def heading(self, scenario: str) -> str:
        """Return the scenario as the table calls it."""
        if scenario == PREFILL:
            return f"prompt of {len(self.long_prompt)} tokens"
        return f"{scenario} stream{'s' if scenario != '1' else ''}"


def digest(token_ids: Iterable[int]) -> str:
    """Return a short name of a sequence of tokens."""
    return hashlib.sha256(np.asarray(list(token_ids), np.int64).tobytes()).hexdigest()[:16]
