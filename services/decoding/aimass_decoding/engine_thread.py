"""The thread that an engine computes on: one inbox of commands, steps while there is work, an orderly end.

Knows no sequences: what a step is, and whether there is work, its owner says. All of the owner's state
belongs to this thread; nobody locks.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Protocol

from aimass_serving.errors import AimassError, Draining, ModelFailed

_LOGGER = logging.getLogger(__name__)

Command = Callable[[], None]
_Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]


class Work(Protocol):
    """What the thread advances."""

    @property
    def has_work(self) -> bool:
        """Whether a step would compute something."""

    def step(self) -> None:
        """Advance once, and publish what came of it."""

    def fail_all(self, error: AimassError) -> None:
        """End everything with an error, and publish it."""


class EngineThread:
    """Runs commands and steps one after the other. `put`, `drain` and `close` are for any thread."""

    def __init__(self, work: Work, *, model: str, name: str) -> None:
        self._work = work
        self._model = model
        self._inbox: SimpleQueue[Command] = SimpleQueue()
        self._idle_waiters: list[_Waiter] = []  # of the thread
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._start_lock = threading.Lock()
        self._is_draining = False
        self._is_closed = False

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    def start(self) -> None:
        """Start the thread, unless it was started before."""
        with self._start_lock:
            if self._thread.ident is None:
                self._thread.start()

    def put(self, command: Command) -> None:
        """Have a command carried out before the next step. One that raises ends all work with an error."""
        self._inbox.put(command)

    def put_all(self, commands: list[Command]) -> None:
        """Have new work taken in. Raises `Draining` when none is taken any more."""
        if self._is_draining:
            raise Draining
        for command in commands:
            self._inbox.put(command)
        if (
            self._is_closed
        ):  # the thread may have looked into its inbox for the last time before the lines above
            raise Draining

    def refuse_new(self) -> None:
        """Take no new work from now on."""
        self._is_draining = True

    async def drain(self) -> None:
        """Take no new work, and return when there is none."""
        self.refuse_new()
        if self._is_closed or not self._thread.is_alive():
            return
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._inbox.put(partial(self._idle_waiters.append, (loop, waiter)))
        await waiter

    def close(self) -> None:
        """Stop after the step in progress; what has not ended fails with `Draining`. Blocks. Idempotent."""
        self._is_draining = self._is_closed = True
        if self._thread.is_alive():
            self._inbox.put(_do_nothing)
            self._thread.join()

    def _run(self) -> None:
        """Take commands and step, until closed. A fault of our own ends the work, not the engine."""
        while not self._is_closed:
            try:
                self._obey()
                self._work.step()
            except Exception as error:
                _LOGGER.exception("the engine of model %s failed between steps", self._model)
                detail = f"the engine raised {type(error).__name__}"
                self._work.fail_all(ModelFailed(self._model, detail=detail))
        self._obey_pending()
        self._work.fail_all(Draining())
        self._release_idle_waiters()

    def _obey(self) -> None:
        """Carry out the commands in the inbox. Without work, wait for one."""
        if not self._work.has_work and self._inbox.empty():
            self._release_idle_waiters()
            self._inbox.get()()
        self._obey_pending()

    def _obey_pending(self) -> None:
        try:
            while True:
                self._inbox.get_nowait()()
        except Empty:
            return

    def _release_idle_waiters(self) -> None:
        waiters, self._idle_waiters[:] = self._idle_waiters[:], []
        for loop, waiter in waiters:
            call_soon(loop, partial(_resolve, waiter))


def call_soon(loop: asyncio.AbstractEventLoop, callback: Command) -> bool:
    """Run a callback on a loop's thread; return False when the loop has ended."""
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        return False
    return True


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _do_nothing() -> None:
    return
