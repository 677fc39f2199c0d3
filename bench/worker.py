"""One contender in a process of its own: its threads, memory and caches are nobody else's.

The parent side is `WorkerProcess`; `python -m bench.worker FACTORY` is the child. The parent sends one JSON
line with the config, then they speak one each way for every run. Must not know what a contender does, and
needs the standard library only: a child may run in an environment that does not hold our packages.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import IO, Any, Protocol

from bench.measurement import Outcome

STOP_S = 30.0
SHOWN_LOG_CHARS = 2000


class Runner(Protocol):
    """What a factory makes in the child: loads when it is made, runs scenarios, lets go when closed.

    A runner with settings that can change from run to run, such as threads, takes them as further keywords
    of `run`.
    """

    def run(self, scenario: str) -> Outcome:
        """Run a scenario once. Only the work itself is timed."""

    def close(self) -> None:
        """Stop everything that was started."""


class WorkerFailed(RuntimeError):
    """The child ended, or never got ready."""

    def __init__(self, factory: str, log: str) -> None:
        super().__init__(f"{factory} failed; the end of its log:\n{log[-SHOWN_LOG_CHARS:]}")


class WorkerProcess:
    """A contender in a child process, started when constructed. Close it, or use it in a `with` block."""

    def __init__(
        self, factory: str, config: Mapping[str, Any], *, num_threads: int, python: str = sys.executable
    ) -> None:
        self._factory = factory
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # lives as long as the process
        self._process = subprocess.Popen(
            [python, "-m", "bench.worker", factory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(num_threads), "TOKENIZERS_PARALLELISM": "false"},
        )
        self._send(config)

    def wait_until_ready(self) -> None:
        """Return when the contender is loaded. Raises `WorkerFailed` when it cannot be. Call it once."""
        self._receive()

    def run(self, scenario: str, setting: Mapping[str, Any] | None = None) -> Outcome:
        """Run a scenario once in the child. Raises `WorkerFailed` when the child dies of it."""
        self._send({"scenario": scenario, **(setting or {})})
        answer = self._receive()
        return Outcome(answer["units"], answer["seconds"], tuple(answer["answers"]), answer["details"])

    def close(self) -> None:
        """End the child, which ends what it started. Safe to repeat."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        _send(self._process.stdin, message)

    def _receive(self) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            raise WorkerFailed(self._factory, self._log.read())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def main(factory: str) -> None:
    """Make the contender, say that it is ready, and run what the parent names until it closes the pipe."""
    answers = _private_stdout()
    module, _, name = factory.partition(":")
    make: Callable[..., Any] = getattr(importlib.import_module(module), name)
    runner = make(**json.loads(sys.stdin.readline()))
    try:
        _send(answers, {})
        for line in sys.stdin:
            outcome = asdict(runner.run(**json.loads(line)))
            _send(answers, outcome)
    finally:
        runner.close()


def _private_stdout() -> IO[str]:
    """Return the real standard output; what libraries print goes to standard error from here on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _send(pipe: IO[str], message: Mapping[str, Any]) -> None:
    pipe.write(json.dumps(message) + "\n")
    pipe.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
