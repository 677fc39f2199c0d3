"""A session that chooses its number of threads at run time: variants of one graph behind the `Session` seam.

Must not know tasks. Which variant runs is decided in `thread_choice`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from aimass.model.v1.manifest_pb2 import PRECISION_INT4, PRECISION_INT8, Precision
from numpy.typing import DTypeLike, NDArray

from aimass_serving.cpu import usable_cores
from aimass_serving.lanes import LaneSession
from aimass_serving.session import (
    Binding,
    BufferView,
    Device,
    DeviceBuffer,
    Session,
    SessionConfig,
    TensorInfo,
    open_session,
    open_thread_variants,
    resolve_device,
)
from aimass_serving.thread_choice import ThreadChoice

T = TypeVar("T")

_PACKED_APART = frozenset({PRECISION_INT8, PRECISION_INT4})
"""Precisions whose weights are packed for each number of threads by itself: see `open_thread_variants`."""

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ThreadUse:
    """How a session chose its threads so far."""

    num_runs: Mapping[int, int]
    """Runs by number of threads."""
    num_trials: int
    """Runs that only tried whether another number is faster."""
    num_changes: int
    """How often another number was taken."""


def open_adaptive_session(graph: Path, config: SessionConfig, *, precision: Precision.ValueType) -> Session:
    """Open a graph at several numbers of threads, one of which each run takes; or once where that is no use.

    Once it is on CUDA, on one core, with `num_threads` given, without `adapt_threads`, and, with a warning,
    when the temporary folder has no room for the weights, which floating-point precisions share. Errors as
    `open_session`.
    """
    counts = thread_counts(config, num_cores=usable_cores())
    sessions = _variants(graph, config, counts, shares_weights=precision not in _PACKED_APART)
    return sessions[0] if len(sessions) == 1 else AdaptiveSession(dict(zip(counts, sessions, strict=True)))


def open_lane_session(graph: Path, config: SessionConfig) -> Session:
    """Open a graph at all cores, and at one thread for each core, where batches run side by side.

    Each run takes what is fastest now, or there is no choice for the reasons `open_adaptive_session` names.
    The two do not share their weights: ONNX Runtime 1.31 ends the process when it opens some graphs, such as
    those of masked language models, on weights that it has packed into a file.
    """
    num_cores = usable_cores()
    if len(thread_counts(config, num_cores=num_cores)) == 1:
        return open_session(graph, config)
    whole, single = _variants(graph, config, (num_cores, 1), shares_weights=False)
    return AdaptiveSession({num_cores: whole, 1: LaneSession(single, num_lanes=num_cores)})


def _variants(
    graph: Path, config: SessionConfig, counts: Sequence[int], *, shares_weights: bool
) -> Sequence[Session]:
    """Open the graph once for each number of threads, or only once where that cannot be."""
    if len(counts) == 1:
        return [open_session(graph, config)]
    try:
        return open_thread_variants(graph, config, counts, shares_weights=shares_weights)
    except OSError as error:
        _LOGGER.warning("the number of threads stays %d: cannot share the weights: %s", counts[0], error)
        return [open_session(graph, config)]


def thread_counts(config: SessionConfig, *, num_cores: int) -> tuple[int, ...]:
    """Return the numbers of threads to choose from, the one for a quiet machine first.

    Half the cores is what wins when others keep the rest busy: a step ends with its last thread.
    """
    is_adaptive = config.adapt_threads and config.num_threads == 0 and num_cores > 1
    if not is_adaptive or resolve_device(config) is not Device.CPU:
        return (config.num_threads or num_cores,)
    return (num_cores, num_cores // 2)


def thread_use(session: Session) -> ThreadUse | None:
    """Return how a session chose its threads; None when it has no choice."""
    return session.thread_use if isinstance(session, AdaptiveSession) else None


def each_variant(session: Session) -> Iterator[None]:
    """Let all runs go to one variant after another, for checks and warm-up; once where there is no choice."""
    if not isinstance(session, AdaptiveSession):
        yield
        return
    try:
        for variant in range(session.num_variants):
            session.pinned = variant
            yield
    finally:
        session.pinned = None


class AdaptiveSession:
    """Sessions of one graph that differ only in their threads; each run takes the one that is fastest now.

    Runs are of one kind when the first input of the graph has about the same shape. For one thread at a time.
    """

    def __init__(
        self, variants: Mapping[int, Session], *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._thread_counts = tuple(variants)
        self._variants = tuple(variants.values())
        self._first_input = self._variants[0].inputs[0].name if self._variants[0].inputs else ""
        self._choice = ThreadChoice(len(self._variants))
        self._num_runs = [0] * len(self._variants)
        self._clock = clock
        self.pinned: int | None = None
        """The variant that takes all runs; None for the one of choice."""

    @property
    def num_variants(self) -> int:
        """How many there are to choose from."""
        return len(self._variants)

    @property
    def inputs(self) -> Sequence[TensorInfo]:
        return self._variants[0].inputs

    @property
    def outputs(self) -> Sequence[TensorInfo]:
        return self._variants[0].outputs

    @property
    def execution_provider(self) -> str:
        return self._variants[0].execution_provider

    @property
    def thread_use(self) -> ThreadUse:
        """How the threads were chosen so far."""
        num_runs = dict(zip(self._thread_counts, self._num_runs, strict=True))
        return ThreadUse(num_runs, self._choice.num_trials, self._choice.num_changes)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return self.timed([self._shape(feeds)], lambda variant: self._variants[variant].run(feeds))

    def run_each(self, batches: Sequence[Mapping[str, NDArray[Any]]]) -> list[dict[str, NDArray[Any]]]:
        shapes = [self._shape(feeds) for feeds in batches]
        return self.timed(shapes, lambda variant: self._variants[variant].run_each(batches))

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceBuffer:
        """Allocate in host memory, which every variant can bind."""
        return self._variants[0].allocate(shape, dtype)

    def bind(self) -> Binding:
        bindings = [variant.bind() for variant in self._variants]
        return _AdaptiveBinding(self, bindings, first_input=self._first_input)

    def copy(self, source: BufferView, target: BufferView) -> None:
        self._variants[0].copy(source, target)

    def timed(self, shapes: Sequence[tuple[int, ...]], run: Callable[[int], T]) -> T:
        """Run the variant of choice for first inputs of these shapes, and learn from the time it takes."""
        if self.pinned is not None:
            return run(self.pinned)
        kind, started_s = kind_of(as_one(shapes)), self._clock()
        variant = self._choice.choose(kind, started_s)
        result = run(variant)
        now_s = self._clock()
        self._num_runs[variant] += 1
        num_units = max(1, sum(map(math.prod, shapes)))
        self._choice.observe(kind, seconds=now_s - started_s, num_units=num_units, now_s=now_s)
        return result

    def _shape(self, feeds: Mapping[str, NDArray[Any]]) -> tuple[int, ...]:
        first = feeds.get(self._first_input)
        return () if first is None else first.shape


class _AdaptiveBinding:
    """One binding for each variant, all bound to the same memory."""

    def __init__(self, session: AdaptiveSession, bindings: Sequence[Binding], *, first_input: str) -> None:
        self._session = session
        self._bindings = bindings
        self._first_input = first_input
        self._shape: tuple[int, ...] = ()

    def bind_input(self, name: str, value: NDArray[Any] | BufferView) -> None:
        if name == self._first_input:
            self._shape = value.shape
        for binding in self._bindings:
            binding.bind_input(name, value)

    def bind_output(self, name: str, value: NDArray[Any] | BufferView) -> None:
        for binding in self._bindings:
            binding.bind_output(name, value)

    def run(self) -> None:
        self._session.timed([self._shape], lambda variant: self._bindings[variant].run())


def as_one(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape that would hold all rows of arrays with as many axes, the longest of each included."""
    if not shapes or not shapes[0]:
        return ()
    sides = [max(side) for side in zip(*(shape[1:] for shape in shapes), strict=True)]
    return (sum(shape[0] for shape in shapes), *sides)


def kind_of(shape: tuple[int, ...]) -> Hashable:
    """Return the same for shapes whose sides are about as long: exact up to 4, then two steps an octave."""
    return tuple(side if side <= 4 else math.ceil(2 * math.log2(side)) for side in shape)
