"""Which rows of the key-value cache are taken. Knows neither sequences nor memory."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


class Slots:
    """Hands out rows lowest first, so that the rows a decode step must run stay few.

    Owned by the scheduler.
    """

    def __init__(self, num_slots: int) -> None:
        self._is_taken = [False] * num_slots
        self._free = list(range(num_slots))  # a heap
        self._high_water = 0

    @property
    def num_slots(self) -> int:
        """How many there are."""
        return len(self._is_taken)

    @property
    def num_free(self) -> int:
        """How many nobody has."""
        return len(self._free)

    @property
    def free(self) -> Sequence[int]:
        """Those nobody has, in no order."""
        return self._free

    @property
    def num_taken(self) -> int:
        """How many somebody has."""
        return len(self._is_taken) - len(self._free)

    @property
    def high_water(self) -> int:
        """One more than the highest taken slot: how many rows a decode step runs, holes included."""
        return self._high_water

    @property
    def is_mostly_holes(self) -> bool:
        """Whether at least half of the rows of a decode step are wasted."""
        return 0 < 2 * self.num_taken <= self._high_water

    def acquire(self) -> int:
        """Take the lowest free slot. There must be one: see `num_free`."""
        slot = heapq.heappop(self._free)
        self._is_taken[slot] = True
        self._high_water = max(self._high_water, slot + 1)
        return slot

    def release(self, slot: int) -> None:
        """Give a slot back."""
        assert self._is_taken[slot], f"slot {slot} is not taken"
        self._is_taken[slot] = False
        heapq.heappush(self._free, slot)
        while self._high_water > 0 and not self._is_taken[self._high_water - 1]:
            self._high_water -= 1
