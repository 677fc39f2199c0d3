"""The scheduler's rules: order, bounds, admission, expiry, compaction."""

from __future__ import annotations

import numpy as np
import pytest
from aimass_decoding.config import EngineConfig
from aimass_decoding.request import SequenceRequest
from aimass_decoding.scheduler import DecodeStep, Move, PrefillStep, Scheduler, Step
from aimass_decoding.sequence import Sequence, Stage
from aimass_decoding.testing import fake_sequence
from aimass_serving.errors import DeadlineExceeded, InputTooLong, Overloaded

MAX_LEN = 1000


def scheduler(*, num_slots: int = 4, **settings: float) -> Scheduler:
    """A scheduler that shares no prompts: the sequences below all have the same."""
    config = EngineConfig(max_kept_prefixes=0, **settings)  # type: ignore[arg-type]
    return Scheduler(config, num_slots=num_slots, max_len=MAX_LEN)


def sequence(
    number: int,
    *,
    num_prompt_tokens: int = 10,
    now_s: float = 0.0,
    priority: int = 0,
    deadline_s: float | None = None,
    time_limit_at_s: float | None = None,
) -> Sequence:
    request = SequenceRequest(
        f"r{number}",
        np.arange(num_prompt_tokens),
        max_new_tokens=5,
        priority=priority,
        deadline_s=deadline_s,
        time_limit_at_s=time_limit_at_s,
    )
    return fake_sequence(request, number=number, now_s=now_s)


def prefill(of: Scheduler, now_s: float = 0.0, seconds: float = 0.0) -> PrefillStep:
    step = of.schedule(now_s)
    assert isinstance(step, PrefillStep)
    of.commit(step, now_s=now_s, seconds=seconds)
    if step.is_last_chunk:
        step.sequence.first_token_s = now_s
    return step


def decode(of: Scheduler, now_s: float = 0.0, seconds: float = 0.0) -> DecodeStep:
    step = of.schedule(now_s)
    assert isinstance(step, DecodeStep)
    of.commit(step, now_s=now_s, seconds=seconds)
    return step


def any_step(of: Scheduler) -> Step:
    step = of.schedule(0)
    assert step is not None
    of.commit(step, now_s=0, seconds=0)
    return step


def test_a_higher_priority_is_served_first_and_then_the_earlier_deadline() -> None:
    sut = scheduler()
    late, early = sequence(0, deadline_s=20), sequence(1, deadline_s=10)
    important, urgent_but_humble = sequence(2, priority=1), sequence(3, priority=-1, deadline_s=1)
    for waiting in (late, early, important, urgent_but_humble):
        sut.submit(waiting, 0)
    assert [prefill(sut).sequence for _ in range(4)] == [important, early, late, urgent_but_humble]


def test_a_request_without_a_deadline_is_not_passed_by_for_longer_than_the_assumed_one() -> None:
    sut = scheduler(assumed_deadline_s=5)
    patient = sequence(0, now_s=0)
    just_earlier = sequence(1, now_s=4, deadline_s=4.9)
    just_later = sequence(2, now_s=4, deadline_s=5.1)
    for waiting in (just_later, just_earlier, patient):
        sut.submit(waiting, waiting.arrival_s)
    assert [prefill(sut, 4).sequence for _ in range(3)] == [just_earlier, patient, just_later]


def test_a_long_prompt_is_computed_in_chunks_of_the_bound_with_decodes_between() -> None:
    sut = scheduler(max_prefill_tokens_per_step=8)
    first = sequence(0, num_prompt_tokens=3)
    sut.submit(first, 0)
    prefill(sut)
    foreign = sequence(1, num_prompt_tokens=20)
    sut.submit(foreign, 0)
    decode(sut)
    chunks = []
    while foreign.stage is not Stage.DECODING:
        step = prefill(sut)
        chunks.append((step.start, step.count))
        assert decode(sut).sequences[0] is first
    assert chunks == [(0, 8), (8, 8), (16, 4)]


def test_short_prompts_share_the_bound_of_one_step() -> None:
    sut = scheduler(max_prefill_tokens_per_step=8)
    for number in range(4):
        sut.submit(sequence(number, num_prompt_tokens=4), 0)
    kinds = [type(any_step(sut)) for _ in range(6)]
    assert kinds == [PrefillStep, PrefillStep, DecodeStep, PrefillStep, PrefillStep, DecodeStep]


def test_a_flowing_stream_is_slowed_down_by_the_configured_factor_at_most() -> None:
    sut = scheduler(max_decode_slowdown=1.5, max_prefill_tokens_per_step=10, max_prefill_wait_s=1e9)
    sut.submit(sequence(0), 0)
    prefill(sut)
    sut.submit(sequence(1, num_prompt_tokens=500, now_s=1), 1)
    decode_s = prefill_s = 0.0
    for _ in range(200):
        step = sut.schedule(2)
        assert step is not None
        seconds = 0.1 if isinstance(step, DecodeStep) else 0.3
        sut.commit(step, now_s=2, seconds=seconds)
        decode_s += seconds if isinstance(step, DecodeStep) else 0
        prefill_s += seconds if isinstance(step, PrefillStep) else 0
        assert (decode_s + prefill_s) <= 1.5 * decode_s + 0.3 + 1e-9, (
            "but for the one chunk that is on credit"
        )
    assert prefill_s > 0.9 * 0.5 * decode_s, "and the prompt gets its share"


def test_decodes_delay_a_prompt_by_no_more_than_the_stated_share() -> None:
    slowdown, chunk_s, decode_s = 1.5, 0.3, 0.1
    sut = scheduler(max_decode_slowdown=slowdown, max_prefill_tokens_per_step=10, max_prefill_wait_s=1e9)
    sut.submit(sequence(0), 0)
    prefill(sut)
    foreign = sequence(1, num_prompt_tokens=100, now_s=1)
    sut.submit(foreign, 1)
    waited_s = 0.0
    while foreign.stage is not Stage.DECODING:
        step = sut.schedule(2)
        assert step is not None
        seconds = decode_s if isinstance(step, DecodeStep) else chunk_s
        sut.commit(step, now_s=2, seconds=seconds)
        waited_s += seconds
    own_s = 10 * chunk_s
    assert waited_s <= own_s * slowdown / (slowdown - 1) + 10 * decode_s


def test_prompts_that_arrive_together_do_not_wait_for_one_another_to_decode() -> None:
    sut = scheduler(max_prefill_tokens_per_step=100)
    for number in range(3):
        sut.submit(sequence(number), 0)
    steps = [prefill(sut, now_s=0.1 * i, seconds=0.1) for i in range(3)]
    assert [step.sequence.number for step in steps] == [0, 1, 2]


def test_an_overdue_prompt_is_computed_in_spite_of_the_debt() -> None:
    sut = scheduler(max_prefill_wait_s=2, max_prefill_tokens_per_step=10)
    sut.submit(sequence(0), 0)
    prefill(sut)
    sut.submit(sequence(1, now_s=1), 1)
    sut.submit(sequence(2, now_s=1), 1)
    decode(sut, 1.5)
    prefill(sut, 1.5, seconds=10.0)
    decode(sut, 1.5, seconds=0.001)
    assert isinstance(sut.schedule(2.9), DecodeStep), "the debt of the first foreign prompt is far from paid"
    assert isinstance(sut.schedule(3.1), PrefillStep), "but the second has waited for over two seconds"


def test_a_prompt_that_leaves_no_room_for_a_token_is_refused() -> None:
    with pytest.raises(InputTooLong) as refusal:
        scheduler().submit(sequence(0, num_prompt_tokens=MAX_LEN), 0)
    assert refusal.value.description == f"expected at most {MAX_LEN - 1} tokens, got {MAX_LEN}"


def test_the_queue_is_bounded_in_tokens_and_says_when_to_come_back() -> None:
    sut = scheduler(num_slots=1, max_queue_tokens=25)
    sut.submit(sequence(0), 0)
    prefill(sut, now_s=1)
    sut.submit(sequence(1), 1)
    sut.submit(sequence(2), 1)
    with pytest.raises(Overloaded) as refusal:
        sut.submit(sequence(3), 2)
    assert 0.1 <= refusal.value.retry_after_s <= 30
    assert sut.queue_tokens == 20


def test_a_prompt_longer_than_the_queue_is_taken_when_nothing_waits() -> None:
    sut = scheduler(max_queue_tokens=25)
    sut.submit(sequence(0, num_prompt_tokens=100), 0)
    assert sut.num_waiting == 1


def test_a_faster_engine_asks_callers_to_come_back_sooner() -> None:
    def retry_after_s(seconds_between: float) -> float:
        sut = scheduler(num_slots=1, max_queue_tokens=10)
        now_s = 0.0
        sut.submit(sequence(0), now_s)
        for number in range(1, 20):
            running = prefill(sut, now_s).sequence
            sut.submit(sequence(number, now_s=now_s), now_s)
            now_s += seconds_between
            sut.remove(running)
        with pytest.raises(Overloaded) as refusal:
            sut.submit(sequence(99), now_s)
        return refusal.value.retry_after_s

    assert retry_after_s(0.5) < retry_after_s(5.0)


def measured_scheduler() -> Scheduler:
    """One slot, which is taken; a prompt token takes 0.1 s."""
    sut = scheduler(num_slots=1, max_prefill_tokens_per_step=10)
    sut.submit(sequence(0), 0)
    prefill(sut, seconds=1.0)
    return sut


def test_a_deadline_that_the_measured_speed_cannot_meet_is_refused_at_once() -> None:
    sut = measured_scheduler()
    with pytest.raises(DeadlineExceeded):
        sut.submit(sequence(1, deadline_s=0.9), 0)
    sut.submit(sequence(2, deadline_s=1.1), 0)


def test_an_idle_engine_measures_again_before_it_refuses_by_speed() -> None:
    sut = measured_scheduler()
    sut.remove(next(iter(sut.active)))
    sut.submit(sequence(1, deadline_s=0.9), 0)


def test_short_prompts_do_not_make_long_ones_look_slow() -> None:
    sut = scheduler(max_prefill_tokens_per_step=100)
    sut.submit(sequence(0, num_prompt_tokens=1), 0)
    prefill(sut, seconds=1.0)
    sut.submit(sequence(1, num_prompt_tokens=500, deadline_s=10), 0)


def test_a_deadline_that_only_the_queue_makes_impossible_is_refused_as_overload() -> None:
    sut = measured_scheduler()
    for number in range(1, 4):
        sut.submit(sequence(number, deadline_s=100), 0)
    with pytest.raises(Overloaded, match="prompts before it") as refusal:
        sut.submit(sequence(4, deadline_s=100, priority=-1, num_prompt_tokens=980), 0)
    assert refusal.value.retry_after_s == pytest.approx(3.0)
    sut.submit(sequence(5, deadline_s=100, priority=1, num_prompt_tokens=980), 0)


def test_before_anything_was_measured_only_a_past_deadline_is_refused() -> None:
    sut = scheduler()
    with pytest.raises(DeadlineExceeded):
        sut.submit(sequence(0, deadline_s=0.9), 1.0)
    sut.submit(sequence(1, deadline_s=1.1), 1.0)


def test_expired_names_each_sequence_whose_time_has_passed_wherever_it_stands() -> None:
    sut = scheduler(num_slots=1)
    running, waiting, unbounded = (
        sequence(0, deadline_s=5),
        sequence(1, time_limit_at_s=6),
        sequence(2),
    )
    for each in (running, waiting, unbounded):
        sut.submit(each, 0)
    prefill(sut)
    assert sut.expired(4.9) == []
    assert sut.expired(5.0) == [running]
    sut.remove(running)
    assert sut.expired(7.0) == [waiting]
    sut.remove(waiting)
    assert sut.expired(1e9) == []
    assert (sut.num_active, sut.num_waiting, sut.queue_tokens) == (0, 1, 10)


def test_removing_twice_frees_a_slot_once() -> None:
    sut = scheduler(num_slots=2)
    first, second = sequence(0), sequence(1)
    sut.submit(first, 0)
    sut.submit(second, 0)
    prefill(sut)
    prefill(sut)
    sut.remove(first)
    sut.remove(first)
    assert sut.num_active == 1


def test_compaction_moves_the_highest_sequence_into_the_lowest_hole() -> None:
    sut = scheduler()
    four = [sequence(number) for number in range(4)]
    for each in four:
        sut.submit(each, 0)
        prefill(sut)
    sut.remove(four[0])
    assert sut.compact() == [], "one hole of four is cheaper than a copy"
    sut.remove(four[2])
    assert sut.compact() == [Move(source=3, target=0, num_tokens=10)]
    assert (four[3].slot, four[1].slot) == (0, 1)
    assert decode(sut).num_rows == 2


def test_a_sequence_that_is_being_read_keeps_its_rows_out_of_decode_but_inside_the_range() -> None:
    sut = scheduler(max_prefill_tokens_per_step=8)
    reading, running = sequence(0, num_prompt_tokens=16, priority=-1), sequence(1, num_prompt_tokens=4)
    sut.submit(reading, 0)
    prefill(sut)
    sut.submit(running, 0)
    prefill(sut)
    step = decode(sut)
    assert step.sequences == (running,)
    assert (running.slot, step.num_rows) == (1, 2)


def test_nothing_to_do_is_no_step() -> None:
    assert scheduler().schedule(0) is None
