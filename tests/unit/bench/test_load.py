"""Arrivals, percentiles and goodput of the open loads, and the client that makes the calls."""

import asyncio
import math
import statistics
from itertools import pairwise

import pytest

from bench.load import Call, LoadRun, goodput, percentiles_ms, poisson_arrivals, statuses_sentence
from bench.load_client import MAX_CALLS, closed_loop, load_duration, open_loop
from bench.load_report import goodput_table, latency_table


def call(finished_s: float, *, units: int = 1, status: str = "OK") -> Call:
    return Call(due_s=0.0, finished_s=finished_s, units=units, status=status)


def test_arrivals_have_the_rate_asked_for_and_no_memory() -> None:
    times = poisson_arrivals(20.0, 500.0, seed=1)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert len(times) / 500 == pytest.approx(20, rel=0.03)
    assert all(gap > 0 for gap in gaps)
    assert times[-1] < 500
    # Of an exponential distribution the deviation is the mean.
    assert statistics.stdev(gaps) == pytest.approx(1 / 20, rel=0.05)


def test_arrivals_are_the_same_in_every_run() -> None:
    assert poisson_arrivals(5, 10, seed=3) == poisson_arrivals(5, 10, seed=3)
    assert poisson_arrivals(5, 10, seed=3) != poisson_arrivals(5, 10, seed=4)


def test_a_load_that_would_be_too_many_calls_is_shorter_and_calls_come_to_its_end() -> None:
    duration_s = load_duration(45, rate=400)
    times = poisson_arrivals(400, duration_s, seed=3)
    assert duration_s == MAX_CALLS / 400
    assert times[-1] == pytest.approx(duration_s, rel=0.01)  # else its last part counts as bad goodput
    assert load_duration(45, rate=5) == 45


def test_percentiles_are_in_milliseconds_and_nothing_has_none() -> None:
    assert percentiles_ms([i / 1000 for i in range(101)]) == pytest.approx({"p50": 50, "p95": 95, "p99": 99})
    assert all(math.isnan(value) for value in percentiles_ms([]).values())


def test_goodput_counts_what_ended_well_within_the_window() -> None:
    calls = [
        call(1),
        call(2, units=10),
        call(3.9, units=5),
        call(3, units=7, status="DEADLINE_EXCEEDED"),
        call(4),
    ]
    assert goodput(calls, from_s=2, to_s=4) == pytest.approx(15 / 2)


def test_how_calls_ended_is_told_by_status() -> None:
    calls = [call(1), call(1, status="RESOURCE_EXHAUSTED"), call(2)]
    assert statuses_sentence(calls) == "2 OK, 1 RESOURCE_EXHAUSTED"


def test_the_tables_of_a_load_set_goodput_beside_the_peak() -> None:
    peak = LoadRun(1.0, 10.0, 4.0, [call(t / 10) for t in range(40)])
    overload = LoadRun(2.0, 20.0, 4.0, [call(t / 10) for t in range(0, 40, 2)])
    _, row = goodput_table([overload], peak, unit="texts/s").rows
    assert row[:3] == ["200% of capacity", 20.0, 20]
    assert row[4] == pytest.approx(0.5)
    latencies = latency_table("Latency", {"200% of capacity": [0.1, 0.2]})
    assert latencies.rows[0][-1] == 2


async def test_an_open_load_sends_when_calls_are_due_although_earlier_ones_still_run() -> None:
    started: list[int] = []
    last_started = asyncio.Event()

    async def send(index: int, due_s: float) -> Call:
        started.append(index)
        if index == 0:
            await last_started.wait()
        elif index == 2:
            last_started.set()
        return Call(due_s, due_s + 1, units=index, status="OK")

    calls = await open_loop([0.0, 0.001, 0.002], send)
    assert started == [0, 1, 2]
    assert [c.due_s for c in calls] == pytest.approx([0.0, 0.001, 0.002])
    assert [c.units for c in calls] == [0, 1, 2]


async def test_a_closed_load_gives_each_caller_one_call_at_a_time() -> None:
    running, most = 0, 0

    async def send(index: int, due_s: float) -> Call:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        await asyncio.sleep(0)
        running -= 1
        return Call(due_s, due_s, units=1, status="OK")

    calls = await closed_loop(3, 0.01, send)
    assert most == 3
    assert len(calls) >= 3
