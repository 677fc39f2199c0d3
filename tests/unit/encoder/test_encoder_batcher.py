"""The batcher's promises, as properties: budget, cap, nothing lost, nobody starved, one rule of admission."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from aimass_encoder.batcher import Batch, Batcher, BatchLimits
from aimass_encoder.pieces import PIECE_COST
from aimass_serving.errors import DeadlineExceeded, Overloaded
from hypothesis import given
from hypothesis import strategies as st

LIMITS = BatchLimits(max_batch_tokens=64, max_batch_rows=6, max_queue_tokens=200, length_multiple=4)
LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=30)


def batcher_with(
    lengths: list[int], *, limits: BatchLimits = LIMITS, now_s: float = 0.0, deadline_s: float = math.inf
) -> Batcher[int]:
    """Return a batcher with one call whose payloads are 0, 1, 2..."""
    batcher: Batcher[int] = Batcher(limits)
    batcher.submit(list(enumerate(lengths)), now_s=now_s, deadline_s=deadline_s)
    return batcher


def take(batcher: Batcher[int]) -> Batch[int]:
    batch = batcher.select()
    assert batch is not None
    batcher.take(batch)
    return batch


def drain(batcher: Batcher[int]) -> list[Batch[int]]:
    batches = []
    while len(batcher):
        batches.append(take(batcher))
    return batches


def payloads(batch: Batch[int]) -> list[int]:
    return [e.payload for e in batch.entries]


@given(LENGTHS)
def test_every_entry_runs_exactly_once(lengths: list[int]) -> None:
    batcher = batcher_with(lengths)
    served = [p for batch in drain(batcher) for p in payloads(batch)]
    assert sorted(served) == list(range(len(lengths)))
    assert batcher.queued_tokens == 0
    assert batcher.select() is None


@given(LENGTHS)
def test_every_batch_is_within_budget_rows_and_padding_cap(lengths: list[int]) -> None:
    for batch in drain(batcher_with(lengths)):
        padded = [e.padded_tokens for e in batch.entries]
        assert all(e.num_tokens <= e.padded_tokens and e.padded_tokens % 4 == 0 for e in batch.entries)
        assert batch.padded_tokens == len(padded) * max(padded) <= LIMITS.max_batch_tokens
        assert len(padded) <= LIMITS.max_batch_rows
        amplification = len(padded) * max(padded) ** 2 / sum(n**2 for n in padded)
        assert amplification <= LIMITS.max_amplification


@given(LENGTHS)
def test_a_batch_in_pieces_holds_its_entries_in_order_and_counts_no_padding(lengths: list[int]) -> None:
    limits = replace(LIMITS, num_lanes=2)
    for batch in drain(batcher_with(lengths, limits=limits)):
        padded = [e.padded_tokens for e in batch.entries]
        assert padded == sorted(padded)
        assert sum(padded) <= limits.max_batch_tokens
        assert batch.padded_tokens == sum(len(p.entries) * p.padded_length for p in batch.pieces)
        assert batch.padded_tokens - sum(padded) <= PIECE_COST * len(batch.pieces)


@given(num_texts=st.integers(1, 40), length=st.integers(1, 16))
def test_texts_of_one_length_fill_their_batches(num_texts: int, length: int) -> None:
    per_batch = min(LIMITS.max_batch_rows, LIMITS.max_batch_tokens // LIMITS.padded(length))
    sizes = [len(batch.entries) for batch in drain(batcher_with([length] * num_texts))]
    assert sizes == [per_batch] * (num_texts // per_batch) + [num_texts % per_batch] * (
        num_texts % per_batch > 0
    )


def test_neighbours_in_length_run_together_whatever_their_order() -> None:
    lengths = [4, 64, 5, 60, 6, 62] * 10
    batches = drain(batcher_with(lengths, limits=BatchLimits(max_batch_tokens=512)))
    num_tokens, padded_tokens = sum(lengths), sum(b.padded_tokens for b in batches)
    assert num_tokens / padded_tokens > 0.9  # in order of arrival it would be about a half


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0.1, 20)), min_size=1, max_size=30))
def test_an_entry_waits_for_no_more_batches_than_entries_due_before_it(
    calls: list[tuple[int, float]],
) -> None:
    batcher: Batcher[int] = Batcher(BatchLimits(max_batch_tokens=64, length_multiple=4))
    for payload, (length, deadline_s) in enumerate(calls):
        batcher.submit([(payload, length)], now_s=0, deadline_s=deadline_s)
    due = [min(deadline_s, batcher.limits.patience_s) for _, deadline_s in calls]
    for round_number, batch in enumerate(drain(batcher)):
        for payload in payloads(batch):
            due_before = sum((due[p], p) < (due[payload], payload) for p in range(len(calls)))
            assert round_number <= due_before


def test_newcomers_that_fit_better_cannot_starve_the_odd_one_out() -> None:
    batcher: Batcher[int] = Batcher(BatchLimits(max_batch_tokens=64, patience_s=5))
    batcher.submit([(0, 64)], now_s=0)
    served_at = None
    for second in range(1, 20):
        batcher.submit([(100 * second + i, 4) for i in range(16)], now_s=second, deadline_s=second + 2)
        if 0 in payloads(take(batcher)):
            served_at = second
            break
    assert served_at is not None
    assert served_at <= 5  # its due time: what arrives later cannot be due before it


def test_tighter_deadlines_go_first() -> None:
    batcher: Batcher[int] = Batcher(BatchLimits(max_batch_tokens=8))
    for payload, deadline_s in enumerate([4.0, 2.0, math.inf, 3.0]):
        batcher.submit([(payload, 8)], now_s=0, deadline_s=deadline_s)
    assert [payloads(b) for b in drain(batcher)] == [[1], [3], [0], [2]]


def test_a_long_call_does_not_shut_out_a_short_one_that_comes_later() -> None:
    batcher: Batcher[int] = Batcher(BatchLimits(max_batch_tokens=16, max_queue_tokens=10_000))
    batcher.submit([(-1, 16)], now_s=0)
    batcher.record(take(batcher), seconds=0.1)  # 160 tokens a second
    batcher.submit([(i, 16) for i in range(100)], now_s=1)  # ten seconds of work
    batcher.submit([(1000, 16)], now_s=2)
    order = [p for batch in drain(batcher) for p in payloads(batch)]
    assert order.index(1000) == pytest.approx(10, abs=1)  # after what was ahead of it one second later


def test_one_rule_admits_one_text_and_many() -> None:
    for sizes in ([150], [50, 50, 50]):
        batcher: Batcher[str] = Batcher(BatchLimits(max_queue_tokens=100))
        batcher.submit(
            [(f"first {i}", n) for i, n in enumerate(sizes)], now_s=0
        )  # below the bound: admitted whole
        for call in ([("one", 1)], [("many 1", 400), ("many 2", 400)]):
            with pytest.raises(Overloaded):
                batcher.submit(call, now_s=0)  # at the bound: refused whole, whatever the size
        assert len(batcher) == len(sizes)
        assert batcher.queued_tokens == 150


@given(st.lists(st.lists(st.integers(1, 64), min_size=1, max_size=8), max_size=20))
def test_a_call_is_admitted_whole_exactly_while_the_queue_is_below_its_bound(calls: list[list[int]]) -> None:
    batcher: Batcher[tuple[int, int]] = Batcher(LIMITS)
    expected = 0
    for number, lengths in enumerate(calls):
        items = [((number, i), n) for i, n in enumerate(lengths)]
        if expected < LIMITS.max_queue_tokens:
            batcher.submit(items, now_s=0)
            expected += sum(lengths)
        else:
            with pytest.raises(Overloaded):
                batcher.submit(items, now_s=0)
        assert batcher.queued_tokens == expected


def test_the_retry_hint_is_the_time_to_half_empty_the_queue() -> None:
    batcher: Batcher[int] = Batcher(BatchLimits(max_queue_tokens=100, max_batch_tokens=1000))
    batcher.submit([(0, 100)], now_s=0)
    batcher.record(take(batcher), seconds=2.0)  # 50 tokens a second
    batcher.submit([(1, 150)], now_s=0)
    with pytest.raises(Overloaded) as refused:
        batcher.submit([(2, 1)], now_s=0)
    assert refused.value.retry_after_s == pytest.approx(2.0)  # from 150 to 50


def test_a_passed_deadline_is_refused() -> None:
    with pytest.raises(DeadlineExceeded):
        batcher_with([4], now_s=2, deadline_s=2)


def test_a_call_that_cannot_finish_in_time_is_refused_at_once() -> None:
    batcher: Batcher[int] = Batcher(BatchLimits(max_batch_tokens=64))
    batcher.submit([(0, 10)], now_s=0)
    batcher.record(take(batcher), seconds=1.0)  # 10 tokens a second
    batcher.submit([(1, 60)], now_s=0)
    with pytest.raises(Overloaded, match="outlast its deadline") as refusal:
        batcher.submit([(2, 10)], now_s=0, deadline_s=20)
    # 60 tokens before it, as many in its own batch and its own 10 take 13 s, 20.8 with the margin of 1.6
    assert refusal.value.retry_after_s == pytest.approx(13 - 20 / 1.6)
    with pytest.raises(DeadlineExceeded, match="even alone"):
        batcher.submit([(2, 50)], now_s=0, deadline_s=4.9)
    batcher.submit([(3, 10)], now_s=0, deadline_s=21)
    batcher.submit([(4, 10)], now_s=0, deadline_s=4)  # goes before the patient ones


def test_what_waits_or_runs_refuses_a_call_before_its_length_is_known() -> None:
    batcher: Batcher[int] = Batcher(BatchLimits(max_batch_tokens=64))
    batcher.submit([(0, 10)], now_s=0)
    batcher.record(take(batcher), seconds=1.0)  # 10 tokens a second
    batcher.submit([(1, 60)], now_s=0)
    take(batcher)
    batcher.check_admission(now_s=0, deadline_s=1)  # nothing waits: who knows
    batcher.submit([(2, 5)], now_s=0)
    batcher.check_admission(now_s=0, deadline_s=11.3)
    with pytest.raises(Overloaded):
        batcher.check_admission(now_s=0, deadline_s=11.1)  # 60 and twice 5 tokens, and the margin


def test_a_batch_that_was_not_full_tells_of_no_slower_engine() -> None:
    batcher = batcher_with([64] * 2)
    batcher.record(take(batcher), seconds=0.1)  # full: another one waits
    take(batcher)
    batcher.submit([(10, 2)], now_s=0)
    batcher.record(take(batcher), seconds=0.1)
    assert batcher.tokens_per_s == pytest.approx(640)


def test_under_pressure_an_entry_is_dropped_that_the_next_batch_would_finish_too_late() -> None:
    batcher = batcher_with([64] * 2)
    batcher.record(take(batcher), seconds=1.0)  # 64 tokens a second
    take(batcher)
    batcher.submit([(10, 64)], now_s=5, deadline_s=5.5)
    assert batcher.expire(5) == []  # alone it has a chance
    batcher.submit([(11, 64)], now_s=5)
    assert batcher.expire(5) == [10]


def test_an_empty_queue_trusts_no_forecast() -> None:
    batcher: Batcher[int] = Batcher(BatchLimits())
    batcher.submit([(0, 10)], now_s=0)
    batcher.record(take(batcher), seconds=1000.0)  # one stalled batch must not shut the door for good
    batcher.submit([(1, 10)], now_s=0, deadline_s=1)
    assert len(batcher) == 1


@given(LENGTHS, st.data())
def test_removed_entries_never_run(lengths: list[int], data: st.DataObject) -> None:
    batcher = batcher_with(lengths)
    gone = data.draw(st.sets(st.integers(0, len(lengths) - 1)))
    assert batcher.remove([*gone, 999]) == len(gone)
    served = {p for batch in drain(batcher) for p in payloads(batch)}
    assert served == set(range(len(lengths))) - gone
    assert batcher.queued_tokens == 0


def test_expired_entries_are_dropped_and_named() -> None:
    batcher: Batcher[int] = Batcher(BatchLimits())
    for payload, deadline_s in enumerate([1.0, 9.0, 2.0, math.inf]):
        batcher.submit([(payload, 4)], now_s=0, deadline_s=deadline_s)
    batcher.remove([0])
    assert list(batcher.expire(2.0)) == [2]
    assert [sorted(payloads(b)) for b in drain(batcher)] == [[1, 3]]
    assert list(batcher.expire(100.0)) == []


def test_a_prefetched_batch_is_current_until_a_member_leaves() -> None:
    batcher = batcher_with([8] * 20)
    batch = batcher.select()
    assert batch is not None
    assert batch.is_full
    batcher.submit([(100, 8)], now_s=1)
    assert batcher.is_current(batch)  # later arrivals of no urgency change nothing
    batcher.remove([batch.entries[-1].payload])
    assert not batcher.is_current(batch)


def test_a_prefetched_batch_gives_way_to_a_more_urgent_entry() -> None:
    batcher = batcher_with([8] * 20)
    batch = batcher.select()
    assert batch is not None
    batcher.submit([(100, 64)], now_s=0, deadline_s=0.5)
    assert not batcher.is_current(batch)


def test_a_prefetched_batch_that_took_everything_waits_for_company() -> None:
    batcher = batcher_with([8])
    batch = batcher.select()
    assert batch is not None
    assert not batch.is_full
    assert batcher.is_current(batch)
    batcher.submit([(100, 8)], now_s=0)
    assert not batcher.is_current(batch)


def test_bookkeeping_of_a_busy_queue_does_not_grow() -> None:
    batcher: Batcher[int] = Batcher(BatchLimits())
    for payload in range(2000):
        batcher.submit([(payload, 4)], now_s=0, deadline_s=1e9 + payload)
        batcher.remove([payload])
    assert len(batcher._by_due) + len(batcher._by_deadline) < 200


def test_an_entry_that_two_calls_share_is_due_at_the_earlier_and_dropped_at_the_later_deadline() -> None:
    batcher: Batcher[str] = Batcher(BatchLimits(patience_s=5.0, max_batch_rows=1))
    batcher.submit([("first", 1)], now_s=0, deadline_s=50)
    batcher.submit([("shared", 1)], now_s=1, deadline_s=20)
    batcher.share("shared", now_s=2, deadline_s=4)
    urgent = batcher.select()
    assert urgent is not None
    assert [entry.payload for entry in urgent.entries] == ["shared"]
    batcher.share("shared", now_s=3, deadline_s=90)
    assert batcher.expire(60) == ["first"]
    assert batcher.expire(90) == ["shared"]
    assert (len(batcher), batcher.queued_tokens) == (0, 0)
