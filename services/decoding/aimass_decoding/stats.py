"""What the engine has done so far, in numbers. Written by the engine thread, read by anyone."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

from aimass_decoding.request import FinishReason

_BOUNDS_MS = tuple(0.1 * 2 ** (i / 2) for i in range(40))
"""Upper bounds of the histogram's buckets: 0.1 ms to 74 s, each 1.41 times the one before."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot. Counters count from the start of the engine."""

    num_submitted: int
    num_finished: Mapping[FinishReason, int]
    """Sequences that ran to an end, by reason."""
    num_refused: int
    """Refused at the door: queue full, deadline lost, draining."""
    num_cancelled: int
    """Given up by their caller."""
    num_expired: int
    """Failed by their deadline."""
    num_failed: int
    """Failed by the model."""
    num_slots: int
    num_slots_taken: int
    num_waiting: int
    queue_tokens: int
    num_prefill_steps: int
    num_decode_steps: int
    num_prompt_tokens: int
    """Prompt tokens computed."""
    num_reused_prompt_tokens: int
    """Prompt tokens copied from another slot, or there already, instead of computed."""
    num_output_tokens: int
    """Tokens chosen."""
    num_drafted_tokens: int
    """Tokens guessed, from a sequence's own text or by a draft graph, and put to the graph."""
    num_confirmed_tokens: int
    """Those of them that were chosen: each saved a step."""
    graph_s: float
    """Seconds spent in runs of the graph. What a busy engine spends beside them is its own."""
    num_kept_prefixes: int
    """Prompts kept in free slots for later ones that start alike."""
    num_slot_copies: int
    """Copies between slots: shared prompts, kept ones that made room, and compaction."""
    num_runs_by_threads: Mapping[int, int]
    """Runs of the graph by number of threads; empty when it is fixed."""
    num_thread_trials: int
    """Runs that only tried whether another number of threads is faster."""
    num_thread_changes: int
    """How often another number of threads was taken."""
    mask_wait_ms: Mapping[str, float]
    """Milliseconds that a step waited for the mask of a sequence: `count`, `p50`, `p95`, `max`."""
    release_ms: Mapping[str, float]
    """Milliseconds from cancel or deadline to the release of the slot: `count`, `p50`, `p95`, `max`."""


@dataclass(slots=True)
class Histogram:
    """Durations in buckets that grow by the square root of two: percentiles are right within that factor."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(_BOUNDS_MS) + 1))
    max_ms: float = 0.0
    watcher: Callable[[float], None] | None = None
    """Is told each duration too."""

    def record(self, duration_ms: float) -> None:
        """Count one duration in milliseconds."""
        self.counts[bisect.bisect_left(_BOUNDS_MS, duration_ms)] += 1
        self.max_ms = max(self.max_ms, duration_ms)
        if self.watcher is not None:
            self.watcher(duration_ms)

    def plus(self, other: Histogram) -> Histogram:
        """Return the durations of both."""
        counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        return Histogram(counts, max(self.max_ms, other.max_ms))

    def percentile(self, share: float) -> float:
        """Return a bound in milliseconds that `share` (0 to 1) of the durations keep; 0 without any."""
        counts = list(self.counts)
        wanted, seen = share * sum(counts), 0
        for bound, count in zip(_BOUNDS_MS, counts, strict=False):
            seen += count
            if seen >= wanted and seen > 0:
                return min(bound, self.max_ms)
        return self.max_ms

    def summary(self) -> dict[str, float]:
        """Return `count`, `p50`, `p95` and `max`."""
        return {
            "count": sum(self.counts),
            "p50": self.percentile(0.5),
            "p95": self.percentile(0.95),
            "max": self.max_ms,
        }


@dataclass(slots=True)
class Counters:
    """Running totals. Owned by the engine thread; reading a number from elsewhere is harmless."""

    num_submitted: int = 0
    num_finished: Counter[FinishReason] = field(default_factory=Counter)
    num_refused: int = 0
    num_cancelled: int = 0
    num_expired: int = 0
    num_failed: int = 0
    num_prefill_steps: int = 0
    num_decode_steps: int = 0
    num_prompt_tokens: int = 0
    num_reused_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_drafted_tokens: int = 0
    num_confirmed_tokens: int = 0
    graph_s: float = 0.0
    num_slot_copies: int = 0
    mask_wait_ms: Histogram = field(default_factory=Histogram)
    release_ms: Histogram = field(default_factory=Histogram)

    def plus(self, other: Counters) -> Counters:
        """Return the totals of both."""
        total = Counters()
        for field_ in fields(self):
            mine, theirs = getattr(self, field_.name), getattr(other, field_.name)
            setattr(total, field_.name, mine.plus(theirs) if isinstance(mine, Histogram) else mine + theirs)
        return total
