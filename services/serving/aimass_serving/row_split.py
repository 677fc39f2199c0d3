"""A session that runs the rows of a batch side by side: parts of the batch, each on a thread of its own.

An operator that is split over threads ends with its last thread, so where another process has a core every
operator waits for it. Parts of a batch wait for one another once. For graphs whose inputs and outputs all
have the rows of the batch as their first axis, and whose rows do not depend on one another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from aimass_serving.session import Binding, BufferView, DeviceBuffer, Session, TensorInfo

Feeds = Mapping[str, NDArray[Any]]


class RowSplitSession:
    """Splits each batch over `num_parts` concurrent runs of a session that uses one thread."""

    def __init__(self, session: Session, *, num_parts: int) -> None:
        self._session = session
        self._num_parts = num_parts
        self._threads = ThreadPoolExecutor(num_parts - 1, thread_name_prefix="row-split")

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
        first, *others = parts_of(feeds, self._num_parts)
        if not others:
            return self._session.run(first)
        running = [self._threads.submit(self._session.run, part) for part in others]
        try:
            results = [self._session.run(first)]
        finally:
            ends = [part.exception() for part in running]  # waits: the next batch must find the cores free
        if error := next(filter(None, ends), None):
            raise error
        results += [part.result() for part in running]
        return {name: np.concatenate([result[name] for result in results]) for name in results[0]}

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceBuffer:
        return self._session.allocate(shape, dtype)

    def bind(self) -> Binding:
        """Start a binding, which runs unsplit."""
        return self._session.bind()

    def copy(self, source: BufferView, target: BufferView) -> None:
        self._session.copy(source, target)


def parts_of(feeds: Feeds, num_parts: int) -> list[Feeds]:
    """Cut the rows of a batch into at most `num_parts` runs of rows, as equal as can be and none empty."""
    num_rows = min((len(array) for array in feeds.values()), default=1)
    num_parts = max(1, min(num_parts, num_rows))
    ends = [num_rows * part // num_parts for part in range(num_parts + 1)]
    return [{name: array[start:end] for name, array in feeds.items()} for start, end in pairwise(ends)]
