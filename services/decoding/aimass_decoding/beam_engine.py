"""Beam searches behind the engine's face: async in, one whole text out, on a thread and slots of their own.

Searches advance together, and take turns with everything else that computes by the permit: to the streams of
the same model they are what another model on the same processor is. Knows nothing of the other engine.
"""

from __future__ import annotations

import asyncio
import bisect
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Protocol

from aimass_serving.errors import (
    AimassError,
    DeadlineExceeded,
    InvalidField,
    ModelFailed,
    Overloaded,
)
from aimass_serving.telemetry import emit_phase

from aimass_decoding.beam_batch import BeamBatch
from aimass_decoding.beam_rules import rule_of
from aimass_decoding.beam_search import BeamOptions, BeamSearch, Hypothesis
from aimass_decoding.config import EngineConfig
from aimass_decoding.engine_thread import EngineThread, call_soon
from aimass_decoding.outlet import Event, Outlet
from aimass_decoding.request import (
    BeamParams,
    FinishReason,
    SequenceFinish,
    SequenceRequest,
    SequenceTimings,
    TokenDelta,
)
from aimass_decoding.runner import Runner
from aimass_decoding.stats import Counters

_LOGGER = logging.getLogger(__name__)
_RETRY_AFTER_S = 1.0

_Key = tuple[float, float, int]


class NewRunner(Protocol):
    """Makes the runner of the beams, when the first search comes."""

    def __call__(self, *, max_slots: int, max_len: int) -> Runner:
        """Return a runner with empty slots."""


@dataclass(slots=True, eq=False)
class _Job:
    """A request on its way. Owned by the engine thread once it was submitted."""

    request: SequenceRequest
    beams: BeamParams
    key: _Key
    max_new_tokens: int
    outlet: Outlet
    submitted_ns: int
    search: BeamSearch | None = None
    """Set when it has its slots."""
    begun_ns: int = 0
    first_token_ns: int = 0
    finished_ns: int = 0
    is_done: bool = False

    @property
    def num_steps(self) -> int:
        return 0 if self.search is None else self.search.num_new_tokens

    @property
    def timings(self) -> SequenceTimings:
        times = (self.submitted_ns, self.begun_ns, self.first_token_ns, self.finished_ns)
        return SequenceTimings(*times, num_steps=self.num_steps)


class BeamEngine:
    """Runs the beam searches of one model. `generate`, `drain` and `close` are for any thread or event loop.

    Order: higher priority first, then the earlier deadline, where a missing or far one counts as
    `assumed_deadline_s` after arrival; nobody overtakes a search that waits for its slots.
    """

    def __init__(
        self,
        new_runner: NewRunner,
        *,
        max_beams: int,
        max_len: int,
        config: EngineConfig,
        model: str,
        permit: AbstractContextManager[object],
    ) -> None:
        self.counters = Counters()
        self.max_beams = max_beams
        self._new_runner = new_runner
        self._max_len = max_len
        self._config = config
        self._model = model
        self._permit = permit
        self._batch: BeamBatch | None = None
        self._waiting: list[tuple[_Key, _Job]] = []  # sorted
        self._running: list[_Job] = []
        self._numbers = count()
        self._thread = EngineThread(self, model=model, name=f"beams {model}")

    @property
    def has_work(self) -> bool:
        """Whether any search waits or runs."""
        return bool(self._waiting or self._running)

    def refuse_new(self) -> None:
        """Take no new searches."""
        self._thread.refuse_new()

    async def drain(self) -> None:
        """Take no new searches, and return when all have ended."""
        await self._thread.drain()

    def close(self) -> None:
        """Stop after the step in progress. Blocks. Idempotent."""
        self._thread.close()

    async def generate(self, request: SequenceRequest) -> AsyncGenerator[TokenDelta, None]:
        """Give the best text of a search, whole, as one delta with its finish.

        Closing the generator early frees the slots by the next step. Raises `InvalidField` for more beams
        than there are slots, `Draining`, `Overloaded`, `DeadlineExceeded`, `ModelFailed`.
        """
        job = self._job(request)
        self._thread.put_all([partial(self._submit, job)])
        self._thread.start()  # with the first search: most models never see one
        try:
            yield await job.outlet.read()
        finally:
            self._thread.put(partial(self._abort, job, time.monotonic()))
            _emit_phases(job)

    def step(self) -> None:
        """Let searches in, advance them all by one token, and publish those that have ended."""
        self._drop_expired()
        try:
            self._admit()
            if self._batch is not None and self._running:
                self._advance(self._batch)
        except Exception as error:
            _LOGGER.exception("a step of %d searches of model %s failed", len(self._running), self._model)
            detail = f"a step raised {type(error).__name__}"
            for job in list(self._running):
                self._fail(job, ModelFailed(self._model, detail=detail))

    def fail_all(self, error: AimassError) -> None:
        """End every search with an error."""
        for job in [*self._running, *(job for _, job in self._waiting)]:
            self._end(job, error)

    def _job(self, request: SequenceRequest) -> _Job:
        beams = request.beams
        assert beams is not None, "only asked for a search"
        if beams.num_beams > self.max_beams:
            expected = f"at most {self.max_beams}, as many as this server has memory for"
            raise InvalidField("beams.num_beams", expected=expected, got=beams.num_beams)
        now_s = time.monotonic()
        assumed_s = now_s + self._config.assumed_deadline_s
        due_s = assumed_s if request.deadline_s is None else min(request.deadline_s, assumed_s)
        return _Job(
            request,
            beams,
            (-request.priority, due_s, next(self._numbers)),
            min(request.max_new_tokens, self._max_len - len(request.prompt_ids)),
            Outlet(asyncio.get_running_loop()),
            time.time_ns(),
        )

    def _submit(self, job: _Job) -> None:
        """Queue a search. What fails by a fault of our own must still reach its reader, who waits."""
        self.counters.num_submitted += 1
        try:
            self._queue(job)
        except Exception as error:
            _LOGGER.exception("the engine of model %s could not queue a search", self._model)
            detail = f"queueing it raised {type(error).__name__}"
            self._fail(job, ModelFailed(self._model, detail=detail))

    def _queue(self, job: _Job) -> None:
        num_tokens = sum(len(waiting.request.prompt_ids) for _, waiting in self._waiting)
        if self._waiting and num_tokens + len(job.request.prompt_ids) > self._config.max_queue_tokens:
            self.counters.num_refused += 1
            detail = f"{num_tokens} prompt tokens wait for beams already, {self._config.max_queue_tokens} may"
            self._end(job, Overloaded(retry_after_s=_RETRY_AFTER_S, detail=detail))
            return
        bisect.insort(self._waiting, (job.key, job))

    def _abort(self, job: _Job, cancelled_at_s: float) -> None:
        """Free what a search holds because nobody wants it any more. Does nothing when it has ended."""
        if job.is_done:
            return
        self._remove(job)
        self.counters.num_cancelled += 1
        self.counters.release_ms.record(1e3 * (time.monotonic() - cancelled_at_s))

    def _admit(self) -> None:
        """Give waiting searches their slots, in order."""
        while self._waiting:
            job = self._waiting[0][1]
            batch = self._opened_batch()
            if job.beams.num_beams > batch.num_free_slots:
                return
            del self._waiting[0]
            self._running.append(job)
            job.begun_ns = time.time_ns()
            try:
                job.search = batch.join(
                    job.request.prompt_ids,
                    _options_of(job),
                    memory=job.request.memory,
                    adapter=job.request.adapter,
                )
            except Exception as error:
                _LOGGER.exception("a search of model %s could not begin", self._model)
                detail = f"its beginning raised {type(error).__name__}"
                self._fail(job, ModelFailed(self._model, detail=detail))
            else:
                self.counters.num_prompt_tokens += len(job.request.prompt_ids)

    def _opened_batch(self) -> BeamBatch:
        if self._batch is None:
            self._batch = BeamBatch(
                self._new_runner(max_slots=self.max_beams, max_len=self._max_len),
                max_slots=self.max_beams,
                max_len=self._max_len,
                max_chunk_tokens=self._config.max_prefill_tokens_per_step,
                permit=self._permit,
            )
        return self._batch

    def _advance(self, batch: BeamBatch) -> None:
        batch.step()
        self.counters.num_decode_steps += 1
        now_ns = time.time_ns()
        for job in list(self._running):
            if job.search is None or not (job.search.num_new_tokens or job.search.is_done):
                continue
            job.first_token_ns = job.first_token_ns or now_ns
            if job.search.has_failed:
                self._fail(job, ModelFailed(self._model, detail="its logits are not numbers"))
            elif job.search.is_done and not job.search.hypotheses:
                self._fail(job, ModelFailed(self._model, detail="the search found no text that may be given"))
            elif job.search.is_done:
                self._finish(job, job.search.hypotheses[0])

    def _finish(self, job: _Job, best: Hypothesis, *, reason: FinishReason | None = None) -> None:
        reason = reason or _reason(job, best)
        num_output = len(best.token_ids) + best.is_complete
        self.counters.num_finished[reason] += 1
        self.counters.num_output_tokens += num_output
        job.finished_ns = time.time_ns()
        finish = SequenceFinish(reason, best.end_token_id, num_output, job.timings)
        self._end(job, TokenDelta(best.token_ids, finish=finish, timings=job.timings))

    def _fail(self, job: _Job, error: ModelFailed) -> None:
        self.counters.num_failed += 1
        self._end(job, error)

    def _drop_expired(self) -> None:
        """End searches whose time has passed, before they cost another step."""
        now_s = time.monotonic()
        for job in [*self._running, *(job for _, job in self._waiting)]:
            deadline_s, limit_s = job.request.deadline_s, job.request.time_limit_at_s
            if deadline_s is not None and now_s >= deadline_s:
                self.counters.num_expired += 1
                self.counters.release_ms.record(1e3 * (now_s - deadline_s))
                self._end(job, DeadlineExceeded(phase="queue" if job.search is None else "decode"))
            elif limit_s is not None and now_s >= limit_s:
                self.counters.release_ms.record(1e3 * (now_s - limit_s))
                self._finish(job, _best_so_far(job), reason=FinishReason.TIME_LIMIT)

    def _end(self, job: _Job, event: Event) -> None:
        """Free what a search holds, and tell its reader. A loop that has ended wants no more."""
        self._remove(job)
        job.finished_ns = job.finished_ns or time.time_ns()
        call_soon(job.outlet.loop, partial(job.outlet.deliver, event))

    def _remove(self, job: _Job) -> None:
        job.is_done = True
        if job in self._running:
            self._running.remove(job)
        self._waiting = [entry for entry in self._waiting if entry[1] is not job]
        if self._batch is not None and job.search is not None:
            self._batch.leave(job.search)


def _options_of(job: _Job) -> BeamOptions:
    request, beams = job.request, job.beams
    return BeamOptions(
        beams.num_beams,
        job.max_new_tokens,
        request.eos_token_ids | request.stop_token_ids,
        length_penalty=beams.length_penalty,
        early_stopping=beams.early_stopping,
        num_counted_prompt_tokens=beams.num_counted_prompt_tokens,
        rule=rule_of(request, max_new_tokens=job.max_new_tokens),
    )


def _reason(job: _Job, best: Hypothesis) -> FinishReason:
    if best.is_complete:
        is_eos = best.end_token_id in job.request.eos_token_ids
        return FinishReason.EOS if is_eos else FinishReason.STOP_TOKEN
    is_cut = job.max_new_tokens < job.request.max_new_tokens
    return FinishReason.CONTEXT_FULL if is_cut else FinishReason.MAX_NEW_TOKENS


def _best_so_far(job: _Job) -> Hypothesis:
    if job.search is None:
        return Hypothesis((), 0.0, 0.0, is_complete=False)
    return job.search.best_so_far


def _emit_phases(job: _Job) -> None:
    """Record how long a search waited and ran, up to now if it was given up."""
    end_ns = job.finished_ns or time.time_ns()
    prompt = {"aimass.prompt_tokens": len(job.request.prompt_ids)}
    output = {"aimass.beams": job.beams.num_beams, "aimass.decode_steps": job.num_steps}
    emit_phase("queue", job.submitted_ns, job.begun_ns or end_ns)
    if job.begun_ns:
        emit_phase("prefill", job.begun_ns, job.first_token_ns or end_ns, attributes=prompt)
    if job.first_token_ns:
        emit_phase("decode", job.first_token_ns, end_ns, attributes=output)
