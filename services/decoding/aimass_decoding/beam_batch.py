"""Runs several beam searches together on one runner: every beam is a slot, and a step decodes them all.

A search joins and leaves between steps. A beam that goes on from another is a copy of that beam's slot; one
child of each beam stays where it is. Blocking, and of one thread, as the runner is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aimass_decoding.beam_search import BeamMove, BeamOptions, BeamSearch
from aimass_decoding.cross_attention import SourceMemory
from aimass_decoding.runner import Runner
from aimass_decoding.slots import Slots


@dataclass(slots=True, eq=False)
class RunningBeams:
    """A search on its slots. Owned by its `BeamBatch`."""

    search: BeamSearch
    slots: list[int]
    """Slot of each beam."""
    last_tokens: list[int]
    """Token of each beam that the next step feeds."""
    num_cached: int
    """Tokens in each slot."""


class BeamBatch:
    """Beam searches that advance together. Owns the runner's slots."""

    def __init__(self, runner: Runner, *, max_slots: int, max_len: int) -> None:
        if not runner.can_copy_slots:
            raise ValueError("beam search copies slots, which this device cannot")
        self._runner = runner
        self._slots = Slots(max_slots)
        self._max_len = max_len
        self._running: list[RunningBeams] = []

    @property
    def num_free_slots(self) -> int:
        """How many more beams fit."""
        return self._slots.num_free

    @property
    def num_running(self) -> int:
        """Searches that have not ended."""
        return len(self._running)

    def join(
        self, prompt_ids: NDArray[np.int64], options: BeamOptions, *, memory: SourceMemory | None = None
    ) -> BeamSearch:
        """Compute a prompt [n] and begin its search; it may be done when this returns.

        Raises `ValueError` when slots are lacking, see `num_free_slots`, or when prompt and text do not fit.
        """
        if options.num_beams > self._slots.num_free:
            raise ValueError(f"{options.num_beams} beams need as many slots, {self._slots.num_free} are free")
        if len(prompt_ids) + options.max_new_tokens - 1 > self._max_len:
            raise ValueError(f"prompt and text need more than the {self._max_len} tokens of a slot")
        slots = [self._slots.acquire() for _ in range(options.num_beams)]
        beams = RunningBeams(BeamSearch(options), slots, [], len(prompt_ids))
        try:
            self._begin(beams, prompt_ids, memory)
        except BaseException:
            self._release(beams)
            raise
        return beams.search

    def step(self) -> None:
        """Advance every search by one token. A search that is done leaves."""
        if not self._running:
            return
        token_ids = np.zeros(self._slots.high_water, np.int64)
        lengths = np.zeros(self._slots.high_water, np.int64)
        for beams in self._running:
            token_ids[beams.slots] = beams.last_tokens
            lengths[beams.slots] = beams.num_cached
        logits = self._runner.decode(token_ids, lengths)
        for beams in list(self._running):
            beams.num_cached += 1
            self._apply(beams, beams.search.advance(logits[beams.slots]))

    def run(self) -> None:
        """Step until every search is done."""
        while self._running:
            self.step()

    def leave(self, search: BeamSearch) -> None:
        """Give a search up. Does nothing when it is done."""
        for beams in self._running:
            if beams.search is search:
                self._release(beams)
                self._running.remove(beams)
                return

    def _begin(self, beams: RunningBeams, prompt_ids: NDArray[np.int64], memory: SourceMemory | None) -> None:
        first, *others = beams.slots
        self._runner.set_memory(first, memory)
        logits = self._runner.prefill(first, prompt_ids, start=0)
        move = beams.search.advance(np.repeat(logits[np.newaxis], len(beams.slots), 0))
        if move is not None:
            for slot in others:
                self._runner.copy_memory(first, slot)
        self._running.append(beams)
        self._apply(beams, move)

    def _apply(self, beams: RunningBeams, move: BeamMove | None) -> None:
        if move is None:
            self._release(beams)
            self._running.remove(beams)
            return
        slots, copies = reordered(beams.slots, move.parents.tolist())
        for source, target in copies:
            self._runner.copy_slot(source, target, num_tokens=beams.num_cached)
        beams.slots, beams.last_tokens = slots, move.token_ids.tolist()

    def _release(self, beams: RunningBeams) -> None:
        for slot in beams.slots:
            self._slots.release(slot)


def reordered(slots: list[int], parents: list[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the slot of each child, and the copies `(source, target)` that make them what they should be.

    The first child of a beam takes its parent's slot; the others take the slots of beams that have none, so
    that no copy overwrites what another one reads.
    """
    free = [slot for beam, slot in enumerate(slots) if beam not in parents]
    taken: set[int] = set()
    children: list[int] = []
    copies: list[tuple[int, int]] = []
    for parent in parents:
        if parent not in taken:
            taken.add(parent)
            children.append(slots[parent])
        else:
            children.append(free.pop())
            copies.append((slots[parent], children[-1]))
    return children, copies
