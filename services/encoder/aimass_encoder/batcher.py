"""Which waiting texts run together next: a pure data structure, no threads, no clock, no arrays.

Must not know what the texts are for: an entry is a number of tokens, a due time and a payload.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Generic, TypeVar

from aimass_serving.errors import DeadlineExceeded, Overloaded

from aimass_encoder.pieces import cut

Payload = TypeVar("Payload", bound=Hashable)

_RATE_SMOOTHING = 0.2
_FORECAST_MARGIN = 1.6
"""A call is taken when its deadline leaves this many times what it is forecast to take: later calls whose
length fits a batch better go before it, and the answer takes its way back."""
_MIN_RETRY_S, _MAX_RETRY_S = 0.05, 30.0
_UNMEASURED_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What a batch and the queue may hold."""

    max_batch_tokens: int = 1024
    """Tokens of one batch, padding of the texts to the longest included where it runs in one piece. At least
    the longest padded text."""
    max_batch_rows: int = 256
    """Texts of one batch."""
    max_amplification: float = 1.5
    """Bound of n * max(len)^2 / sum(len^2) over a batch's padded lengths: what padding costs attention, and
    how much longer than itself the texts are that a short one waits for."""
    max_queue_tokens: int = 131_072
    """Calls are admitted while fewer tokens than this wait."""
    patience_s: float = 5.0
    """A text is due this long after its turn, or at its deadline if that is earlier."""
    length_multiple: int = 1
    """Padded lengths are multiples of this."""
    num_lanes: int = 0
    """A batch is cut into pieces for so many runs of the graph side by side; 0: it runs in one piece."""

    def padded(self, num_tokens: int) -> int:
        """Return the length that a text of `num_tokens` occupies in a batch."""
        return math.ceil(num_tokens / self.length_multiple) * self.length_multiple

    def cut(self, lengths: Sequence[int]) -> Sequence[int]:
        """Return how many texts of a batch each piece takes, given their padded lengths, shortest first."""
        return cut(lengths, num_lanes=self.num_lanes) if self.num_lanes else [len(lengths)]


@dataclass(frozen=True, slots=True, eq=False)
class Entry(Generic[Payload]):
    """One waiting text."""

    payload: Payload
    num_tokens: int
    padded_tokens: int
    due_s: float
    """The entry with the earliest due time seeds the next batch."""
    deadline_s: float
    """Past it the entry is dropped; infinite when the call has none."""
    sequence_number: int


def _length_order(entry: Entry[Payload]) -> tuple[int, float, int]:
    """Neighbours in this order are alike in length; equal lengths stand in order of due time."""
    return (entry.padded_tokens, entry.due_s, entry.sequence_number)


@dataclass(frozen=True, slots=True)
class Piece(Generic[Payload]):
    """Entries of one run of the graph, shortest first."""

    entries: Sequence[Entry[Payload]]

    @property
    def padded_length(self) -> int:
        """Tokens of each padded row."""
        return self.entries[-1].padded_tokens

    @property
    def padded_tokens(self) -> int:
        """What the piece costs: rows times padded length."""
        return len(self.entries) * self.padded_length


@dataclass(frozen=True, slots=True)
class Batch(Generic[Payload]):
    """Entries that run together, shortest first."""

    pieces: Sequence[Piece[Payload]]
    is_full: bool
    """Other entries wait, but do not fit."""

    @property
    def entries(self) -> Sequence[Entry[Payload]]:
        """The entries of all pieces."""
        return [entry for piece in self.pieces for entry in piece.entries]

    @property
    def padded_tokens(self) -> int:
        """What the batch costs."""
        return sum(piece.padded_tokens for piece in self.pieces)

    @property
    def num_tokens(self) -> int:
        """Tokens without padding."""
        return sum(e.num_tokens for e in self.entries)


class Batcher(Generic[Payload]):
    """The queue, and the choice of the next batch. One owner; not thread-safe.

    **Admission** has one rule for a call of one text and for a call of many: a call is admitted, whole, while
    fewer than `max_queue_tokens` wait, whatever its own size; else it is refused, whole. So the queue never
    holds more than that bound and one call. A call is also refused when, at the speed of the last full
    batches, it would end after its deadline: behind the batch that runs and the work due before it, with its
    own batch. With an empty queue that forecast is not consulted.

    **Order.** A batch is seeded by the entry with the earliest due time and filled with the entries nearest
    to it in length, within the token budget and the padding cap. A text is due `patience_s` after its turn,
    or at its deadline if that is earlier. Its turn comes when the texts before it in its own call could be
    done, so that a long call does not shut out the short ones that arrive after it.

    **Bound on waiting.** Each batch serves the earliest-due entry, so an entry runs within n + 1 batches, n
    being the entries due before it. None that arrives after its due time can be among those.
    """

    def __init__(self, limits: BatchLimits) -> None:
        self.limits = limits
        self._tokens_per_s = 0.0
        self._queued_tokens = 0
        self._running_tokens = 0
        self._num_submitted = 0
        self._waiting: dict[Payload, Entry[Payload]] = {}
        self._by_length: list[Entry[Payload]] = []  # sorted
        self._by_due: list[tuple[float, int, Entry[Payload]]] = []  # a heap; may hold entries that left
        self._by_deadline: list[tuple[float, int, Entry[Payload]]] = []  # likewise

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def queued_tokens(self) -> int:
        """Tokens of all waiting entries."""
        return self._queued_tokens

    @property
    def tokens_per_s(self) -> float:
        """Measured speed of full batches; 0 until the first batch is done."""
        return self._tokens_per_s

    def check_admission(self, *, now_s: float, deadline_s: float = math.inf, num_tokens: int = 0) -> None:
        """Raise `Overloaded` or `DeadlineExceeded` where `submit` would for so many tokens, or more."""
        if deadline_s <= now_s:
            raise DeadlineExceeded(phase="queue")
        self._check_forecast(num_tokens, now_s=now_s, deadline_s=deadline_s)
        if self._queued_tokens >= self.limits.max_queue_tokens:
            raise Overloaded(
                retry_after_s=self._retry_after_s(),
                detail=f"{self._queued_tokens} tokens wait, the queue takes {self.limits.max_queue_tokens}",
            )

    def submit(
        self, items: Sequence[tuple[Payload, int]], *, now_s: float, deadline_s: float = math.inf
    ) -> None:
        """Admit all `(payload, num_tokens)` of one call, or none.

        Payloads must be distinct, token counts positive and within the budget of a batch. Raises `Overloaded`
        or `DeadlineExceeded`, by the rules of the class.
        """
        num_tokens = sum(tokens for _, tokens in items)
        self.check_admission(now_s=now_s, deadline_s=deadline_s, num_tokens=num_tokens)
        before = accumulate((tokens for _, tokens in items), initial=0)
        entries = [
            self._entry(payload, tokens, due_s=self._due(ahead, now_s, deadline_s), deadline_s=deadline_s)
            for (payload, tokens), ahead in zip(items, before, strict=False)
        ]
        for entry in entries:
            self._insert(entry)

    def share(self, payload: Payload, *, now_s: float, deadline_s: float) -> None:
        """Let a further call wait for an entry: it is due when the earlier, and dropped when the later, says.

        The payload must be waiting.
        """
        entry = self._waiting[payload]
        due_s = min(entry.due_s, self._due(0, now_s, deadline_s))
        latest_s = max(entry.deadline_s, deadline_s)
        if (due_s, latest_s) != (entry.due_s, entry.deadline_s):
            self._num_submitted += 1  # the heaps may hold the old entry still: no two compare equal
            self._delete(entry)
            self._insert(
                replace(entry, due_s=due_s, deadline_s=latest_s, sequence_number=self._num_submitted)
            )

    def remove(self, payloads: Iterable[Payload]) -> int:
        """Drop entries that nobody waits for any more; unknown payloads are ignored. Return how many went."""
        gone = [self._waiting[p] for p in payloads if p in self._waiting]
        for entry in gone:
            self._delete(entry)
        return len(gone)

    def expire(self, now_s: float) -> Sequence[Payload]:
        """Drop and return the entries whose deadline has passed, or will have when the next batch ends."""
        expired: list[Payload] = []
        end_s = now_s + self._least_batch_s()
        while self._by_deadline and self._by_deadline[0][0] <= end_s:
            _, _, entry = heapq.heappop(self._by_deadline)
            if self._is_waiting(entry):
                self._delete(entry)
                expired.append(entry.payload)
        return expired

    def select(self) -> Batch[Payload] | None:
        """Choose the next batch without taking it. None when nothing waits."""
        seed = self._earliest_due()
        if seed is None:
            return None
        first = last = bisect_left(self._by_length, _length_order(seed), key=_length_order)
        batch = _Filling(self.limits, seed)
        while (side := self._nearer_side(first, last, batch)) is not None:
            first, last = (first - 1, last) if side < 0 else (first, last + 1)
            batch.add(self._by_length[first] if side < 0 else self._by_length[last])
        entries = self._by_length[first : last + 1]
        return Batch(self._cut(entries), is_full=len(entries) < len(self))

    def take(self, batch: Batch[Payload]) -> None:
        """Remove the entries of a batch that is about to run; all must be waiting."""
        for entry in batch.entries:
            assert self._is_waiting(entry), "a batch is taken once, and only while it is current"
            self._delete(entry)
        self._running_tokens = batch.num_tokens

    def is_current(self, batch: Batch[Payload]) -> bool:
        """Whether an earlier selection may still run: none of it left, none more urgent or fitting came."""
        seed = self._earliest_due()
        entries = batch.entries
        return (
            (batch.is_full or len(self) == len(entries))
            and all(self._is_waiting(e) for e in entries)
            and any(e is seed for e in entries)
        )

    def record(self, batch: Batch[Payload], *, seconds: float) -> None:
        """Learn how fast tokens are computed from a batch that ended, `seconds` after the one before it.

        Or after it was there, if nothing waited before. One that was not full says only how fast it can be.
        """
        self._running_tokens = 0
        if seconds <= 0:
            return
        rate = batch.num_tokens / seconds
        if batch.is_full or rate > self._tokens_per_s:
            self._tokens_per_s += (rate - self._tokens_per_s) * (
                _RATE_SMOOTHING if self._tokens_per_s else 1.0
            )

    def _cut(self, entries: Sequence[Entry[Payload]]) -> Sequence[Piece[Payload]]:
        ends = accumulate(self.limits.cut([e.padded_tokens for e in entries]), initial=0)
        return [Piece(entries[start:end]) for start, end in pairwise(ends)]

    def _entry(self, payload: Payload, num_tokens: int, *, due_s: float, deadline_s: float) -> Entry[Payload]:
        padded = self.limits.padded(num_tokens)
        assert 0 < padded <= self.limits.max_batch_tokens, "the engine cuts texts to the model's length"
        self._num_submitted += 1
        return Entry(payload, num_tokens, padded, due_s, deadline_s, self._num_submitted)

    def _due(self, tokens_ahead: int, now_s: float, deadline_s: float) -> float:
        turn_s = now_s + (tokens_ahead / self._tokens_per_s if self._tokens_per_s else 0.0)
        return min(turn_s + self.limits.patience_s, deadline_s)

    def _check_forecast(self, num_tokens: int, *, now_s: float, deadline_s: float) -> None:
        if not self._waiting or not self._tokens_per_s or deadline_s == math.inf:
            return
        left_s = deadline_s - now_s
        if num_tokens > left_s * self._tokens_per_s:
            raise DeadlineExceeded(phase="admission (forecast: it would not end in time even alone)")
        most_tokens = left_s * self._tokens_per_s / _FORECAST_MARGIN - num_tokens - self._running_tokens
        if self._with_own_batch(self._queued_tokens) <= most_tokens:
            return
        tokens_ahead = sum(e.num_tokens for e in self._waiting.values() if e.due_s <= deadline_s)
        excess = self._with_own_batch(tokens_ahead) - most_tokens
        if excess > 0:
            raise Overloaded(
                retry_after_s=_bounded_retry_s(excess / self._tokens_per_s),
                detail=f"{self._running_tokens + tokens_ahead} tokens before it and its own would outlast "
                f"its deadline, which is in {left_s:.2f} s",
            )

    def _with_own_batch(self, tokens_ahead: int) -> int:
        """Return the tokens that are computed until an entry's own batch ends: others alike run with it."""
        return tokens_ahead + min(tokens_ahead, self.limits.max_batch_tokens)

    def _least_batch_s(self) -> float:
        """Return how long the next batch takes if it will be full; 0 if it may be short."""
        is_long = self._tokens_per_s and self._queued_tokens > self.limits.max_batch_tokens
        return self.limits.max_batch_tokens / self._tokens_per_s if is_long else 0.0

    def _retry_after_s(self) -> float:
        if not self._tokens_per_s:
            return _UNMEASURED_RETRY_S
        excess = self._queued_tokens - self.limits.max_queue_tokens / 2
        return _bounded_retry_s(excess / self._tokens_per_s)

    def _insert(self, entry: Entry[Payload]) -> None:
        assert entry.payload not in self._waiting, "payloads are distinct"
        self._waiting[entry.payload] = entry
        self._queued_tokens += entry.num_tokens
        insort(self._by_length, entry, key=_length_order)
        heapq.heappush(self._by_due, (entry.due_s, entry.sequence_number, entry))
        if entry.deadline_s != math.inf:
            heapq.heappush(self._by_deadline, (entry.deadline_s, entry.sequence_number, entry))

    def _delete(self, entry: Entry[Payload]) -> None:
        del self._waiting[entry.payload]
        self._queued_tokens -= entry.num_tokens
        del self._by_length[bisect_left(self._by_length, _length_order(entry), key=_length_order)]
        self._forget_the_gone()

    def _forget_the_gone(self) -> None:
        """Rebuild the heaps when most of what they hold has left, so that they do not outgrow the queue."""
        if len(self._by_due) > 2 * len(self._waiting) + 64:
            self._by_due = [item for item in self._by_due if self._is_waiting(item[2])]
            heapq.heapify(self._by_due)
        if len(self._by_deadline) > 2 * len(self._waiting) + 64:
            self._by_deadline = [item for item in self._by_deadline if self._is_waiting(item[2])]
            heapq.heapify(self._by_deadline)

    def _is_waiting(self, entry: Entry[Payload]) -> bool:
        return self._waiting.get(entry.payload) is entry

    def _earliest_due(self) -> Entry[Payload] | None:
        while self._by_due and not self._is_waiting(self._by_due[0][2]):
            heapq.heappop(self._by_due)
        return self._by_due[0][2] if self._by_due else None

    def _nearer_side(self, first: int, last: int, batch: _Filling) -> int | None:
        """Return -1 or +1 for the neighbour to add next, the one nearer in length; None when neither fits."""
        sides: list[tuple[int, int]] = []
        for side, index in ((1, last + 1), (-1, first - 1)):
            if 0 <= index < len(self._by_length) and batch.fits(self._by_length[index].padded_tokens):
                sides.append((batch.distance(self._by_length[index].padded_tokens), side))
        return min(sides, key=lambda s: s[0])[1] if sides else None


def _bounded_retry_s(seconds: float) -> float:
    return min(max(seconds, _MIN_RETRY_S), _MAX_RETRY_S)


class _Filling:
    """Running totals of a batch that is being chosen."""

    def __init__(self, limits: BatchLimits, seed: Entry[Payload]) -> None:
        self._limits = limits
        self._seed_length = self._longest = seed.padded_tokens
        self._num_rows = 1
        self._num_tokens = seed.padded_tokens
        self._sum_squares = seed.padded_tokens**2

    def fits(self, length: int) -> bool:
        rows, longest = self._num_rows + 1, max(self._longest, length)
        num_tokens = self._num_tokens + length if self._limits.num_lanes else rows * longest
        amplification = rows * longest**2 / (self._sum_squares + length**2)
        return (
            rows <= self._limits.max_batch_rows
            and num_tokens <= self._limits.max_batch_tokens
            and amplification <= self._limits.max_amplification
        )

    def distance(self, length: int) -> int:
        return abs(length - self._seed_length)

    def add(self, entry: Entry[Payload]) -> None:
        self._num_rows += 1
        self._num_tokens += entry.padded_tokens
        self._longest = max(self._longest, entry.padded_tokens)
        self._sum_squares += entry.padded_tokens**2
