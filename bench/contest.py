"""Holds a contest: starts every contender in its own process, lets them take turns, reports as it goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.machine import ForeignLoad
from bench.measurement import Contender, Outcome, Repetition, interleave
from bench.worker import WorkerProcess


@dataclass(frozen=True, slots=True)
class Entry:
    """A contender to start."""

    candidate: str
    variant: str
    factory: str
    """`module:Class`, made in the child with `config`."""
    config: Mapping[str, Any]
    num_threads: int


def hold(entries: Sequence[Entry], scenarios: Sequence[str], *, num_rounds: int) -> list[Repetition]:
    """Run all rounds and return every repetition. All contenders stay loaded; one runs at a time."""
    with ExitStack() as stack, _progress() as progress:
        task = progress.add_task("starting", total=len(entries))
        contenders = []
        for entry in entries:
            progress.update(task, description=f"starting {entry.candidate}, {entry.variant}")
            worker = stack.enter_context(
                WorkerProcess(entry.factory, entry.config, num_threads=entry.num_threads)
            )
            contenders.append(Contender(entry.candidate, entry.variant, worker.run))
            progress.advance(task)
        total = len(entries) * len(scenarios) * num_rounds
        progress.reset(task, description="warming up", total=total)
        repetitions = []
        for repetition in interleave(contenders, scenarios, num_rounds=num_rounds, measure_foreign=_measured):
            repetitions.append(repetition)
            progress.update(task, description=_sentence(repetition), advance=1)
        return repetitions


def _measured(run: Callable[[], Outcome]) -> tuple[Outcome, float]:
    with ForeignLoad() as foreign:
        outcome = run()
    return outcome, foreign.share


def _sentence(repetition: Repetition) -> str:
    rate = repetition.outcome.rate
    return f"round {repetition.round_index + 1}: {repetition.candidate}, {repetition.scenario}: {rate:.1f}/s"


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:<60}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )
