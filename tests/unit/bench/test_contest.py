"""When a contest stops: by a clock that the test moves."""

from bench.contest import RoundClock
from bench.measurement import Outcome, Repetition


def test_another_round_begins_only_when_the_last_one_would_fit_what_is_left() -> None:
    now_s = 100.0
    clock = RoundClock(60.0, clock=lambda: now_s)
    for candidate, variant, seconds in (("a", "1", 30.0), ("a", "2", 10.0), ("b", "2", 15.0)):
        clock.note(Repetition(candidate, variant, "s", 0, 0.0, Outcome(1, seconds)))
    now_s = 134.0  # 26 s are left; the best settings took 25
    assert clock.has_time("s")
    now_s = 136.0
    assert not clock.has_time("s")


def test_those_who_have_had_their_rounds_need_no_time() -> None:
    clock = RoundClock(60.0, max_rounds={"slow": 1}, clock=lambda: 45.0)
    clock.note(Repetition("slow", "v", "s", 0, 0.0, Outcome(1, 500.0)))
    clock.note(Repetition("fast", "v", "s", 0, 0.0, Outcome(1, 50.0)))
    assert clock.has_time("s")
