"""Open loads: when calls arrive, and what became of them. Pure: no clock, no network.

A call counts as good when it was answered without error within its deadline, counted from the moment it was
due: a client that is late itself makes the service look worse, never better.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SHOWN_PERCENTILES = (50, 95, 99)
SETTLED_SHARE = 0.25
"""The first part of a load, while it builds up, does not count for goodput."""


@dataclass(frozen=True, slots=True)
class Call:
    """What became of one call. Times are seconds after the load began."""

    due_s: float
    finished_s: float
    units: int
    """Tokens or texts that came back."""
    status: str
    """`OK`, or the name of the gRPC status it ended with."""
    first_s: float | None = None
    """When the first message came; None when none came, or when there is only one."""
    gaps_s: tuple[float, ...] = ()
    """Times between messages."""

    @property
    def is_good(self) -> bool:
        """Whether it was answered in time."""
        return self.status == "OK"


def poisson_arrivals(rate: float, duration_s: float, *, seed: int) -> list[float]:
    """Return the times of a Poisson process, from 0 to `duration_s`."""
    generator, times = random.Random(seed), list[float]()
    now_s = generator.expovariate(rate)
    while now_s < duration_s:
        times.append(now_s)
        now_s += generator.expovariate(rate)
    return times


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Return p50, p95 and p99 in milliseconds; not a number when there is nothing to rank."""
    values = np.percentile(seconds, SHOWN_PERCENTILES) if seconds else [float("nan")] * 3
    return {f"p{rank}": 1e3 * float(value) for rank, value in zip(SHOWN_PERCENTILES, values, strict=True)}


def goodput(calls: Sequence[Call], *, from_s: float, to_s: float) -> float:
    """Return units a second of the good calls that ended within a window.

    What was begun before the window and ends in it makes up for what is begun in it and ends later.
    """
    units = sum(call.units for call in calls if call.is_good and from_s <= call.finished_s < to_s)
    return units / (to_s - from_s)


def statuses(calls: Sequence[Call]) -> Mapping[str, int]:
    """Return how many calls ended with each status."""
    return {status: sum(c.status == status for c in calls) for status in sorted({c.status for c in calls})}


def statuses_sentence(calls: Sequence[Call]) -> str:
    """Return the same in words."""
    return ", ".join(f"{count} {status}" for status, count in statuses(calls).items())


@dataclass(frozen=True, slots=True)
class LoadRun:
    """One load and its calls."""

    share: float
    """Arrivals as a share of the calls a second that the service ended at its capacity."""
    calls_per_s: float
    duration_s: float
    calls: Sequence[Call]

    @property
    def goodput(self) -> float:
        """Units a second of good calls, once the load has built up."""
        return goodput(self.calls, from_s=SETTLED_SHARE * self.duration_s, to_s=self.duration_s)

    @property
    def name(self) -> str:
        """What the tables call it."""
        return f"{self.share:.0%} of capacity"
