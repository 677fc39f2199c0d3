"""Streams: order kept, work in flight bounded, nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aimass_encoder.stream import in_order


async def numbers(count: int, *, read: list[int] | None = None) -> AsyncIterator[int]:
    for number in range(count):
        if read is not None:
            read.append(number)
        yield number


async def test_results_come_in_order_even_when_the_first_is_the_slowest() -> None:
    first_may_end = asyncio.Event()

    async def work(number: int) -> int:
        if number == 0:
            await first_may_end.wait()
        if number == 7:
            first_may_end.set()
        return number * 10

    assert [r async for r in in_order(numbers(8), work, window=8)] == [n * 10 for n in range(8)]


async def test_a_reader_that_stops_stops_the_reading_of_items() -> None:
    read: list[int] = []

    async def work(number: int) -> int:
        return number

    results = in_order(numbers(100, read=read), work, window=4)
    assert await anext(results) == 0
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(read) == 5  # four in work or unread, one waiting for room
    assert [r async for r in results] == list(range(1, 100))


async def test_an_error_is_raised_in_its_place_after_the_results_before_it() -> None:
    async def work(number: int) -> int:
        if number == 2:
            raise ValueError("two")
        return number

    results = in_order(numbers(10), work, window=10)
    assert [await anext(results), await anext(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        await anext(results)


async def test_an_error_of_the_items_is_raised_after_the_results_before_it() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 0
        raise ValueError("broken")

    async def work(number: int) -> int:
        return number

    results = in_order(broken(), work, window=10)
    assert await anext(results) == 0
    with pytest.raises(ValueError, match="broken"):
        await anext(results)


async def test_work_is_cancelled_when_the_consumer_leaves() -> None:
    cancelled: list[int] = []

    async def work(number: int) -> int:
        if number == 0:
            return 0
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        return number

    results = in_order(numbers(4), work, window=4)
    assert await anext(results) == 0
    for _ in range(10):
        await asyncio.sleep(0)
    await results.aclose()
    assert sorted(cancelled) == [1, 2, 3]
