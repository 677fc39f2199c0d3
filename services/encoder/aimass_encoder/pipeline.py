"""Brings waiting texts through the graph, batch by batch, on one compute thread.

Three threads take part. The event loop submits and cancels; the compute thread runs batches; the side thread
lays out the next batch while one runs, and reads results off the last one. They share the batcher, under one
lock that is never held while a graph runs. Must not know texts or vectors: a text is a row of token ids here.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from aimass_serving.errors import AimassError, DeadlineExceeded, Draining, ModelFailed
from aimass_serving.telemetry import emit_phase
from numpy.typing import NDArray
from opentelemetry.trace import Link, SpanContext, get_current_span

from aimass_encoder.batcher import Batch, Batcher, BatchLimits
from aimass_encoder.head import Head
from aimass_encoder.runner import TOKEN_IDS, EncoderRunner, Outputs, PaddedBatch

logger = logging.getLogger(__name__)
Reading = TypeVar("Reading")


@dataclass(slots=True, eq=False)
class EncodeCall:
    """The texts of one call on their way. Owned by the event loop; the compute thread writes the times."""

    readings: list[Any]
    """One place for each text."""
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
    """Texts whose reading is there."""


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """One text on its way."""

    call: EncodeCall
    index: int
    token_ids: NDArray[np.int64]  # [num_tokens]
    type_ids: NDArray[np.int64] | None  # [num_tokens]
    """Which text of a pair each token belongs to; None for a text alone."""
    head: Head[Any]


@dataclass(frozen=True, slots=True)
class _Assembled:
    """A batch with its arrays."""

    batch: Batch[Work]
    padded: PaddedBatch


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


class BatchPipeline:
    """Runs texts of all calls of one model through its graph.

    Cancelled and expired texts leave before they cost compute; those of the batch that is running finish with
    it and are thrown away. A graph that fails, fails the texts of its batch only.
    """

    def __init__(
        self,
        runner: EncoderRunner,
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
        self._stats = PipelineStats()
        self._calls: set[EncodeCall] = set()
        self._is_draining = False
        self._is_closed = False
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
        self,
        rows: Sequence[NDArray[np.int64]],
        head: Head[Reading],
        *,
        deadline_s: float | None,
        type_ids: Sequence[NDArray[np.int64] | None] = (),
    ) -> tuple[Sequence[Reading | AimassError], EncodeTimes]:
        """Return what `head` reads off each row of token ids, in order, and when.

        `type_ids` has one place for each row, or none at all. All rows are admitted or none. Raises
        `Overloaded`, `DeadlineExceeded`, `Draining`. When cancelled,
        its rows leave the queue at once. Records the phases `queue` and `batch`, whatever the end.
        """
        call = EncodeCall(
            readings=[None] * len(rows),
            done=asyncio.get_running_loop().create_future(),
            span=get_current_span().get_span_context(),
            submitted_ns=time.time_ns(),
        )
        types = type_ids or [None] * len(rows)
        works = [
            Work(call, index, token_ids, row_types, head)
            for index, (token_ids, row_types) in enumerate(zip(rows, types, strict=True))
        ]
        self._submit(call, works, deadline_s=_or_never(deadline_s))
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

    def _submit(self, call: EncodeCall, works: Sequence[Work], *, deadline_s: float) -> None:
        with self._changed:
            self._check_open()
            items = [(work, len(work.token_ids)) for work in works]
            self._batcher.submit(items, now_s=self._clock(), deadline_s=deadline_s)
            self._calls.add(call)
            self._changed.notify_all()

    def _leave(self, call: EncodeCall, works: Sequence[Work]) -> None:
        call.done.cancel()  # so that `drain` sees a cancelled call end
        with self._changed:
            self._calls.discard(call)
            if call.num_read < len(works):
                self._stats.num_cancelled += self._batcher.remove(works)

    def _check_open(self) -> None:
        if self._is_draining or self._is_closed:
            raise Draining

    # On the compute thread.

    def _loop(self) -> None:
        prefetched: _Assembled | None = None
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
                    self._batcher.take(prefetched.batch)
                    return prefetched
                if (batch := self._batcher.select()) is not None:
                    self._batcher.take(batch)
                    break
                self._changed.wait()
            else:
                return None
        return self._assemble(batch)

    def _expire(self) -> None:
        expired = self._batcher.expire(self._clock())
        if expired:
            self._stats.num_expired += len(expired)
            self._deliver([(work, DeadlineExceeded(phase="queue")) for work in expired])

    def _compute(self, assembled: _Assembled) -> None:
        """Run one batch and hand its outputs to the side thread."""
        works = [entry.payload for entry in assembled.batch.entries]
        clock_s, start_ns = self._clock(), time.time_ns()
        for call in {work.call for work in works}:
            call.started_ns = call.started_ns or start_ns
            call.num_batches += 1
        outputs = self._run(assembled.padded)
        end_ns = time.time_ns()
        with self._changed:
            self._batcher.record(assembled.batch, compute_s=self._clock() - clock_s)
            self._count_batch(assembled.batch)
        self._side.submit(self._publish, assembled, outputs, start_ns, end_ns)

    def _run(self, padded: PaddedBatch) -> Outputs | AimassError:
        try:
            with self._permit:
                return self._runner.run(padded)
        except Exception as error:
            logger.exception("model %s failed on a batch of shape %s", self._model, padded.token_ids.shape)
            return ModelFailed(self._model, detail=f"its graph raised {type(error).__name__}")

    # On the side thread.

    def _prefetch(self) -> _Assembled | None:
        with self._changed:
            batch = self._batcher.select()
        return self._assemble(batch) if batch else None

    def _assemble(self, batch: Batch[Work]) -> _Assembled:
        works = [entry.payload for entry in batch.entries]
        padded = self._runner.pad(
            [work.token_ids for work in works],
            length=batch.padded_length,
            type_ids=[work.type_ids for work in works],
        )
        return _Assembled(batch, padded)

    def _publish(
        self, assembled: _Assembled, outputs: Outputs | AimassError, start_ns: int, end_ns: int
    ) -> None:
        works = [entry.payload for entry in assembled.batch.entries]
        for call in {work.call for work in works}:
            call.finished_ns = end_ns
        self._deliver(self._read(works, assembled.padded, outputs))
        _emit_batch(assembled.batch, start_ns, end_ns)

    def _read(
        self, works: Sequence[Work], padded: PaddedBatch, outputs: Outputs | AimassError
    ) -> list[tuple[Work, Any]]:
        """Read each text's result off the outputs; a head that fails, fails its own texts."""
        if isinstance(outputs, AimassError):
            return [(work, outputs) for work in works]
        read: list[tuple[Work, Any]] = []
        for head in {id(work.head): work.head for work in works}.values():
            rows = [row for row, work in enumerate(works) if work.head is head]
            read += zip(
                [works[row] for row in rows], self._readings(head, outputs, padded, rows), strict=True
            )
        return read

    def _readings(
        self, head: Head[Any], outputs: Outputs, padded: PaddedBatch, rows: Sequence[int]
    ) -> Sequence[Any]:
        is_all = len(rows) == padded.num_rows
        try:
            seen = {**outputs, TOKEN_IDS: padded.token_ids}
            own = seen if is_all else {name: values[rows] for name, values in seen.items()}
            return head(own, padded.mask if is_all else padded.mask[rows])
        except Exception as error:
            logger.exception("model %s: its outputs could not be read", self._model)
            failed = ModelFailed(self._model, detail=f"reading its outputs raised {type(error).__name__}")
            return [failed] * len(rows)

    # From any thread.

    def _deliver(self, read: Sequence[tuple[Work, Any]]) -> None:
        """Hand results to the event loop, all at once."""
        if read:
            _call_soon(read[0][0].call, _set_readings, read)

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


def _set_readings(read: Iterable[tuple[Work, Any]]) -> None:
    """Store results on the event loop and wake the calls that have all of theirs."""
    for work, reading in read:
        call = work.call
        if call.done.done():
            continue
        if isinstance(reading, DeadlineExceeded):
            _fail(call, reading)
            continue
        call.readings[work.index] = reading
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


def _emit_batch(batch: Batch[Work], start_ns: int, end_ns: int) -> None:
    """Record a batch that several calls shared as a span of its own, linked to theirs."""
    calls = {entry.payload.call for entry in batch.entries}
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
