"""What closes at the end of a `with` block. Knows neither calls nor connections."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Closing(ABC):
    """Something to close, by `close` or at the end of a `with` block."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what is held. Safe to repeat."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
