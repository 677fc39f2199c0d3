"""Runs several beam searches together on one runner: every beam is a slot, and a step decodes them all.

A search joins and leaves between steps; its prompt is computed in chunks, one a step. A beam that goes on
from another is a copy of that beam's slot; one child of each beam stays where it is. Blocking, and of one
thread, as the runner is.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
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
    prompt_ids: NDArray[np.int64]  # [n]
    slots: list[int]
    """Slot of each beam. While the prompt is computed, the first alone holds something."""
    last_tokens: list[int]
    """Token of each beam that the next step feeds."""
    num_cached: int = 0
    """Tokens in each slot."""

    @property
    def is_reading(self) -> bool:
        """Whether part of the prompt is still to be computed."""
        return self.num_cached < len(self.prompt_ids)


class BeamBatch:
    """Beam searches that advance together. Owns the runner's slots; holds the permit while the graph runs."""

    def __init__(
        self,
        runner: Runner,
        *,
        max_slots: int,
        max_len: int,
        max_chunk_tokens: int = 128,
        permit: AbstractContextManager[object] | None = None,
    ) -> None:
        if not runner.can_copy_slots:
            raise ValueError("beam search copies slots, which this device cannot")
        self._runner = runner
        self._slots = Slots(max_slots)
        self._max_len = max_len
        self._max_chunk_tokens = max_chunk_tokens
        self._permit = permit or nullcontext()
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
        self,
        prompt_ids: NDArray[np.int64],
        options: BeamOptions,
        *,
        memory: SourceMemory | None = None,
        adapter: int = 0,
    ) -> BeamSearch:
        """Take in the search of a prompt [n], which the next steps compute.

        Raises `ValueError` when slots are lacking, see `num_free_slots`, or when prompt and text do not fit.
        """
        if options.num_beams > self._slots.num_free:
            raise ValueError(f"{options.num_beams} beams need as many slots, {self._slots.num_free} are free")
        if len(prompt_ids) + options.max_new_tokens - 1 > self._max_len:
            raise ValueError(f"prompt and text need more than the {self._max_len} tokens of a slot")
        slots = [self._slots.acquire() for _ in range(options.num_beams)]
        beams = RunningBeams(BeamSearch(options), prompt_ids, slots, [])
        try:
            for slot in slots:
                self._runner.set_adapter(slot, adapter)
            self._runner.set_memory(slots[0], memory)
        except BaseException:
            self._release(beams)
            raise
        self._running.append(beams)
        return beams.search

    def step(self) -> None:
        """Compute a chunk of one prompt, and advance every search that is past its prompt by one token.

        A search that is done leaves.
        """
        reading = next((beams for beams in self._running if beams.is_reading), None)
        if reading is not None:
            self._read_chunk(reading)
        writing = [beams for beams in self._running if not beams.is_reading]
        if writing:
            self._write(writing)

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

    def _read_chunk(self, beams: RunningBeams) -> None:
        first, *others = beams.slots
        start = beams.num_cached
        chunk = beams.prompt_ids[start : start + self._max_chunk_tokens]
        with self._permit:
            logits = self._runner.prefill(first, chunk, start=start)
        beams.num_cached += len(chunk)
        if beams.is_reading:
            return
        for slot in others:
            self._runner.copy_memory(first, slot)
        self._apply(beams, beams.search.advance(np.repeat(logits[np.newaxis], len(beams.slots), 0)))

    def _write(self, writing: list[RunningBeams]) -> None:
        token_ids = np.zeros(self._slots.high_water, np.int64)
        lengths = np.zeros(self._slots.high_water, np.int64)
        for beams in self._running:
            lengths[beams.slots] = beams.num_cached  # beside a prompt, the idle row's token lands behind it
        for beams in writing:
            token_ids[beams.slots] = beams.last_tokens
        with self._permit:
            logits = self._runner.decode(token_ids, lengths)
        for beams in writing:
            beams.num_cached += 1
            self._apply(beams, beams.search.advance(logits[beams.slots]))

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
