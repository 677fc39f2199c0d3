"""Remembers which prompts lie in which slots, so that a prompt that starts alike need not be computed again.

A pure data structure: copies nothing itself. Knows slots by number, and no sequences.

Exactness comes first: prompts are computed in chunks of one length, and only whole chunks are shared, so that
every number is the one that computing would have given. A prompt that is there to its last token is shared
whole, with the logits that followed it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Prefix:
    """Tokens at the start of a slot, computed as one prompt."""

    prompt_ids: NDArray[np.int64]  # [num_prompt_tokens]
    num_tokens: int
    """How many of them are computed."""
    scope: Hashable
    """Only prompts of the same scope may share it."""
    logits: NDArray[np.float32] | None = None  # [vocab]
    """What followed the prompt; None while it is not complete."""


@dataclass(frozen=True, slots=True)
class Match:
    """The first `num_tokens` of a slot are those of a prompt."""

    slot: int
    num_tokens: int
    logits: NDArray[np.float32] | None = None
    """What followed, when the whole prompt is there."""


class Prefixes:
    """The prompts in the slots, in use or left behind. Owned by the scheduler."""

    def __init__(self, *, chunk_tokens: int) -> None:
        self._chunk_tokens = chunk_tokens
        self._by_slot: dict[int, Prefix] = {}
        self._used_at: dict[int, int] = {}
        self._turns = count()

    def __contains__(self, slot: int) -> bool:
        """Whether a slot holds something that may be shared."""
        return slot in self._by_slot

    def put(self, slot: int, prefix: Prefix) -> None:
        """Say what a slot holds from now on."""
        self._by_slot[slot] = prefix
        self.touch(slot)

    def touch(self, slot: int) -> None:
        """Count a slot as the one used last."""
        self._used_at[slot] = next(self._turns)

    def drop(self, slot: int) -> None:
        """Forget what a slot holds."""
        self._by_slot.pop(slot, None)
        self._used_at.pop(slot, None)

    def move(self, source: int, target: int) -> None:
        """Say that what one slot held lies in another now, as recently used as before."""
        self.drop(target)
        if source in self._by_slot:
            self._by_slot[target] = self._by_slot.pop(source)
            self._used_at[target] = self._used_at.pop(source)

    def num_tokens(self, slot: int) -> int:
        """Return how many tokens of a slot must not be overwritten."""
        prefix = self._by_slot.get(slot)
        return 0 if prefix is None else prefix.num_tokens

    def is_worth_keeping(self, slot: int, *, beside: Match | None) -> bool:
        """Whether a slot holds more to share than a match does, which stays in any case."""
        prefix = self._by_slot.get(slot)
        if prefix is None:
            return False
        num_shareable = prefix.num_tokens // self._chunk_tokens * self._chunk_tokens
        is_covered = beside is not None and beside.slot == slot and beside.num_tokens >= num_shareable
        return num_shareable > 0 and not is_covered

    def oldest(self, slots: Iterable[int]) -> int | None:
        """Return the slot that was used least recently of those that hold something."""
        return min((s for s in slots if s in self._by_slot), key=self._used_at.__getitem__, default=None)

    def longest_match(self, prompt_ids: NDArray[np.int64], scope: Hashable) -> Match | None:
        """Return the slot that holds most of the start of a prompt [n]; None when none holds a whole chunk.

        Unless the whole prompt is there with its logits, its last token is left to compute. Scope None
        shares nothing.
        """
        if scope is None:
            return None
        candidates = (
            self._match(slot, prefix, prompt_ids)
            for slot, prefix in self._by_slot.items()
            if prefix.scope == scope
        )
        best = max(candidates, key=lambda match: (match.num_tokens, -match.slot), default=None)
        return best if best is not None and best.num_tokens > 0 else None

    def _match(self, slot: int, prefix: Prefix, prompt_ids: NDArray[np.int64]) -> Match:
        num_common = _num_common(prefix.prompt_ids[: prefix.num_tokens], prompt_ids)
        if prefix.logits is not None and num_common == len(prompt_ids) == len(prefix.prompt_ids):
            return Match(slot, num_common, prefix.logits)
        num_usable = min(num_common, len(prompt_ids) - 1)
        return Match(slot, num_usable // self._chunk_tokens * self._chunk_tokens)


def _num_common(left: NDArray[np.int64], right: NDArray[np.int64]) -> int:
    """Return how many tokens two prompts have in common at their start."""
    length = min(len(left), len(right))
    differs = left[:length] != right[:length]
    return int(differs.argmax()) if differs.any() else length
