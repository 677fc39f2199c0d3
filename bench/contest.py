"""Holds a contest: starts every contender in its own process, lets them take turns, reports as it goes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench.environment import PeerUnavailable
from bench.machine import ForeignLoad
from bench.measurement import Contender, Outcome, Repetition, interleave
from bench.worker import WorkerProcess


@dataclass(frozen=True, slots=True)
class Entry:
    """A contender to start. Those with equal factory and config share a process."""

    candidate: str
    variant: str
    factory: str
    """`module:Class`, made in the child with `config`."""
    config: Mapping[str, Any]
    num_threads: int
    """Most threads the process may start for OpenMP."""
    setting: Mapping[str, Any] = field(default_factory=dict)
    """Further keywords of each run, for runners that change their threads or batches from run to run."""
    warm_up: Sequence[str] | None = None
    """Scenarios to run before anything counts; None is each of the contest's."""
    max_rounds: int | None = None
    """Rounds it takes part in, for the slow; None is all."""
    python: str = sys.executable
    """The interpreter of its environment."""

    @property
    def process_key(self) -> str:
        """Equal for entries that share a process."""
        return json.dumps([self.python, self.factory, self.config, self.num_threads])


def lineup(makers: Iterable[Callable[[], Sequence[Entry]]]) -> tuple[list[Entry], list[str]]:
    """Return the entries of all who can take part here, and a sentence for each who cannot."""
    entries, absences = list[Entry](), list[str]()
    for make in makers:
        try:
            entries += make()
        except PeerUnavailable as error:
            absences.append(f"Not run: {error}")
    return entries, list(dict.fromkeys(absences))


class RoundClock:
    """Says whether one more round of a scenario fits what is left of the time. Owns the start."""

    def __init__(
        self,
        max_s: float,
        *,
        max_rounds: Mapping[str, int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._max_rounds = max_rounds or {}
        self._ends_s = clock() + max_s
        self._seconds: dict[tuple[str, int], dict[str, float]] = {}

    def note(self, repetition: Repetition) -> None:
        """Note how long a repetition took; of a candidate's settings the fastest."""
        took = self._seconds.setdefault((repetition.scenario, repetition.round_index), {})
        name, seconds = repetition.candidate, repetition.outcome.seconds
        took[name] = min(took.get(name, seconds), seconds)

    def has_time(self, scenario: str) -> bool:
        """Return whether another round, if those that still take part take as long again, ends in time."""
        last = max(index for name, index in self._seconds if name == scenario)
        expected_s = sum(
            seconds
            for candidate, seconds in self._seconds[scenario, last].items()
            if self._max_rounds.get(candidate, last + 2) > last + 1
        )
        return self._clock() + expected_s <= self._ends_s


def hold(
    entries: Sequence[Entry],
    scenarios: Sequence[str],
    *,
    num_rounds: int,
    max_s: float = float("inf"),
    carries_over: bool = True,
) -> list[Repetition]:
    """Run the rounds, at least one, and return every repetition. All stay loaded; one runs at a time.

    No further round begins that would probably end later than `max_s` after the call. `carries_over`: see
    `SettingChoice`.
    """
    few_rounds = {e.candidate: e.max_rounds for e in entries if e.max_rounds is not None}
    clock = RoundClock(max_s, max_rounds=few_rounds)
    with ExitStack() as stack, _progress() as progress:
        task = progress.add_task("starting", total=None)
        workers = _started(entries, stack)
        progress.update(task, description="warming up")
        contenders = [
            Contender(
                e.candidate,
                e.variant,
                partial(workers[e.process_key].run, setting=e.setting),
                e.warm_up,
                e.max_rounds,
            )
            for e in entries
        ]
        repetitions = []
        for repetition in interleave(
            contenders,
            scenarios,
            num_rounds=num_rounds,
            measure_foreign=_measured,
            may_go_on=clock.has_time,
            carries_over=carries_over,
        ):
            clock.note(repetition)
            repetitions.append(repetition)
            progress.update(task, description=_sentence(repetition))
        return repetitions


def _started(entries: Sequence[Entry], stack: ExitStack) -> dict[str, WorkerProcess]:
    """Start the processes side by side, and return them by key when all are ready."""
    workers = {}
    for entry in entries:
        if entry.process_key not in workers:
            worker = WorkerProcess(
                entry.factory, entry.config, num_threads=entry.num_threads, python=entry.python
            )
            workers[entry.process_key] = stack.enter_context(worker)
    for worker in workers.values():
        worker.wait_until_ready()
    return workers


def _measured(run: Callable[[], Outcome]) -> tuple[Outcome, float]:
    with ForeignLoad() as foreign:
        outcome = run()
    return outcome, foreign.share


def _sentence(repetition: Repetition) -> str:
    what = f"{repetition.candidate}, {repetition.variant}, {repetition.scenario}"
    return f"round {repetition.round_index + 1}: {what}: {repetition.outcome.rate:.1f}/s"


def _progress() -> Progress:
    return Progress(TextColumn("{task.description:<80}"), BarColumn(), TimeElapsedColumn())
