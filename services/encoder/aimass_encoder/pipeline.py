"""Brings waiting texts through the graph, batch by batch, on one compute thread.

Three threads take part. The event loop submits and cancels; the compute thread runs batches; the side thread
lays out the next batch while one runs, and reads results off the last one. They share the batcher, under one
lock that is never held while a graph runs. Must not know texts, images or vectors: what travels is a row.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np
from aimass_serving.errors import AimassError, DeadlineExceeded, Draining, ModelFailed
from aimass_serving.telemetry import emit_phase
from numpy.typing import NDArray
from opentelemetry.trace import Link, SpanContext, get_current_span

from aimass_encoder.batcher import Batch, Batcher, BatchLimits
from aimass_encoder.head import Head
from aimass_encoder.runner import Outputs

logger = logging.getLogger(__name__)
Reading = TypeVar("Reading")


class Row(Protocol):
    """One input of a graph, such as the token ids of a text."""

    @property
    def num_tokens(self) -> int:
        """What it costs; at least 1."""

    @property
    def identity(self) -> Hashable:
        """Equal for rows that are equal to the graph."""


class LaidOutRows(Protocol):
    """Rows as one batch of arrays."""

    @property
    def mask(self) -> NDArray[np.int64]:
        """[rows, seq]: 1 for tokens, 0 for padding."""

    @property
    def shown(self) -> Mapping[str, NDArray[Any]]:
        """What heads see beside the graph's outputs, first axis = rows."""


class RowRunner(Protocol):
    """A graph that runs batches of rows. One call at a time; laying out may go on beside it."""

    def lay_out(self, rows: Sequence[Any], *, length: int) -> Any:
        """Return rows of at most `length` tokens as `LaidOutRows`."""

    def run_each(self, batches: Sequence[Any]) -> Sequence[Outputs]:
        """Run the graph once on each of what `lay_out` gave, side by side where that is faster."""


@dataclass(slots=True, eq=False)
class EncodeCall:
    """The rows of one call on their way. Owned by the event loop; the compute thread writes the times."""

    readings: list[Any]
    """One place for each row."""
    done: asyncio.Future[None]
    """Ends when all readings are there, or with what the whole call failed of."""
    span: SpanContext
    submitted_ns: int
    started_ns: int = 0
    """When its first batch began; 0 while none has."""
    finished_ns: int = 0
    """When its latest batch ended; 0 while none has."""
    num_batches: int = 0
    num_read: int = 0
    """Rows whose reading is there."""


@dataclass(frozen=True, slots=True, eq=False)
class Seat:
    """A call's claim to the reading of one row."""

    call: EncodeCall
    index: int
    """Place of the row in the call."""


@dataclass(slots=True, eq=False)
class Work:
    """One row that is computed once, for every call that waits for it. Guarded by the pipeline's lock."""

    row: Row
    head: Head[Any]
    key: tuple[int, Hashable]
    """Equal for works that have the same reading."""
    seats: list[Seat] = field(default_factory=list)
    """Who waits; empty when all have left."""
    is_running: bool = False


@dataclass(frozen=True, slots=True)
class _Assembled:
    """A batch with its arrays."""

    batch: Batch[Work]
    pieces: Sequence[LaidOutRows]
    """In the order of the batch's pieces."""


@dataclass(frozen=True, slots=True)
class EncodeTimes:
    """When a call's work was done, on the wall clock (`time.time_ns`)."""

    submitted_ns: int
    started_ns: int
    finished_ns: int

    @classmethod
    def none(cls) -> EncodeTimes:
        """Return the times of a call that had nothing to compute."""
        now_ns = time.time_ns()
        return cls(now_ns, now_ns, now_ns)


@dataclass(slots=True)
class PipelineStats:
    """Counters since the start, for operators and tests."""

    num_batches: int = 0
    num_texts: int = 0
    num_tokens: int = 0
    num_padded_tokens: int = 0
    num_cancelled: int = 0
    """Texts that left before they cost compute, because nobody waited for them any more."""
    num_expired: int = 0
    """Texts that left before they cost compute, because their deadline passed."""
    num_shared: int = 0
    """Texts that cost nothing, because an identical one was waiting or being computed."""


class BatchPipeline:
    """Runs rows of all calls of one model through its graph.

    Rows that are equal, and read by the same head, are computed once while one of them is on its way. Rows
    leave before they cost compute when every call that waits for them was cancelled or has lost its deadline;
    those of the batch that is running finish with it and are thrown away. A graph that fails, fails the rows
    of its batch only.
    """

    def __init__(
        self,
        runner: RowRunner,
        limits: BatchLimits,
        *,
        model: str,
        permit: AbstractContextManager[None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._model = model
        self._permit = permit
        self._clock = clock
        self._changed = threading.Condition()
        self._batcher: Batcher[Work] = Batcher(limits)  # guarded by _changed, like the counters below
        self._in_flight: dict[tuple[int, Hashable], Work] = {}
        self._stats = PipelineStats()
        self._calls: set[EncodeCall] = set()
        self._is_draining = False
        self._is_closed = False
        self._busy_since_s = (
            0.0  # of the compute thread: the end of the last batch, or when work came after it
        )
        self._side = ThreadPoolExecutor(1, thread_name_prefix=f"encode-side-{model}")
        self._thread = threading.Thread(target=self._loop, name=f"encode-{model}", daemon=True)

    def start(self) -> None:
        """Start the compute thread."""
        self._thread.start()

    def stats(self) -> PipelineStats:
        """Return the counters."""
        with self._changed:
            return replace(self._stats)

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait for a batch."""
        with self._changed:
            return self._batcher.queued_tokens

    def check_admission(self, *, deadline_s: float | None) -> None:
        """Raise what `run` would: `Draining`, `Overloaded`, `DeadlineExceeded`. Cheap; call it first."""
        with self._changed:
            self._check_open()
            self._batcher.check_admission(now_s=self._clock(), deadline_s=_or_never(deadline_s))

    async def run(
        self, rows: Sequence[Row], head: Head[Reading], *, deadline_s: float | None
    ) -> tuple[Sequence[Reading | AimassError], EncodeTimes]:
        """Return what `head` reads off each row, in order, and when.

        Readings may be shared with other calls: they are not to be written to. All rows are admitted or none.
        Raises `Overloaded`, `DeadlineExceeded`, `Draining`. When cancelled, its rows leave the queue at once.
        Records the phases `queue` and `batch`, whatever the end.
        """
        call = EncodeCall(
            readings=[None] * len(rows),
            done=asyncio.get_running_loop().create_future(),
            span=get_current_span().get_span_context(),
            submitted_ns=time.time_ns(),
        )
        works = self._submit(call, rows, head, deadline_s=_or_never(deadline_s))
        try:
            await call.done
        finally:
            self._leave(call, works)
            _emit_phases(call)
        return call.readings, EncodeTimes(call.submitted_ns, call.started_ns, call.finished_ns)

    async def drain(self) -> None:
        """Take no new calls, and return when all that were taken have ended."""
        self._is_draining = True
        if self._calls:
            await asyncio.wait([call.done for call in self._calls])

    def close(self) -> None:
        """Stop the threads when the running batch is done; calls that wait fail. May be called twice."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            waiting = list(self._calls)
        for call in waiting:
            _call_soon(call, _fail, call, Draining())
        if self._thread.is_alive():
            self._thread.join()
        self._side.shutdown(wait=True)

    # On the event loop.

    def _submit(
        self, call: EncodeCall, rows: Sequence[Row], head: Head[Any], *, deadline_s: float
    ) -> Sequence[Work]:
        """Admit a call; return the work of each row, its own or one that another row began."""
        with self._changed:
            self._check_open()
            now_s = self._clock()
            self._batcher.check_admission(now_s=now_s, deadline_s=deadline_s)
            begun: dict[tuple[int, Hashable], Work] = {}
            works = [self._work(row, head, begun) for row in rows]
            items = [(work, work.row.num_tokens) for work in begun.values()]
            if items:
                self._batcher.submit(items, now_s=now_s, deadline_s=deadline_s)
            self._in_flight.update(begun)
            self._stats.num_shared += len(works) - len(begun)
            for index, work in enumerate(works):
                self._sit_down(Seat(call, index), work, now_s=now_s, deadline_s=deadline_s)
            self._calls.add(call)
            self._changed.notify_all()
        return works

    def _work(self, row: Row, head: Head[Any], begun: dict[tuple[int, Hashable], Work]) -> Work:
        """Return the work on its way that a row can share; else begin one."""
        key = id(head), row.identity
        return self._in_flight.get(key) or begun.setdefault(key, Work(row, head, key))

    def _sit_down(self, seat: Seat, work: Work, *, now_s: float, deadline_s: float) -> None:
        if work.is_running:
            seat.call.started_ns = seat.call.started_ns or seat.call.submitted_ns
        elif work.seats:
            self._batcher.share(work, now_s=now_s, deadline_s=deadline_s)
        work.seats.append(seat)

    def _leave(self, call: EncodeCall, works: Sequence[Work]) -> None:
        call.done.cancel()  # so that `drain` sees a cancelled call end
        with self._changed:
            self._calls.discard(call)
            if call.num_read == len(works):
                return
            for work in works:
                work.seats = [seat for seat in work.seats if seat.call is not call]
            unwanted = {work for work in works if not work.seats and not work.is_running}
            self._stats.num_cancelled += self._batcher.remove(unwanted)
            for work in unwanted:
                self._forget(work)

    def _forget(self, work: Work) -> None:
        if self._in_flight.get(work.key) is work:
            del self._in_flight[work.key]

    def _check_open(self) -> None:
        if self._is_draining or self._is_closed:
            raise Draining

    # On the compute thread.

    def _loop(self) -> None:
        prefetched: _Assembled | None = None
        self._busy_since_s = self._clock()
        while (assembled := self._next(prefetched)) is not None:
            ahead = self._side.submit(self._prefetch)
            self._compute(assembled)
            prefetched = ahead.result()

    def _next(self, prefetched: _Assembled | None) -> _Assembled | None:
        """Wait for work and take the next batch; None when closed. A prefetched batch gives way if stale."""
        with self._changed:
            while not self._is_closed:
                self._expire()
                if prefetched is not None and self._batcher.is_current(prefetched.batch):
                    self._take(prefetched.batch)
                    return prefetched
                if (batch := self._batcher.select()) is not None:
                    self._take(batch)
                    break
                self._changed.wait()
                self._busy_since_s = self._clock()
            else:
                return None
        return self._assemble(batch)

    def _take(self, batch: Batch[Work]) -> None:
        self._batcher.take(batch)
        for entry in batch.entries:
            entry.payload.is_running = True

    def _expire(self) -> None:
        expired = self._batcher.expire(self._clock())
        if expired:
            self._stats.num_expired += len(expired)
            self._deliver([(work, DeadlineExceeded(phase="queue")) for work in expired])

    def _compute(self, assembled: _Assembled) -> None:
        """Run one batch and hand its outputs to the side thread."""
        start_ns = time.time_ns()
        for call in self._waiting_calls(assembled.batch):
            call.started_ns = call.started_ns or start_ns
        outputs = self._run(assembled.pieces)
        end_ns = time.time_ns()
        with self._changed:
            began_s, self._busy_since_s = self._busy_since_s, self._clock()
            self._batcher.record(assembled.batch, seconds=self._busy_since_s - began_s)
            self._count_batch(assembled.batch)
        self._side.submit(self._publish, assembled, outputs, start_ns, end_ns)

    def _run(self, pieces: Sequence[LaidOutRows]) -> Sequence[Outputs] | AimassError:
        try:
            with self._permit:
                return self._runner.run_each(pieces)
        except Exception as error:
            shapes = [piece.mask.shape for piece in pieces]
            logger.exception("model %s failed on a batch of shapes %s", self._model, shapes)
            return ModelFailed(self._model, detail=f"its graph raised {type(error).__name__}")

    # On the side thread.

    def _prefetch(self) -> _Assembled | None:
        with self._changed:
            batch = self._batcher.select()
        return self._assemble(batch) if batch else None

    def _assemble(self, batch: Batch[Work]) -> _Assembled:
        pieces = [
            self._runner.lay_out([entry.payload.row for entry in piece.entries], length=piece.padded_length)
            for piece in batch.pieces
        ]
        return _Assembled(batch, pieces)

    def _publish(
        self, assembled: _Assembled, outputs: Sequence[Outputs] | AimassError, start_ns: int, end_ns: int
    ) -> None:
        if isinstance(outputs, AimassError):
            read: list[tuple[Work, Any]] = [(entry.payload, outputs) for entry in assembled.batch.entries]
        else:
            read = []
            for piece, rows, values in zip(assembled.batch.pieces, assembled.pieces, outputs, strict=True):
                read += self._read([entry.payload for entry in piece.entries], rows, values)
        calls = self._waiting_calls(assembled.batch)
        for call in calls:
            call.finished_ns = end_ns
            call.num_batches += 1
        self._deliver(read)
        _emit_batch(assembled.batch, calls, start_ns, end_ns)

    def _read(self, works: Sequence[Work], laid_out: LaidOutRows, outputs: Outputs) -> list[tuple[Work, Any]]:
        """Read the result of each row of a piece off its outputs; a head that fails, fails its own rows."""
        read: list[tuple[Work, Any]] = []
        for head in {id(work.head): work.head for work in works}.values():
            rows = [row for row, work in enumerate(works) if work.head is head]
            readings = self._readings(head, outputs, laid_out, rows)
            read += zip([works[row] for row in rows], readings, strict=True)
        return read

    def _readings(
        self, head: Head[Any], outputs: Outputs, laid_out: LaidOutRows, rows: Sequence[int]
    ) -> Sequence[Any]:
        is_all, mask = len(rows) == len(laid_out.mask), laid_out.mask
        try:
            seen = {**outputs, **laid_out.shown}
            own = seen if is_all else {name: values[rows] for name, values in seen.items()}
            return head(own, mask if is_all else mask[rows])
        except Exception as error:
            logger.exception("model %s: its outputs could not be read", self._model)
            failed = ModelFailed(self._model, detail=f"reading its outputs raised {type(error).__name__}")
            return [failed] * len(rows)

    # From any thread.

    def _deliver(self, read: Sequence[tuple[Work, Any]]) -> None:
        """Hand results to the event loop, all at once. From here on nobody can join these works."""
        with self._changed:
            for work, _ in read:
                self._forget(work)
            answers = [(seat, reading) for work, reading in read for seat in work.seats]
        if answers:
            _call_soon(answers[0][0].call, _set_readings, answers)

    def _waiting_calls(self, batch: Batch[Work]) -> Collection[EncodeCall]:
        with self._changed:
            return {seat.call for entry in batch.entries for seat in entry.payload.seats}

    def _count_batch(self, batch: Batch[Work]) -> None:
        self._stats.num_batches += 1
        self._stats.num_texts += len(batch.entries)
        self._stats.num_tokens += batch.num_tokens
        self._stats.num_padded_tokens += batch.padded_tokens


def _call_soon(call: EncodeCall, function: Callable[..., None], *args: object) -> None:
    try:
        call.done.get_loop().call_soon_threadsafe(function, *args)
    except RuntimeError:
        logger.debug("the event loop has ended: nobody waits for what was computed last")


def _or_never(deadline_s: float | None) -> float:
    return math.inf if deadline_s is None else deadline_s


def _set_readings(answers: Iterable[tuple[Seat, Any]]) -> None:
    """Store results on the event loop and wake the calls that have all of theirs."""
    for seat, reading in answers:
        call = seat.call
        if call.done.done():
            continue
        if isinstance(reading, DeadlineExceeded):
            _fail(call, reading)
            continue
        call.readings[seat.index] = reading
        call.num_read += 1
        if call.num_read == len(call.readings):
            call.done.set_result(None)


def _fail(call: EncodeCall, error: AimassError) -> None:
    if not call.done.done():
        call.done.set_exception(error)


def _emit_phases(call: EncodeCall) -> None:
    """Record a call's waiting and computing as children of its span; what has not ended, ends now."""
    now_ns = time.time_ns()
    emit_phase("queue", call.submitted_ns, call.started_ns or now_ns)
    if call.started_ns:
        attributes = {"aimass.num_texts": len(call.readings), "aimass.num_batches": call.num_batches}
        emit_phase("batch", call.started_ns, call.finished_ns or now_ns, attributes=attributes)


def _emit_batch(batch: Batch[Work], calls: Collection[EncodeCall], start_ns: int, end_ns: int) -> None:
    """Record a batch that several calls shared as a span of its own, linked to theirs."""
    spans = {call.span.span_id: call.span for call in calls if call.span.is_valid}
    if len(calls) < 2 or not spans:
        return
    attributes = {
        "aimass.num_texts": len(batch.entries),
        "aimass.num_tokens": batch.num_tokens,
        "aimass.num_padded_tokens": batch.padded_tokens,
    }
    emit_phase(
        "encoder.batch", start_ns, end_ns, attributes=attributes, links=list(map(Link, spans.values()))
    )
