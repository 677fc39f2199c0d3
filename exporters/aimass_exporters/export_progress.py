"""Draws the stages of an export on a terminal."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class TerminalProgress:
    """One line per stage: a bar where the stage knows how far it is, a pulse where it does not."""

    def __init__(self, console: Console) -> None:
        columns = (
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TimeElapsedColumn(),
        )
        self._bars = Progress(*columns, console=console)
        self._current: TaskID | None = None

    def __enter__(self) -> TerminalProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        self._bars.stop()

    def stage(self, title: str) -> None:
        self._finish()
        self._current = self._bars.add_task(title, total=None)

    def advance(self, done: float, total: float) -> None:
        if self._current is not None:
            self._bars.update(self._current, completed=done, total=total)

    def _finish(self) -> None:
        if self._current is not None:
            self._bars.update(self._current, completed=1, total=1)
