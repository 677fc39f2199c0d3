"""Work on a stream of items as they arrive, results in order. Must not know what the items are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


async def in_order(
    items: AsyncIterator[Item], work: Callable[[Item], Coroutine[Any, Any, Result]], *, window: int
) -> AsyncGenerator[Result, None]:
    """Yield the result of each item in order, working on up to `window` of them at once.

    A result counts until the next one is asked for, so a reader that stops, stops the reading of `items`.
    An error of `items` or `work` is raised in its place, after the results before it. Whatever is in work
    when this ends is cancelled: close it (`contextlib.aclosing`) where it may be left early.
    """
    queue: asyncio.Queue[asyncio.Task[Result] | None] = asyncio.Queue()
    room = asyncio.Semaphore(window)
    tasks: set[asyncio.Task[Result]] = set()
    reader = asyncio.create_task(_feed(items, work, queue=queue, room=room, tasks=tasks))
    try:
        while (task := await queue.get()) is not None:
            yield await task
            tasks.discard(task)
            room.release()
        await reader
    finally:
        await _cancel([reader, *tasks])


async def _feed(
    items: AsyncIterator[Item],
    work: Callable[[Item], Coroutine[Any, Any, Result]],
    *,
    queue: asyncio.Queue[asyncio.Task[Result] | None],
    room: asyncio.Semaphore,
    tasks: set[asyncio.Task[Result]],
) -> None:
    try:
        async for item in items:
            await room.acquire()
            task: asyncio.Task[Result] = asyncio.create_task(work(item))
            tasks.add(task)
            queue.put_nowait(task)
    finally:
        queue.put_nowait(None)


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
