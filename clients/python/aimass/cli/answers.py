"""What the commands on texts share when they print: one JSON layout, and errors of single items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TypeVar

import typer

from aimass.classifications import Answers
from aimass.embeddings import ItemError

Value = TypeVar("Value")


def answers_object(answers: Answers[Value], shown: Callable[[Value], object]) -> dict[str, object]:
    """Return a call's answers as a JSON-ready object; null stands for an item that failed."""
    errors = {str(i): error_object(r) for i, r in enumerate(answers.results) if isinstance(r, ItemError)}
    return {
        "results": [None if isinstance(r, ItemError) else shown(r) for r in answers.results],
        "errors": errors,
        "model": answers.model,
        "model_version": answers.model_version,
        "usage": asdict(answers.usage),
        "timings": asdict(answers.timings),
    }


def error_object(error: ItemError) -> dict[str, str]:
    """Return an item's error as a JSON-ready object."""
    return {"reason": error.reason, "message": error.message}


def report_errors(results: Sequence[object], field: str) -> None:
    """Print a line for each failed item on standard error; end with exit code 1 if there is one."""
    report_item_errors({f"{field}[{i}]": r for i, r in enumerate(results) if isinstance(r, ItemError)})


def report_item_errors(errors: Mapping[str, ItemError]) -> None:
    """Do the same for errors by the names of their items."""
    for field, error in errors.items():
        typer.echo(f"aimass: {field}: {error.reason}: {error.message}", err=True)
    if errors:
        raise typer.Exit(1)
