"""Puts load on a service: calls that are due at given times, or so many at a time. Knows no service.

Runs in the process of the benchmark, on the same cores as the service: what the client costs, the service
does not have.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence

from bench.load import Call, LoadRun, poisson_arrivals

WARM_UP_S, MAX_CALLS = 4.0, 6000
PEAK_DEADLINE_S = 60.0
PATIENCE = 3
"""The deadline of an open load is this many times what a call takes at the peak."""

Send = Callable[[int, float], Awaitable[Call]]
"""Makes call number `index`, due at a time of `time.perf_counter`; never raises. Times in the `Call` it
returns are of that clock too."""


def add_load_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `peak_and_loads` reads."""
    parser.add_argument("--loads", type=_shares, default=(0.5, 0.8, 2.0), help="shares of the capacity")
    parser.add_argument("--peak-seconds", type=float, default=25, help="length of the closed loop")
    parser.add_argument("--load-seconds", type=float, default=45, help="length of each load")
    parser.add_argument(
        "--deadline", type=float, help=f"seconds each call may take; {PATIENCE} times the median at the peak"
    )


async def peak_and_loads(
    sender: Callable[[float], Send], options: argparse.Namespace, *, num_callers: int
) -> tuple[LoadRun, list[LoadRun]]:
    """Warm up, measure the peak by a closed loop, then put each open load of the options on.

    `sender` returns the function that makes calls with a deadline, in seconds. Sets `options.deadline` when
    it was left open.
    """
    await closed_loop(num_callers, WARM_UP_S, sender(PEAK_DEADLINE_S))
    calls = await closed_loop(num_callers, options.peak_seconds, sender(PEAK_DEADLINE_S))
    capacity = sum(call.is_good for call in calls) / max(call.finished_s for call in calls)
    median_s = statistics.median(call.finished_s - call.due_s for call in calls)
    options.deadline = options.deadline or PATIENCE * median_s
    peak = LoadRun(1.0, capacity, options.peak_seconds, calls)
    print(f"peak {peak.goodput:.1f} a second, {capacity:.2f} calls a second", flush=True)
    runs = []
    for seed, share in enumerate(options.loads):
        rate = share * capacity
        duration_s = load_duration(options.load_seconds, rate)
        arrivals = poisson_arrivals(rate, duration_s, seed=seed)
        runs.append(LoadRun(share, rate, duration_s, await open_loop(arrivals, sender(options.deadline))))
        print(f"{runs[-1].name}: goodput {runs[-1].goodput:.1f} a second", flush=True)
    return peak, runs


def load_duration(wanted_s: float, rate: float) -> float:
    """Return how long a load lasts: as long as wanted, or as about `MAX_CALLS` calls take to come."""
    return min(wanted_s, MAX_CALLS / rate)


async def open_loop(arrivals: Sequence[float], send: Send) -> list[Call]:
    """Send each call when it is due, whatever became of the others; return all when the last has ended."""
    start_s = time.perf_counter()
    tasks = []
    for index, arrival_s in enumerate(arrivals):
        await asyncio.sleep(start_s + arrival_s - time.perf_counter())
        tasks.append(asyncio.create_task(_send(send, index, start_s + arrival_s)))
    return [_after(start_s, call) for call in await asyncio.gather(*tasks)]


async def closed_loop(num_callers: int, duration_s: float, send: Send) -> list[Call]:
    """Let callers make one call after the other until the time is up; return them all."""
    start_s = time.perf_counter()
    calls: list[Call] = []

    async def caller(number: int) -> None:
        index = number
        while (now_s := time.perf_counter()) < start_s + duration_s:
            calls.append(await send(index, now_s))
            index += num_callers

    await asyncio.gather(*(caller(number) for number in range(num_callers)))
    return [_after(start_s, call) for call in calls]


async def _send(send: Send, index: int, due_s: float) -> Call:
    return await send(index, due_s)


def _after(start_s: float, call: Call) -> Call:
    first_s = None if call.first_s is None else call.first_s - start_s
    return Call(
        call.due_s - start_s, call.finished_s - start_s, call.units, call.status, first_s, call.gaps_s
    )


def _shares(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))
