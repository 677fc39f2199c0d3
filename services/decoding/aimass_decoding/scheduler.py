"""Decides what the engine computes next. A pure data structure: no clock, no model, no threads.

A step is one run of the graph: either one chunk of one prompt, or one token of every decoding sequence. A
prompt that lies in a slot already, whole, needs no run: its sequence forks off that slot. A sequence that is
alone may have tokens guessed behind the next one, from its own text or, one run of it each, by a draft graph:
the run tells how many are right.

- Order of prompts: higher priority first; within a priority the earlier deadline first, where a missing or a
  far deadline counts as `assumed_deadline_s` after arrival. So nobody is passed by later arrivals for longer
  than that, except by those of a higher priority.
- Prompts cannot stall decodes: at most `max_prefill_tokens_per_step` prompt tokens run between two decode
  steps, and a stream that was already flowing when a prompt arrived is slowed down by the factor
  `max_decode_slowdown` at most, on average: the time a chunk took is a debt that decode steps pay off.
- Decodes cannot starve prompts: the debt is paid after `1 / (max_decode_slowdown - 1)` times the chunk's
  time, and a prompt without progress for `max_prefill_wait_s` runs without regard to it.
- A prompt is always cut into the same chunks, so that its numbers do not depend on its neighbours.
- A deadline is refused at once when the queue before it and the pace of sequences that ended lately leave too
  little of it, and a prompt that would hardly end in time any more gives its slot to the next.
- Slots are given out lowest first, so that decode steps have few rows. A prompt that ended in such a slot
  and may be of use again moves to a free slot, over the one used least recently; at most `max_kept_prefixes`
  stay.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
from aimass_serving.errors import DeadlineExceeded, InputTooLong, Overloaded
from numpy.typing import NDArray

from aimass_decoding.config import EngineConfig
from aimass_decoding.drafts import DraftCosts, best_count, gain
from aimass_decoding.forecast import DrainRate, Forecast, Smoothed
from aimass_decoding.prefixes import Match, Prefix, Prefixes
from aimass_decoding.sequence import Sequence, Stage
from aimass_decoding.slots import Slots

_NEGLIGIBLE_S = 1e-6
_FORECAST_MARGIN, _LAST_MARGIN = 1.5, 1.2
"""A request is taken when its deadline leaves this many times what it is forecast to take, and gets its slot
while it leaves the second many times: the forecast is a mean, and half of all take longer.
"""
_MIN_RETRY_S, _MAX_RETRY_S = 0.1, 30.0

_Key = tuple[float, float, int]


@dataclass(frozen=True, slots=True)
class Move:
    """Copy the first tokens of a slot's cache to another slot."""

    source: int
    target: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class PrefillStep:
    """Compute `count` prompt tokens of a sequence, after the `start` that are in its slot."""

    sequence: Sequence
    start: int
    count: int
    moves: tuple[Move, ...] = ()
    """Copies to make before, in this order."""

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """The sequences of this run of the graph."""
        return (self.sequence,)

    @property
    def is_last_chunk(self) -> bool:
        """Whether the prompt is complete after it, so that its logits choose the first token."""
        return self.start + self.count == self.sequence.num_prompt_tokens


@dataclass(frozen=True, slots=True)
class ForkStep:
    """Give a sequence the prompt of another slot, and the logits [vocab] that followed it. Runs no graph."""

    sequence: Sequence
    logits: NDArray[np.float32]
    moves: tuple[Move, ...] = ()
    """Copies to make before, in this order."""

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """The one sequence."""
        return (self.sequence,)


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """Compute one more token of each of these sequences. Rows 0 to `num_rows` run, holes included."""

    sequences: tuple[Sequence, ...]
    num_rows: int


@dataclass(frozen=True, slots=True)
class DraftStep:
    """Compute one more token of the only sequence, and see how many of those guessed behind it are right."""

    sequence: Sequence
    token_ids: tuple[int, ...]
    """The guesses, at least one."""
    are_by_graph: bool = False
    """Whether a draft graph guessed them."""

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """The one sequence."""
        return (self.sequence,)


@dataclass(frozen=True, slots=True)
class GuessStep:
    """Let the draft graph guess one more token of the only sequence, behind those it guessed before."""

    sequence: Sequence

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """The one sequence."""
        return (self.sequence,)


Step = PrefillStep | ForkStep | DecodeStep | DraftStep | GuessStep


class Scheduler:
    """Waiting and running sequences, and the slots between them. Owned by the engine thread."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        num_slots: int,
        max_len: int,
        can_copy_slots: bool = True,
        max_draft_tokens: int = 0,
    ) -> None:
        self._config = config
        self._can_copy_slots = can_copy_slots
        self._max_draft_tokens = max_draft_tokens
        self._draft_costs = DraftCosts()
        self._prefixes = Prefixes(chunk_tokens=config.max_prefill_tokens_per_step)
        self._max_len = max_len
        self._slots = Slots(num_slots)
        self._waiting: list[tuple[_Key, Sequence]] = []  # sorted
        self._active: dict[int, Sequence] = {}  # by slot
        self._queue_tokens = 0
        self._next_expiry_s = math.inf
        self._prefill_tokens_since_decode = 0
        self._debt_s = 0.0
        self._drain = DrainRate()
        self._prefill_token_cost = Smoothed()  # of full chunks
        self._decode_cost = Smoothed()
        self._forecast = Forecast()

    @property
    def has_work(self) -> bool:
        """Whether any sequence waits or runs."""
        return bool(self._waiting or self._active)

    @property
    def num_waiting(self) -> int:
        """Sequences without a slot."""
        return len(self._waiting)

    @property
    def queue_tokens(self) -> int:
        """Prompt tokens of the sequences without a slot."""
        return self._queue_tokens

    @property
    def num_active(self) -> int:
        """Sequences with a slot."""
        return len(self._active)

    @property
    def active(self) -> Iterable[Sequence]:
        """The sequences with a slot, in no order."""
        return self._active.values()

    @property
    def num_kept_prefixes(self) -> int:
        """Free slots whose prompt is kept for later ones that start alike."""
        return sum(1 for slot in self._slots.free if slot in self._prefixes)

    def num_kept_tokens(self, slot: int) -> int:
        """Return how many tokens at the start of a slot must not be overwritten, whoever owns it."""
        return self._prefixes.num_tokens(slot)

    @property
    def max_len(self) -> int:
        """Longest sequence in tokens, prompt and output together."""
        return self._max_len

    @property
    def max_draft_tokens(self) -> int:
        """Most tokens that are guessed for one step; 0 where nothing is."""
        return self._max_draft_tokens

    @property
    def num_slots(self) -> int:
        """How many sequences can advance together."""
        return self._slots.num_slots

    @property
    def sequences(self) -> list[Sequence]:
        """Every sequence that waits or runs."""
        return [sequence for _, sequence in self._waiting] + list(self._active.values())

    def submit(self, sequence: Sequence, now_s: float) -> None:
        """Queue a sequence.

        Raises `InputTooLong` when its prompt leaves no room for a token, `DeadlineExceeded` when its deadline
        is lost already by the measured speed, `Overloaded` when the queue is full, or too long for its
        deadline.
        """
        if sequence.num_prompt_tokens + 1 > self._max_len:
            num_tokens = sequence.num_prompt_tokens
            raise InputTooLong("prompt", num_tokens=num_tokens, max_tokens=self._max_len - 1)
        sequence.scope = self._scope_of(sequence)
        match = self._match(sequence)
        sequence.num_expected_reuse = 0 if match is None else match.num_tokens
        self._refuse_lost_deadline(sequence, now_s)
        self._refuse_hopeless(sequence, now_s)
        self._refuse_overload(sequence, now_s)
        self._drain.begin(now_s)
        bisect.insort(self._waiting, (self._key(sequence), sequence))
        self._queue_tokens += sequence.num_queue_tokens
        self._next_expiry_s = min(self._next_expiry_s, sequence.expires_at_s)

    def expired(self, now_s: float) -> list[Sequence]:
        """Return the sequences whose deadline or time limit has passed. They stay until `remove`."""
        if now_s < self._next_expiry_s:
            return []
        sequences = self.sequences
        late = [sequence for sequence in sequences if sequence.expires_at_s <= now_s]
        on_time = (s.expires_at_s for s in sequences if s.expires_at_s > now_s)
        self._next_expiry_s = min(on_time, default=math.inf)
        return late

    def hopeless(self, now_s: float) -> Sequence | None:
        """Return the sequence that could have a slot now and would hardly end in time; None if there is none.

        Under a lasting overload the most urgent prompt is always one that is nearly lost: computing it would
        cost the next its chance too. It stays until `remove`.
        """
        if not (self._waiting and self._slots.num_free and self._active):
            return None
        sequence = self._waiting[0][1]
        deadline_s, needed_s = sequence.request.deadline_s, _LAST_MARGIN * self._seconds_in_slot(sequence)
        return sequence if deadline_s is not None and now_s + needed_s > deadline_s else None

    def remove(self, sequence: Sequence, *, is_sound: bool = True) -> None:
        """Forget a sequence and free its slot. Does nothing when that was done before.

        What its slot holds is kept for prompts that start alike, if it is sound.
        """
        if sequence.stage is Stage.WAITING:
            self._leave_queue(sequence)
        elif sequence.stage is not Stage.DONE:
            self._learn_from(sequence)
            del self._active[sequence.slot]
            self._slots.release(sequence.slot)
            self._keep_prefix(sequence.slot, is_sound=is_sound)
        sequence.stage = Stage.DONE

    def forget_prefixes(self) -> None:
        """Share nothing of what the slots hold now: it may not be what it should."""
        self._prefixes = Prefixes(chunk_tokens=self._config.max_prefill_tokens_per_step)

    def schedule(self, now_s: float) -> Step | None:
        """Return what to compute next; None when there is nothing."""
        prompt = self._next_prompt()
        fork = self._fork_step(prompt, now_s)
        if fork is not None:
            return fork
        decoding = [s for _, s in sorted(self._active.items()) if s.stage is Stage.DECODING]
        if prompt is not None and self._may_prefill(prompt, decoding, now_s):
            return self._prefill_step(prompt, now_s)
        if not decoding:
            return None
        is_alone = self.num_active == 1 and not self._waiting
        draft = self._draft_step(decoding[0]) if is_alone else None
        return draft or DecodeStep(tuple(decoding), self._slots.high_water)

    def commit(
        self, step: Step, *, now_s: float, seconds: float, logits: NDArray[np.float32] | None = None
    ) -> None:
        """Record that a step ran, in `seconds` of computing, and what that makes of its sequences.

        `logits` [vocab] are those that follow a prompt which is complete; without them, none is shared whole.
        """
        if isinstance(step, ForkStep):
            step.sequence.stage = Stage.DECODING
            step.sequence.last_progress_s = now_s
            return
        if isinstance(step, PrefillStep):
            self._commit_prefill(step, now_s=now_s, seconds=seconds)
            self._share_prompt(step.sequence, logits)
            return
        if isinstance(step, GuessStep):
            self._draft_costs.observe_guess(seconds)
            return
        self._prefill_tokens_since_decode = 0
        if isinstance(step, DraftStep):
            self._draft_costs.observe_draft(len(step.token_ids), seconds)
        else:
            self._decode_cost.observe(seconds)
            if len(step.sequences) == 1:
                self._draft_costs.observe_step(seconds)
        self._debt_s = max(0.0, self._debt_s - (self._config.max_decode_slowdown - 1) * seconds)
        for sequence in step.sequences:
            sequence.num_cached += 1
            sequence.num_steps += 1
            sequence.last_progress_s = now_s
            if sequence.guesses is not None and isinstance(step, DecodeStep):
                sequence.guesses.rest()

    def confirm(self, step: DraftStep, num_right: int) -> None:
        """Record how many guesses of a draft were right: their keys and values are good."""
        sequence = step.sequence
        sequence.num_cached += num_right
        if sequence.guesses is None:
            return
        if step.are_by_graph:
            has_missed = num_right < len(step.token_ids) and sequence.stage is not Stage.DONE
            sequence.guesses.learn(num_right, has_missed=has_missed)
        else:
            sequence.guesses.drop()

    def compact(self) -> list[Move]:
        """Move the highest sequences into the lowest holes when the rows are mostly holes.

        The caller copies the cache in the order given, before the next step.
        """
        moves: list[Move] = []
        while self._slots.is_mostly_holes or (moves and self._slots.num_taken < self._slots.high_water):
            sequence = self._active.pop(self._slots.high_water - 1)
            source, target = sequence.slot, self._slots.acquire()
            moves.extend(self._make_room(target, beside=None))
            self._slots.release(source)
            self._active[target] = sequence
            sequence.slot = target
            self._prefixes.move(source, target)
            moves.append(Move(source, target, sequence.num_cached))
        return moves

    def _key(self, sequence: Sequence) -> _Key:
        assumed_s = sequence.arrival_s + self._config.assumed_deadline_s
        deadline_s = sequence.request.deadline_s
        due_s = assumed_s if deadline_s is None else min(deadline_s, assumed_s)
        return (-sequence.request.priority, due_s, sequence.number)

    def _leave_queue(self, sequence: Sequence) -> None:
        place = bisect.bisect_left(self._waiting, (self._key(sequence),))
        assert self._waiting[place][1] is sequence, "a waiting sequence is not where its key sorts it"
        del self._waiting[place]
        self._queue_tokens -= sequence.num_queue_tokens
        if not self._waiting:
            self._drain.stop()

    def _next_prompt(self) -> Sequence | None:
        """Return the most urgent prompt that has a slot or could have one."""
        prefilling = [s for s in self._active.values() if s.stage is Stage.PREFILLING]
        candidates = [(self._key(sequence), sequence) for sequence in prefilling]
        if self._waiting and self._slots.num_free:
            candidates.append(self._waiting[0])
        return min(candidates)[1] if candidates else None

    def _may_prefill(self, prompt: Sequence, decoding: list[Sequence], now_s: float) -> bool:
        if not decoding:
            return True
        tokens_so_far = self._prefill_tokens_since_decode
        if tokens_so_far and tokens_so_far + self._chunk_tokens(prompt) > self._max_chunk:
            return False
        is_overdue = now_s - prompt.last_progress_s > self._config.max_prefill_wait_s
        return self._debt_s < _NEGLIGIBLE_S or is_overdue or not self._slows_down(prompt, decoding)

    def _draft_step(self, sequence: Sequence) -> DraftStep | GuessStep | None:
        """Return the step of the only sequence when tokens behind its next one are worth guessing.

        Those found in its text come free, and those of the draft graph are more often right: whichever gives
        more tokens in a time.
        """
        room = min(
            self._max_draft_tokens,
            sequence.request.max_new_tokens - sequence.num_output - 1,
            self._max_len - sequence.num_cached - 1,
        )
        if sequence.drafter is None or room < 1:
            return None
        found = sequence.drafter.draft(most=room, cost=self._draft_costs.share)
        gain_of_found = gain(sequence.drafter.trust, len(found), cost=self._draft_costs.share)
        by_graph = self._graph_draft_step(sequence, room, least_gain=gain_of_found)
        return by_graph or (DraftStep(sequence, found) if found else None)

    def _graph_draft_step(
        self, sequence: Sequence, most: int, *, least_gain: float
    ) -> DraftStep | GuessStep | None:
        """Return the next step of guessing with the draft graph, or of confirming what it guessed so far.

        Now and then a step is left as it is, to be measured: all costs are parts of its time.
        """
        guesses, cost = sequence.guesses, self._draft_costs.share_of_guess
        if guesses is None or not self._draft_costs.is_step_known:
            return None
        count, num_guessed = best_count(guesses.trust, most=most, cost=cost), len(guesses.token_ids)
        if num_guessed and (num_guessed >= count or guesses.is_complete):
            return DraftStep(sequence, tuple(guesses.token_ids), are_by_graph=True)
        if num_guessed or gain(guesses.trust, count, cost=cost) > least_gain:
            return GuessStep(sequence)
        return None

    @property
    def _max_chunk(self) -> int:
        return self._config.max_prefill_tokens_per_step

    def _chunk_tokens(self, prompt: Sequence) -> int:
        num_left = prompt.num_prompt_left
        if prompt.stage is Stage.WAITING:  # its expectation may be out of date
            match = self._match(prompt)
            num_left = prompt.num_prompt_tokens - (match.num_tokens if match else 0)
        return min(num_left, self._max_chunk)

    @staticmethod
    def _slows_down(prompt: Sequence, decoding: list[Sequence]) -> bool:
        """Whether a stream was flowing already when the prompt arrived. Others came with it, or after."""
        return any(sequence.first_token_s < prompt.arrival_s for sequence in decoding)

    def _prefill_step(self, prompt: Sequence, now_s: float) -> PrefillStep:
        moves: list[Move] = []
        if prompt.stage is Stage.WAITING:
            moves = self._enter_slot(prompt, self._match(prompt), now_s)
        return PrefillStep(prompt, prompt.num_cached, self._chunk_tokens(prompt), tuple(moves))

    def _fork_step(self, prompt: Sequence | None, now_s: float) -> ForkStep | None:
        """Return the step of a prompt that lies in a slot already, whole."""
        if prompt is None or prompt.stage is not Stage.WAITING:
            return None
        match = self._match(prompt)
        if match is None or match.logits is None:
            return None
        return ForkStep(prompt, match.logits, tuple(self._enter_slot(prompt, match, now_s)))

    def _enter_slot(self, prompt: Sequence, match: Match | None, now_s: float) -> list[Move]:
        """Give a waiting sequence a slot, and what a match says is computed of its prompt."""
        self._drain.record(prompt.num_queue_tokens, now_s)
        self._leave_queue(prompt)
        prompt.slot = self._slots.acquire()
        prompt.entered_s = now_s
        prompt.stage = Stage.PREFILLING
        self._active[prompt.slot] = prompt
        moves = self._make_room(prompt.slot, beside=match)
        if match is None:
            return moves
        if match.slot != prompt.slot:  # else its start stays where it is
            self._touch(match)
            moves.append(Move(match.slot, prompt.slot, match.num_tokens))
        prompt.num_cached = prompt.num_reused = match.num_tokens
        self._share_prompt(prompt, match.logits)
        return moves

    def _touch(self, match: Match) -> None:
        """Count a slot as used now; forget what a free slot holds when its copy holds as much."""
        is_needed = match.slot in self._active or self._prefixes.is_worth_keeping(match.slot, beside=match)
        if is_needed:
            self._prefixes.touch(match.slot)
        else:
            self._prefixes.drop(match.slot)

    def _scope_of(self, sequence: Sequence) -> Hashable:
        """Return what may share a sequence's prompt: all of its salt and adapter, or those of its request."""
        request = sequence.request
        computes_whole = request.memory is not None or request.wants_prompt_logprobs
        if self._config.max_kept_prefixes > 0 and not computes_whole:
            return ("salt", request.cache_salt, request.adapter)
        return None if sequence.group is None else ("group", sequence.group)

    def _match(self, prompt: Sequence) -> Match | None:
        if not self._can_copy_slots:
            return None
        return self._prefixes.longest_match(prompt.request.prompt_ids, prompt.scope)

    def _share_prompt(self, sequence: Sequence, logits: NDArray[np.float32] | None) -> None:
        """Let other prompts use what is computed of this one."""
        if sequence.scope is None or not self._can_copy_slots:
            return
        prompt_ids = sequence.request.prompt_ids
        is_complete = sequence.num_cached >= len(prompt_ids)
        known = logits.copy() if logits is not None and is_complete else None
        self._prefixes.put(sequence.slot, Prefix(prompt_ids, sequence.num_cached, sequence.scope, known))

    def _keep_prefix(self, slot: int, *, is_sound: bool) -> None:
        """Keep what a slot that is free now holds, within the bound; the least recently used gives way."""
        if not is_sound:
            self._prefixes.drop(slot)
        while self.num_kept_prefixes > self._config.max_kept_prefixes:
            oldest = self._prefixes.oldest(self._slots.free)
            assert oldest is not None, "more than none are kept"
            self._prefixes.drop(oldest)

    def _make_room(self, slot: int, *, beside: Match | None) -> list[Move]:
        """Move what a slot, taken just now, holds for later prompts to a free slot, if it is worth it."""
        moves: list[Move] = []
        free = [s for s in self._slots.free if beside is None or s != beside.slot]
        if self._prefixes.is_worth_keeping(slot, beside=beside) and free:
            empty = [s for s in free if s not in self._prefixes]
            target = max(empty) if empty else self._prefixes.oldest(free)
            assert target is not None, "a free slot is empty, or holds something"
            moves.append(Move(slot, target, self._prefixes.num_tokens(slot)))
            self._prefixes.move(slot, target)
        self._prefixes.drop(slot)
        return moves

    def _commit_prefill(self, step: PrefillStep, *, now_s: float, seconds: float) -> None:
        sequence = step.sequence
        decoding = [s for s in self._active.values() if s.stage is Stage.DECODING]
        self._debt_s = self._debt_s + seconds if self._slows_down(sequence, decoding) else self._debt_s
        self._debt_s = self._debt_s if decoding else 0.0
        self._prefill_tokens_since_decode += step.count
        if (
            step.count == self._max_chunk
        ):  # a short chunk costs far more a token, and says nothing of long ones
            self._prefill_token_cost.observe(seconds / step.count)
        sequence.num_cached += step.count
        sequence.last_progress_s = now_s
        if step.is_last_chunk:
            sequence.stage = Stage.DECODING

    def _refuse_lost_deadline(self, sequence: Sequence, now_s: float) -> None:
        """Refuse a deadline that would be missed by the measured speed.

        Both bounds are optimistic: the sequence ends at its first chance, and only the prompts before it
        take time. An idle engine tries in any case, lest an old measurement refuse everyone for ever.
        """
        deadline_s = sequence.request.deadline_s
        if deadline_s is None:
            return
        least_s = self._prefill_token_cost.value * sequence.num_prompt_left
        least_s += self._decode_cost.value * max(0, sequence.request.min_new_tokens - 1)
        if now_s + (least_s if self.has_work else 0) > deadline_s:
            raise DeadlineExceeded(phase="admission")
        wait_s = self._prefill_token_cost.value * self._prompt_tokens_before(sequence)
        if wait_s > 0 and now_s + wait_s + least_s > deadline_s:
            detail = (
                f"the prompts before it take {wait_s:.1f} s, its deadline is in {deadline_s - now_s:.1f} s"
            )
            raise Overloaded(retry_after_s=_bounded_retry_s(wait_s), detail=detail)

    def _refuse_hopeless(self, sequence: Sequence, now_s: float) -> None:
        """Refuse a deadline that would be missed under the load of now, by the queue and the forecast."""
        deadline_s = sequence.request.deadline_s
        if deadline_s is None or not self.has_work:
            return
        wait_s = self._wait_for_slot_s(sequence, now_s)
        needed_s = _FORECAST_MARGIN * self._seconds_in_slot(sequence)
        if now_s + wait_s + needed_s > deadline_s:
            detail = (
                f"it would wait {wait_s:.1f} s and take up to {needed_s:.1f} s, "
                f"its deadline is in {deadline_s - now_s:.1f} s"
            )
            raise Overloaded(retry_after_s=_bounded_retry_s(wait_s), detail=detail)

    def _wait_for_slot_s(self, sequence: Sequence, now_s: float) -> float:
        """Return how long those before a sequence take to get slots; 0 while there is a free one for it."""
        place = bisect.bisect_left(self._waiting, (self._key(sequence),))
        if place < self._slots.num_free:
            return 0.0
        return self._drain.seconds(sum(s.num_queue_tokens for _, s in self._waiting[:place]), now_s)

    def _seconds_in_slot(self, sequence: Sequence) -> float:
        return self._forecast.seconds(
            num_prompt_tokens=sequence.num_prompt_left, max_new_tokens=sequence.request.max_new_tokens
        )

    def _learn_from(self, sequence: Sequence) -> None:
        if sequence.num_output:
            self._forecast.observe(
                entered_s=sequence.entered_s,
                first_token_s=sequence.first_token_s,
                last_token_s=max(sequence.last_progress_s, sequence.first_token_s),
                num_prompt_tokens=sequence.num_prompt_tokens - sequence.num_reused,
                num_tokens=sequence.num_output,
                has_stopped=sequence.has_stopped,
            )

    def _prompt_tokens_before(self, sequence: Sequence) -> int:
        """Count the prompt tokens that are computed before this sequence's, by the order of now."""
        place = bisect.bisect_left(self._waiting, (self._key(sequence),))
        return sum(s.num_prompt_left for _, s in self._waiting[:place]) + sum(
            s.num_prompt_left for s in self._active.values() if self._key(s) < self._key(sequence)
        )

    def _refuse_overload(self, sequence: Sequence, now_s: float) -> None:
        num_tokens = self._queue_tokens + sequence.num_queue_tokens
        excess = num_tokens - self._config.max_queue_tokens
        if self._waiting and excess > 0:
            detail = f"{self._queue_tokens} prompt tokens wait already, {self._config.max_queue_tokens} may"
            raise Overloaded(retry_after_s=self._retry_after_s(excess, now_s), detail=detail)

    def _retry_after_s(self, excess_tokens: int, now_s: float) -> float:
        """Return when room for so many tokens is expected, by the rate at which prompts got slots lately."""
        return _bounded_retry_s(self._drain.seconds(excess_tokens, now_s) or 1.0)


def _bounded_retry_s(wait_s: float) -> float:
    return min(max(wait_s, _MIN_RETRY_S), _MAX_RETRY_S)
