"""What the commands on texts share when they print: one JSON layout, and errors of single items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TypeVar

import typer

from aimass.classifications import Answers
from aimass.embeddings import ItemError

Value = TypeVar("Value")


def answers_object(answers: Answers[Value], shown: Callable[[Value], object]) -> dict[str, object]:
    """Return a call's answers as a JSON-ready object; null stands for an item that failed."""
    errors = {
        str(i): {"reason": r.reason, "message": r.message}
        for i, r in enumerate(answers.results)
        if isinstance(r, ItemError)
    }
    return {
        "results": [None if isinstance(r, ItemError) else shown(r) for r in answers.results],
        "errors": errors,
        "model": answers.model,
        "model_version": answers.model_version,
        "usage": asdict(answers.usage),
        "timings": asdict(answers.timings),
    }


def report_errors(results: Sequence[object], field: str) -> None:
    """Print a line for each failed item on standard error; end with exit code 1 if there is one."""
    failed = [(i, r) for i, r in enumerate(results) if isinstance(r, ItemError)]
    for index, error in failed:
        typer.echo(f"aimass: {field}[{index}]: {error.reason}: {error.message}", err=True)
    if failed:
        raise typer.Exit(1)
