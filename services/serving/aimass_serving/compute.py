"""The permit to compute: engines of several models on one CPU take turns, so that threads never exceed cores.

Knows threads only; must not know models or sessions.
"""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class ComputePermit:
    """A first-come, first-served permit for engine threads, held while a graph runs.

    A plain lock is not fair: an engine that takes it again at once would starve the others.
    Not re-entrant. State is owned by the lock inside.
    """

    def __init__(self, num_permits: int = 1) -> None:
        self._lock = threading.Lock()
        self._num_free = num_permits
        self._waiting: deque[threading.Lock] = deque()

    @property
    def num_waiting(self) -> int:
        """Threads that wait for their turn."""
        with self._lock:
            return len(self._waiting)

    def __enter__(self) -> None:
        with self._lock:
            if self._num_free:
                self._num_free -= 1
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        turn.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._num_free += 1
