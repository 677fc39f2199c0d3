"""How a long export tells how far it is. Knows no terminal: `cli` draws it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the stages of a piece of work, in order."""

    def stage(self, title: str) -> None:
        """Begin a stage; the one before it is finished."""

    def advance(self, done: float, total: float) -> None:
        """Report how much of the current stage is done, in any unit."""


class SilentProgress:
    """A progress that nobody watches."""

    def stage(self, title: str) -> None:
        """Ignore the stage."""

    def advance(self, done: float, total: float) -> None:
        """Ignore the progress."""
