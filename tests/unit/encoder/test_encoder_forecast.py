"""Deadlines under load: what the load of now cannot finish in time is refused at once, and so no collapse."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import pytest
from aimass_encoder.batcher import Batch, Batcher, BatchLimits
from aimass_serving.errors import AimassError

PATIENCE_S = 2.0
RUN_S, TOKEN_S = 0.006, 1 / 9000


ALIKE = [64]


def ragged(count: int) -> list[int]:
    """Return lengths in tokens: one half short, the other long."""
    generator = np.random.default_rng(1)
    short, long = generator.integers(8, 30, count), generator.integers(100, 256, count)
    return [int(n) for n in np.where(generator.random(count) < 0.5, short, long)]


@dataclass
class Simulation:
    """A graph whose batches take a time for each padded token, on a clock of its own."""

    lengths: list[int]
    batcher: Batcher[int] = field(default_factory=lambda: Batcher(BatchLimits()))
    now_s: float = 0.0
    num_good: int = 0
    num_late: int = 0
    """Computed, but too late."""
    num_expired: int = 0
    """Taken, and dropped without being computed."""
    num_refused: int = 0
    deadlines: dict[int, float] = field(default_factory=dict)

    def offer(self, number: int, at_s: float) -> None:
        self.deadlines[number] = at_s + PATIENCE_S
        items = [(number, self.lengths[number % len(self.lengths)])]
        try:
            self.batcher.submit(items, now_s=at_s, deadline_s=at_s + PATIENCE_S)
        except AimassError:
            self.num_refused += 1

    def run_batch(self, arrivals: deque[tuple[float, int]]) -> None:
        """Do what the pipeline does, without a graph: calls go on coming while a batch runs."""
        self.num_expired += len(self.batcher.expire(self.now_s))
        batch = self.batcher.select()
        if batch is None:
            self.now_s = arrivals[0][0] if arrivals else math.inf
            self._offer_until(self.now_s, arrivals)
            return
        self.batcher.take(batch)
        seconds = RUN_S + TOKEN_S * batch.padded_tokens
        self._offer_until(self.now_s + seconds, arrivals)
        self.now_s += seconds
        self.batcher.record(batch, seconds=seconds)
        self._count(batch)

    def _offer_until(self, until_s: float, arrivals: deque[tuple[float, int]]) -> None:
        while arrivals and arrivals[0][0] <= until_s:
            at_s, number = arrivals.popleft()
            self.offer(number, at_s)

    def _count(self, batch: Batch[int]) -> None:
        num_good = sum(self.deadlines[entry.payload] >= self.now_s for entry in batch.entries)
        self.num_good += num_good
        self.num_late += len(batch.entries) - num_good


RAGGED = ragged(997)


def loaded(texts_a_second: float, lengths: list[int], *, duration_s: float = 30) -> Simulation:
    """Return what came of so many calls of one text a second, at random times."""
    gaps = np.random.default_rng(0).exponential(1 / texts_a_second, size=int(2 * texts_a_second * duration_s))
    times = np.cumsum(gaps).tolist()
    arrivals = deque((at_s, number) for number, at_s in enumerate(times) if at_s < duration_s)
    sut = Simulation(lengths)
    while sut.now_s < duration_s:
        sut.run_batch(arrivals)
    return sut


def peak(lengths: list[int]) -> int:
    """Return the most calls that end in time at any load below an overload."""
    return max(loaded(rate, lengths).num_good for rate in (70, 80, 130, 140))


@pytest.mark.parametrize("lengths", [ALIKE, RAGGED], ids=["alike", "ragged"])
def test_goodput_stays_up_when_twice_and_four_times_as_many_calls_come(lengths: list[int]) -> None:
    most = peak(lengths)
    assert most > 60 * 30
    for factor in (2, 4):
        assert loaded(factor * most / 30, lengths).num_good >= 0.9 * most


@pytest.mark.parametrize("lengths", [ALIKE, RAGGED], ids=["alike", "ragged"])
def test_what_is_taken_ends_in_time_and_the_rest_is_refused_at_once(lengths: list[int]) -> None:
    sut = loaded(2 * peak(lengths) / 30, lengths)
    num_taken = len(sut.deadlines) - sut.num_refused
    assert sut.num_refused > 0.2 * len(sut.deadlines)
    assert sut.num_late + sut.num_expired < 0.05 * num_taken


def test_without_a_forecast_goodput_collapses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: what keeps goodput up is the forecast, not the simulation."""
    most = peak(ALIKE)
    monkeypatch.setattr(Batcher, "_check_forecast", lambda *_, **__: None)
    monkeypatch.setattr(Batcher, "_least_batch_s", lambda _: 0.0)
    sut = loaded(2 * most / 30, ALIKE)
    assert sut.num_good < 0.5 * most
    assert sut.num_late + sut.num_expired > sut.num_good
