"""The heart of the engine: schedule, run, sample, commit, publish. Knows no thread and no event loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from typing import assert_never

import numpy as np
from aimass_serving.errors import AimassError, DeadlineExceeded, ModelFailed
from numpy.typing import NDArray

from aimass_decoding.drafts import Drafter, Guesses
from aimass_decoding.masks import Mask, MaskFeed
from aimass_decoding.outlet import Event
from aimass_decoding.request import FinishReason, SequenceFinish, TokenDelta, TokenLogprob
from aimass_decoding.runner import Runner
from aimass_decoding.sampler import Chosen, choose, logprob_of
from aimass_decoding.scheduler import (
    DecodeStep,
    DraftStep,
    ForkStep,
    GuessStep,
    Move,
    PrefillStep,
    Scheduler,
    Step,
)
from aimass_decoding.sequence import Sequence, Stage
from aimass_decoding.stats import Counters

_LOGGER = logging.getLogger(__name__)

Publish = Callable[[list[tuple[Sequence, Event]]], None]


class Stepper:
    """Advances sequences one run of the graph at a time.

    Owns the scheduler, the runner and the counters. `draft_runner` guesses on the slots of the runner. Every
    method is for the engine thread.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        *,
        model: str,
        permit: AbstractContextManager[object],
        publish: Publish,
        mask_executor: Executor,
        draft_runner: Runner | None = None,
        max_mask_wait_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.counters = Counters()
        self._runner = runner
        self._draft_runner = draft_runner
        self._scheduler = scheduler
        self._model = model
        self._permit = permit
        self._publish = publish
        self._mask_executor = mask_executor
        self._max_mask_wait_s = max_mask_wait_s
        self._clock = clock
        self._wall_clock_ns = wall_clock_ns
        self._events: list[tuple[Sequence, Event]] = []

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence, or publish why it is refused."""
        self.counters.num_submitted += 1
        try:
            self._scheduler.submit(sequence, self._clock())
            if sequence.request.new_mask is not None:
                sequence.masks = MaskFeed(sequence.request.new_mask, self._mask_executor)
            elif self._scheduler.max_draft_tokens:
                sequence.drafter = Drafter(sequence.request.prompt_ids)
                sequence.guesses = Guesses() if self._draft_runner is not None else None
        except AimassError as error:
            self.counters.num_refused += 1
            sequence.stage = Stage.DONE
            self._events.append((sequence, error))

    def abort(self, sequence: Sequence, cancelled_at_s: float) -> None:
        """Free what a sequence holds because nobody wants it any more. Does nothing when it has ended."""
        if sequence.stage is Stage.DONE:
            return
        self._remove(sequence)
        self.counters.num_cancelled += 1
        self.counters.release_ms.record(1e3 * (self._clock() - cancelled_at_s))

    def step(self) -> None:
        """Run the graph once and publish what came of it. Without work, only refusals are published."""
        self._drop_expired()
        self._compact()
        step = self._scheduler.schedule(self._clock())
        if step is not None:
            self._advance(step)
        self._flush()

    def fail_all(self, error: AimassError) -> None:
        """End every sequence with an error and publish it."""
        for sequence in self._scheduler.sequences:
            self._end(sequence, error)
        self._flush()

    def _advance(self, step: Step) -> None:
        """Run, sample and commit one step. What goes wrong costs only the sequences of this step."""
        try:
            logits, seconds = self._run(step)
            is_unfinished = isinstance(step, PrefillStep) and not step.is_last_chunk
            has_prompt = isinstance(step, PrefillStep | ForkStep) and not is_unfinished
            prompt_logits = logits[0] if has_prompt else None
            self._scheduler.commit(step, now_s=self._clock(), seconds=seconds, logits=prompt_logits)
            if isinstance(step, DraftStep):
                self._accept_draft(step, logits)
            elif isinstance(step, GuessStep):
                self._take_guess(step, logits)
            elif not is_unfinished:
                choices = [s.sampling.choice(s.num_output, mask=self._mask_of(s)) for s in step.sequences]
                self._accept_all(step, logits, choose(logits, _rows_of(step), choices))
        except Exception as error:
            _LOGGER.exception("a step of %d sequences of model %s failed", len(step.sequences), self._model)
            self._fail(step, ModelFailed(self._model, detail=f"a step raised {type(error).__name__}"))

    def _run(self, step: Step) -> tuple[NDArray[np.float32], float]:
        """Return logits [rows, vocab] and the seconds they took, without the wait for the permit."""
        with self._permit:
            started_s = self._clock()
            match step:
                case PrefillStep():
                    logits = self._prefill(step)
                case DecodeStep():
                    logits = self._decode(step)
                case DraftStep():
                    logits = self._try_draft(step)
                case GuessStep():
                    logits = self._guess(step)
                case ForkStep():
                    self._begin(step)
                    logits = step.logits[np.newaxis]
                case _:
                    assert_never(step)
            seconds = self._clock() - started_s
            self.counters.graph_s += seconds
            return logits, seconds

    def _prefill(self, step: PrefillStep) -> NDArray[np.float32]:
        sequence = step.sequence
        self._begin(step)
        chunk = sequence.request.prompt_ids[step.start : step.start + step.count]
        self.counters.num_prefill_steps += 1
        self.counters.num_prompt_tokens += step.count
        if sequence.request.wants_prompt_logprobs and sequence.index == 0:
            return self._echo(sequence, chunk, start=step.start)
        return self._runner.prefill(sequence.slot, chunk, start=step.start)[np.newaxis]

    def _echo(self, sequence: Sequence, chunk: NDArray[np.int64], *, start: int) -> NDArray[np.float32]:
        """Compute a chunk, and keep how probable each token of the prompt was after the ones before it."""
        request = sequence.request
        logits = self._runner.prefill_all(sequence.slot, chunk, start=start)
        following = request.prompt_ids[start + 1 : start + 1 + len(chunk)].tolist()  # none follows the last
        sequence.prompt_logprobs += [
            logprob_of(row, token_id, num_candidates=request.num_top_logprobs)
            for row, token_id in zip(logits, following, strict=False)
        ]
        return logits[-1:]

    def _begin(self, step: PrefillStep | ForkStep) -> None:
        """Bring into the slot what others' slots hold of the prompt, and the adapter and source it needs."""
        sequence = step.sequence
        self._copy(step.moves)
        if sequence.prefill_ns:
            return
        sequence.prefill_ns = self._wall_clock_ns()
        self._runner.set_adapter(sequence.slot, sequence.request.adapter)
        self._runner.set_memory(sequence.slot, sequence.request.memory)
        self.counters.num_reused_prompt_tokens += sequence.num_reused

    def _decode(self, step: DecodeStep) -> NDArray[np.float32]:
        """Run every row up to the highest. A hole, or a slot whose prompt is not complete, gets token 0.

        That token lands behind what the slot holds, be it kept for later prompts only, where the next real
        token overwrites it.
        """
        token_ids = np.zeros(step.num_rows, np.int64)
        lengths = np.array([self._scheduler.num_kept_tokens(slot) for slot in range(step.num_rows)])
        for sequence in self._scheduler.active:
            lengths[sequence.slot] = sequence.num_cached
            token_ids[sequence.slot] = sequence.last_token
        self.counters.num_decode_steps += 1
        return self._runner.decode(token_ids, lengths)

    def _try_draft(self, step: DraftStep) -> NDArray[np.float32]:
        """Return the logits [guesses + 1, vocab] behind the last token and behind each guess."""
        sequence = step.sequence
        self.counters.num_decode_steps += 1
        self.counters.num_drafted_tokens += len(step.token_ids)
        chunk = np.array([sequence.last_token, *step.token_ids])
        return self._runner.prefill_all(sequence.slot, chunk, start=sequence.num_cached)

    def _guess(self, step: GuessStep) -> NDArray[np.float32]:
        """Return the draft graph's logits [1, vocab] behind the last guess, or the last token.

        Keys and values that it writes on the way lie behind what the slot holds: the draft that is made of
        its guesses overwrites them, as does any other step.
        """
        sequence, runner = step.sequence, self._draft_runner
        assert runner is not None, "only with a draft graph are there guesses"
        guessed = _guesses_of(step).token_ids
        last_token = guessed[-1] if guessed else sequence.last_token
        return runner.prefill(
            sequence.slot, np.array([last_token]), start=sequence.num_cached + len(guessed)
        )[np.newaxis]

    def _take_guess(self, step: GuessStep, logits: NDArray[np.float32]) -> None:
        """Guess the token that would be chosen, by the same penalties and random number, of these logits."""
        sequence, guesses = step.sequence, _guesses_of(step)
        if guesses.sampling is None:
            guesses.sampling = sequence.sampling.copy()
        choice = guesses.sampling.choice(sequence.num_output + len(guesses.token_ids))
        token_id = int(choose(logits, [0], [choice]).token_ids[0])
        guesses.sampling.accept(token_id)
        request = sequence.request
        guesses.add(token_id, is_last=token_id in request.eos_token_ids | request.stop_token_ids)

    def _accept_draft(self, step: DraftStep, logits: NDArray[np.float32]) -> None:
        """Choose token after token as without a draft, for as long as each was the one that was guessed."""
        sequence, num_right = step.sequence, 0
        for place in range(len(logits)):
            row = logits[place : place + 1]
            self._accept_all(step, row, choose(row, [0], [sequence.sampling.choice(sequence.num_output)]))
            is_right = place < len(step.token_ids) and sequence.last_token == step.token_ids[place]
            if sequence.stage is Stage.DONE or not is_right:
                break
            num_right += 1
        self.counters.num_confirmed_tokens += num_right
        self._scheduler.confirm(step, num_right)

    def _mask_of(self, sequence: Sequence) -> Mask | None:
        """Return the mask of a sequence's next token. If that fails, so does the sequence."""
        if sequence.masks is None:
            return None
        started_s = self._clock()
        try:
            return sequence.masks.take(self._max_mask_wait_s)
        except AimassError as error:
            self._fail_sequence(sequence, error)
        except Exception as error:
            _LOGGER.exception("the mask of a sequence of model %s failed", self._model)
            detail = f"the mask of the next token raised {type(error).__name__}"
            self._fail_sequence(sequence, ModelFailed(self._model, detail=detail))
        finally:
            self.counters.mask_wait_ms.record(1e3 * (self._clock() - started_s))
        return None

    def _accept_all(self, step: Step, logits: NDArray[np.float32], chosen: Chosen) -> None:
        """Give the sequences of a step their next tokens, but for those that have failed."""
        rows, token_ids, is_finite = _rows_of(step), chosen.token_ids.tolist(), chosen.is_finite.tolist()
        for sequence, row, token_id, is_number in zip(
            step.sequences, rows, token_ids, is_finite, strict=True
        ):
            if sequence.stage is Stage.DONE:
                continue
            if is_number:
                self._accept(sequence, token_id, logits[row])
            else:
                detail = "its logits are not numbers, or no token is allowed"
                self._fail_sequence(sequence, ModelFailed(self._model, detail=detail))

    def _accept(self, sequence: Sequence, token_id: int, logits: NDArray[np.float32]) -> None:
        """Give a sequence its next token, and end it when that is the last."""
        self.counters.num_output_tokens += 1
        sequence.num_output += 1
        sequence.last_token = token_id
        sequence.sampling.accept(token_id)
        if sequence.num_output == 1:
            sequence.first_token_s, sequence.first_token_ns = self._clock(), self._wall_clock_ns()
        reason = self._reason_to_end(sequence, token_id)
        if reason in (FinishReason.EOS, FinishReason.STOP_TOKEN):
            self._finish(sequence, reason, stop_token_id=token_id)
        elif reason is not None:
            self._finish(sequence, reason, (token_id,), _logprobs(sequence, token_id, logits))
        else:
            if sequence.masks is not None:
                sequence.masks.accept(token_id)
            if sequence.drafter is not None:
                sequence.drafter.add(token_id)
            delta = TokenDelta((token_id,), _logprobs(sequence, token_id, logits), index=sequence.index)
            self._events.append((sequence, delta))

    def _reason_to_end(self, sequence: Sequence, token_id: int) -> FinishReason | None:
        request = sequence.request
        if token_id in request.eos_token_ids:
            return FinishReason.EOS
        if token_id in request.stop_token_ids:
            return FinishReason.STOP_TOKEN
        if sequence.num_output >= request.max_new_tokens:
            return FinishReason.MAX_NEW_TOKENS
        return FinishReason.CONTEXT_FULL if sequence.num_tokens >= self._scheduler.max_len else None

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
        *,
        stop_token_id: int | None = None,
    ) -> None:
        self._remove(sequence)
        self.counters.num_finished[reason] += 1
        sequence.finished_ns = self._wall_clock_ns()
        finish = SequenceFinish(reason, stop_token_id, sequence.num_output, sequence.timings)
        self._events.append((sequence, TokenDelta(token_ids, logprobs, finish, index=sequence.index)))

    def _remove(self, sequence: Sequence, *, is_sound: bool = True) -> None:
        self._scheduler.remove(sequence, is_sound=is_sound)
        if sequence.masks is not None:
            sequence.masks.close()

    def _end(self, sequence: Sequence, error: AimassError, *, is_sound: bool = True) -> None:
        """End a sequence with an error."""
        self._remove(sequence, is_sound=is_sound)
        sequence.finished_ns = self._wall_clock_ns()
        self._events.append((sequence, error))

    def _fail(self, step: Step, error: ModelFailed) -> None:
        for sequence in step.sequences:
            if sequence.stage is not Stage.DONE:
                self._fail_sequence(sequence, error)
        self._scheduler.forget_prefixes()

    def _fail_sequence(self, sequence: Sequence, error: AimassError) -> None:
        """End a sequence by the model's fault, or its mask's. What its slot holds is not to be trusted."""
        self.counters.num_failed += 1
        self._end(sequence, error, is_sound=False)

    def _drop_expired(self) -> None:
        """End sequences whose time has passed, or will have, before they cost another step."""
        now_s = self._clock()
        for sequence in self._scheduler.expired(now_s):
            self.counters.release_ms.record(1e3 * (now_s - sequence.expires_at_s))
            if sequence.expires_at_s == sequence.request.deadline_s:
                self.counters.num_expired += 1
                self._end(sequence, DeadlineExceeded(phase=_PHASES[sequence.stage]))
            else:
                self._finish(sequence, FinishReason.TIME_LIMIT)
        while (lost := self._scheduler.hopeless(now_s)) is not None:
            self.counters.num_expired += 1
            self._end(lost, DeadlineExceeded(phase="queue"))

    def _compact(self) -> None:
        if not self._runner.can_copy_slots:
            return
        self._copy(self._scheduler.compact())

    def _copy(self, moves: Iterable[Move]) -> None:
        for move in moves:
            self.counters.num_slot_copies += 1
            self._runner.copy_slot(move.source, move.target, num_tokens=move.num_tokens)
            self._runner.copy_memory(move.source, move.target)

    def _flush(self) -> None:
        if self._events:
            events, self._events = self._events, []
            self._publish(events)


_PHASES = {Stage.WAITING: "queue", Stage.PREFILLING: "prefill", Stage.DECODING: "decode"}


def _rows_of(step: Step) -> list[int]:
    """Return the row of the step's logits that belongs to each of its sequences."""
    return [sequence.slot for sequence in step.sequences] if isinstance(step, DecodeStep) else [0]


def _guesses_of(step: GuessStep) -> Guesses:
    guesses = step.sequence.guesses
    assert guesses is not None, "only sequences with guesses are guessed for"
    return guesses


def _logprobs(sequence: Sequence, token_id: int, logits: NDArray[np.float32]) -> tuple[TokenLogprob, ...]:
    request = sequence.request
    if not request.wants_logprobs:
        return ()
    return (logprob_of(logits, token_id, num_candidates=request.num_top_logprobs),)
