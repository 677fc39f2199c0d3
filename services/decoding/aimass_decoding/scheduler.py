"""Decides what the engine computes next. A pure data structure: no clock, no model, no threads.

A step is one run of the graph: either one chunk of one prompt, or one token of every decoding sequence.

- Order of prompts: higher priority first; within a priority the earlier deadline first, where a missing or a
  far deadline counts as `assumed_deadline_s` after arrival. So nobody is passed by later arrivals for longer
  than that, except by those of a higher priority.
- Prompts cannot stall decodes: at most `max_prefill_tokens_per_step` prompt tokens run between two decode
  steps, and a stream that was already flowing when a prompt arrived is slowed down by the factor
  `max_decode_slowdown` at most, on average: the time a chunk took is a debt that decode steps pay off.
- Decodes cannot starve prompts: the debt is paid after `1 / (max_decode_slowdown - 1)` times the chunk's
  time, and a prompt without progress for `max_prefill_wait_s` runs without regard to it.
- A prompt is always cut into the same chunks, so that its numbers do not depend on its neighbours.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass

from aimass_serving.errors import DeadlineExceeded, InputTooLong, Overloaded

from aimass_decoding.config import EngineConfig
from aimass_decoding.sequence import Sequence, Stage
from aimass_decoding.slots import Slots

_RATE_WINDOW_S = 10.0
_COST_SMOOTHING = 0.2
_NEGLIGIBLE_S = 1e-6
_MIN_RETRY_S, _MAX_RETRY_S = 0.1, 30.0

_Key = tuple[float, float, int]


@dataclass(frozen=True, slots=True)
class PrefillStep:
    """Compute `count` prompt tokens of a sequence, after the `start` that are in its slot."""

    sequence: Sequence
    start: int
    count: int

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """The sequences of this run of the graph."""
        return (self.sequence,)

    @property
    def is_last_chunk(self) -> bool:
        """Whether the prompt is complete after it, so that its logits choose the first token."""
        return self.start + self.count == self.sequence.num_prompt_tokens


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """Compute one more token of each of these sequences. Rows 0 to `num_rows` run, holes included."""

    sequences: tuple[Sequence, ...]
    num_rows: int


Step = PrefillStep | DecodeStep


@dataclass(frozen=True, slots=True)
class Move:
    """Copy a slot's cache to another slot, which a sequence owns from now on."""

    source: int
    target: int
    num_tokens: int


class Scheduler:
    """Waiting and running sequences, and the slots between them. Owned by the engine thread."""

    def __init__(self, config: EngineConfig, *, num_slots: int, max_len: int) -> None:
        self._config = config
        self._max_len = max_len
        self._slots = Slots(num_slots)
        self._waiting: list[tuple[_Key, Sequence]] = []  # sorted
        self._active: dict[int, Sequence] = {}  # by slot
        self._queue_tokens = 0
        self._next_expiry_s = math.inf
        self._prefill_tokens_since_decode = 0
        self._debt_s = 0.0
        self._departures = _Rate()
        self._prefill_token_cost = _Cost()  # of full chunks
        self._decode_cost = _Cost()

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
    def max_len(self) -> int:
        """Longest sequence in tokens, prompt and output together."""
        return self._max_len

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
        self._refuse_lost_deadline(sequence, now_s)
        self._refuse_overload(sequence, now_s)
        bisect.insort(self._waiting, (self._key(sequence), sequence))
        self._queue_tokens += sequence.num_prompt_tokens
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

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence and free its slot. Does nothing when that was done before."""
        if sequence.stage is Stage.WAITING:
            self._leave_queue(sequence)
        elif sequence.stage is not Stage.DONE:
            del self._active[sequence.slot]
            self._slots.release(sequence.slot)
        sequence.stage = Stage.DONE

    def schedule(self, now_s: float) -> Step | None:
        """Return what to compute next; None when there is nothing."""
        prompt = self._next_prompt()
        decoding = [s for _, s in sorted(self._active.items()) if s.stage is Stage.DECODING]
        if prompt is not None and self._may_prefill(prompt, decoding, now_s):
            return self._prefill_step(prompt, now_s)
        if decoding:
            return DecodeStep(tuple(decoding), self._slots.high_water)
        return None

    def commit(self, step: Step, *, now_s: float, seconds: float) -> None:
        """Record that a step ran, in `seconds` of computing, and what that makes of its sequences."""
        if isinstance(step, PrefillStep):
            self._commit_prefill(step, now_s=now_s, seconds=seconds)
            return
        self._prefill_tokens_since_decode = 0
        self._decode_cost.observe(seconds)
        self._debt_s = max(0.0, self._debt_s - (self._config.max_decode_slowdown - 1) * seconds)
        for sequence in step.sequences:
            sequence.num_cached += 1
            sequence.num_steps += 1

    def compact(self) -> list[Move]:
        """Move the highest sequences into the lowest holes when the rows are mostly holes.

        The caller copies the cache in the order given, before the next step.
        """
        moves: list[Move] = []
        while self._slots.is_mostly_holes or (moves and self._slots.num_taken < self._slots.high_water):
            sequence = self._active.pop(self._slots.high_water - 1)
            source, target = sequence.slot, self._slots.acquire()
            self._slots.release(source)
            self._active[target] = sequence
            sequence.slot = target
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
        self._queue_tokens -= sequence.num_prompt_tokens

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

    @property
    def _max_chunk(self) -> int:
        return self._config.max_prefill_tokens_per_step

    def _chunk_tokens(self, prompt: Sequence) -> int:
        return min(prompt.num_prompt_left, self._max_chunk)

    @staticmethod
    def _slows_down(prompt: Sequence, decoding: list[Sequence]) -> bool:
        """Whether a stream was flowing already when the prompt arrived. Others came with it, or after."""
        return any(sequence.first_token_s < prompt.arrival_s for sequence in decoding)

    def _prefill_step(self, prompt: Sequence, now_s: float) -> PrefillStep:
        if prompt.stage is Stage.WAITING:
            self._leave_queue(prompt)
            self._departures.record(prompt.num_prompt_tokens, now_s)
            prompt.slot = self._slots.acquire()
            prompt.stage = Stage.PREFILLING
            self._active[prompt.slot] = prompt
        return PrefillStep(prompt, prompt.num_cached, self._chunk_tokens(prompt))

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
        least_s = self._prefill_token_cost.seconds * sequence.num_prompt_tokens
        least_s += self._decode_cost.seconds * max(0, sequence.request.min_new_tokens - 1)
        if now_s + (least_s if self.has_work else 0) > deadline_s:
            raise DeadlineExceeded(phase="admission")
        wait_s = self._prefill_token_cost.seconds * self._prompt_tokens_before(sequence)
        if wait_s > 0 and now_s + wait_s + least_s > deadline_s:
            detail = (
                f"the prompts before it take {wait_s:.1f} s, its deadline is in {deadline_s - now_s:.1f} s"
            )
            raise Overloaded(retry_after_s=_bounded_retry_s(wait_s), detail=detail)

    def _prompt_tokens_before(self, sequence: Sequence) -> int:
        """Count the prompt tokens that are computed before this sequence's, by the order of now."""
        place = bisect.bisect_left(self._waiting, (self._key(sequence),))
        return sum(s.num_prompt_left for _, s in self._waiting[:place]) + sum(
            s.num_prompt_left for s in self._active.values() if self._key(s) < self._key(sequence)
        )

    def _refuse_overload(self, sequence: Sequence, now_s: float) -> None:
        num_tokens = self._queue_tokens + sequence.num_prompt_tokens
        excess = num_tokens - self._config.max_queue_tokens
        if self._waiting and excess > 0:
            detail = f"{self._queue_tokens} prompt tokens wait already, {self._config.max_queue_tokens} may"
            raise Overloaded(retry_after_s=self._retry_after_s(excess, now_s), detail=detail)

    def _retry_after_s(self, excess_tokens: int, now_s: float) -> float:
        """Return when room for so many tokens is expected, by the rate at which prompts got slots lately."""
        rate = self._departures.per_second(now_s)
        return _bounded_retry_s(excess_tokens / rate if rate > 0 else 1.0)


def _bounded_retry_s(wait_s: float) -> float:
    return min(max(wait_s, _MIN_RETRY_S), _MAX_RETRY_S)


@dataclass(slots=True)
class _Cost:
    """A smoothed measurement; 0 before the first."""

    seconds: float = 0.0

    def observe(self, seconds: float) -> None:
        weight = _COST_SMOOTHING if self.seconds else 1.0
        self.seconds += weight * (seconds - self.seconds)


@dataclass(slots=True)
class _Rate:
    """Events per second, older ones counting exponentially less."""

    amount: float = 0.0
    at_s: float = 0.0

    def record(self, amount: float, now_s: float) -> None:
        self.amount, self.at_s = self._decayed(now_s) + amount, now_s

    def per_second(self, now_s: float) -> float:
        return self._decayed(now_s) / _RATE_WINDOW_S

    def _decayed(self, now_s: float) -> float:
        return self.amount * math.exp((self.at_s - now_s) / _RATE_WINDOW_S)
