"""A session that runs several batches side by side, each on a thread of its own.

An operator that is split over threads ends with its last thread, so where another process has a core every
operator waits for it. Batches side by side wait for one another once, at the end. For graphs whose runs do
not depend on one another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from numpy.typing import DTypeLike, NDArray

from aimass_serving.session import Binding, BufferView, DeviceBuffer, Session, TensorInfo

Feeds = Mapping[str, NDArray[Any]]


class LaneSession:
    """Runs up to `num_lanes` batches at a time through a session that uses one thread."""

    def __init__(self, session: Session, *, num_lanes: int) -> None:
        self._session = session
        self._num_lanes = num_lanes
        self._threads = ThreadPoolExecutor(max(1, num_lanes - 1), thread_name_prefix="lane")

    @property
    def inputs(self) -> Sequence[TensorInfo]:
        return self._session.inputs

    @property
    def outputs(self) -> Sequence[TensorInfo]:
        return self._session.outputs

    @property
    def execution_provider(self) -> str:
        return self._session.execution_provider

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Run one batch, in one lane."""
        return self._session.run(feeds)

    def run_each(self, batches: Sequence[Feeds]) -> list[dict[str, NDArray[Any]]]:
        """Run all batches, the largest first. When one fails, its error is raised when all lanes are free."""
        waiting = deque(sorted(range(len(batches)), key=lambda number: -_size(batches[number])))
        results: dict[int, dict[str, NDArray[Any]]] = {}

        def run_lane() -> None:
            while waiting:
                try:
                    number = waiting.popleft()
                except IndexError:  # another lane took the last one
                    return
                results[number] = self._session.run(batches[number])

        lanes = [self._threads.submit(run_lane) for _ in range(min(self._num_lanes, len(batches)) - 1)]
        try:
            run_lane()
        finally:
            ends = [lane.exception() for lane in lanes]  # waits: who comes next must find the cores free
        if error := next(filter(None, ends), None):
            raise error
        return [results[number] for number in range(len(batches))]

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceBuffer:
        return self._session.allocate(shape, dtype)

    def bind(self) -> Binding:
        """Start a binding, which runs in one lane."""
        return self._session.bind()

    def copy(self, source: BufferView, target: BufferView) -> None:
        self._session.copy(source, target)


def _size(feeds: Feeds) -> int:
    return max((array.size for array in feeds.values()), default=0)
