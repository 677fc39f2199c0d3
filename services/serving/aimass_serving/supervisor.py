"""Runs several services as child processes of one foreground command: the end of one is the end of all.

Must not know which services there are, nor what they serve.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aimass_serving.errors import StartFailure

MAX_LINE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Program:
    """One service to run: its name, and a command line that prints one JSON line when it is ready.

    The line's `address` is null when the service has nothing to serve; it may then end.
    """

    name: str
    argv: tuple[str, ...]


class ServiceEnded(StartFailure):
    """A service ended that should have gone on."""

    def __init__(self, name: str, exit_code: int) -> None:
        cause = f"signal {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit code {exit_code}"
        super().__init__(f"{name} ended with {cause}; the other services were stopped")


class NoServiceNeeded(StartFailure):
    """No service has anything to serve."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(
            f"the store holds no model for any installed service ({', '.join(names) or 'none'}); "
            "export one with `aimass export`, or name another store with --store"
        )


class Supervisor:
    """Owns the children from their start to their end. Lives on the event loop."""

    def __init__(self, programs: Sequence[Program]) -> None:
        self._programs = tuple(programs)
        self._children: list[_Child] = []

    async def run(self, stop: asyncio.Event, *, on_ready: Callable[[list[dict[str, Any]]], None]) -> None:
        """Start all, call `on_ready` with the ready lines, and end all when `stop` is set.

        Raises `ServiceEnded` when one ends by itself and `NoServiceNeeded` when all have nothing to serve;
        no child is left running.
        """
        width = max((len(program.name) for program in self._programs), default=0)
        try:
            for program in self._programs:
                self._children.append(await _Child.start(program, width))
            if await _first(self._all_ready(), stop.wait()):
                return
            needed = [child for child in self._children if child.is_needed]
            if not needed:
                raise NoServiceNeeded([program.name for program in self._programs])
            on_ready([child.ready.result() for child in needed])
            await _first(self._one_ended(), stop.wait())
        finally:
            await self._end_all()

    def kill(self) -> None:
        """End all at once."""
        for child in self._children:
            child.send(signal.SIGKILL)

    async def _all_ready(self) -> None:
        for child in self._children:
            await _first(self._one_ended(), child.ready)

    async def _one_ended(self) -> None:
        """Wait until a child that is needed ends; raise `ServiceEnded`."""
        ends = [asyncio.create_task(child.failed()) for child in self._children]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            next(end for end in ends if end.done()).result()
        finally:
            for end in ends:
                end.cancel()

    async def _end_all(self) -> None:
        for child in self._children:
            child.send(signal.SIGTERM)
        await asyncio.gather(*(child.ended for child in self._children))


class _Child:
    """One child process. Its standard input is a pipe that closes when this process dies: so it ends too."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, width: int) -> None:
        self.name = name
        self.ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._process = process
        self._prefix = f"{name:<{width}} | "
        self.ended = asyncio.create_task(self._follow())

    @classmethod
    async def start(cls, program: Program, width: int) -> _Child:
        pipe = asyncio.subprocess.PIPE
        # A session of its own: Ctrl-C in the terminal reaches this process only, which ends the children.
        process = await asyncio.create_subprocess_exec(
            *program.argv, stdin=pipe, stdout=pipe, stderr=pipe, limit=MAX_LINE_BYTES, start_new_session=True
        )
        return cls(program.name, process, width)

    @property
    def is_needed(self) -> bool:
        """Whether it has something to serve, as far as it has said."""
        return not self.ready.done() or self.ready.result()["address"] is not None

    async def failed(self) -> None:
        """Wait for its end; raise `ServiceEnded`. Never returns for a child that has nothing to serve."""
        code = await asyncio.shield(self.ended)
        if self.is_needed:
            raise ServiceEnded(self.name, code)
        await asyncio.Event().wait()

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self._process.returncode is None:
            self._process.send_signal(number)

    async def _follow(self) -> int:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        await asyncio.gather(
            self._each_line(self._process.stdout, self._read_ready_line),
            self._each_line(self._process.stderr, self._pass_on),
        )
        return await self._process.wait()

    async def _each_line(self, stream: asyncio.StreamReader, act: Callable[[str], None]) -> None:
        while line := await stream.readline():
            act(line.decode(errors="replace").rstrip("\n"))

    def _read_ready_line(self, line: str) -> None:
        facts = _ready_facts(line)
        if facts is None or self.ready.done():
            self._pass_on(line)
        else:
            self.ready.set_result(facts)

    def _pass_on(self, line: str) -> None:
        sys.stderr.write(f"{self._prefix}{line}\n")


def _ready_facts(line: str) -> dict[str, Any] | None:
    """Return what a ready line says; None when it is some other line, as a library may print."""
    try:
        facts = json.loads(line)
    except ValueError:
        return None
    return facts if isinstance(facts, dict) and "address" in facts else None


async def _first(work: Awaitable[Any], other: Awaitable[Any]) -> bool:
    """Wait for one of two; return whether `other` came first. An error of the one that ended is raised."""
    one, two = asyncio.ensure_future(work), asyncio.ensure_future(other)
    done, pending = await asyncio.wait((one, two), return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    for task in done:
        task.result()
    return one not in done
