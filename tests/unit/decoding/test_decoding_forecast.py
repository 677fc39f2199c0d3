"""Deadlines under load: forecast from what ended lately, refused when hopeless, and so no collapse."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import numpy as np
import pytest
from aimass_decoding.config import EngineConfig
from aimass_decoding.forecast import DrainRate, Forecast
from aimass_decoding.request import SequenceRequest
from aimass_decoding.scheduler import DecodeStep, PrefillStep, Scheduler
from aimass_decoding.sequence import Sequence
from aimass_decoding.testing import fake_sequence
from aimass_serving.errors import AimassError, Overloaded

PROMPT, OUTPUT = 64, 20
CHUNK_S, STEP_S = 0.1, 0.02


Size = tuple[int, int]
"""Tokens of a prompt, and of its output."""


def alike(number: int) -> Size:
    return PROMPT, OUTPUT


def ragged(number: int) -> Size:
    """Return sizes that vary ninefold, each in its own way."""
    return random.Random(number).randint(6, 120), random.Random(-number).randint(5, 45)


def sequence(number: int, size: Size, *, now_s: float, deadline_s: float | None) -> Sequence:
    prompt = np.arange(size[0])
    request = SequenceRequest(f"r{number}", prompt, max_new_tokens=size[1], deadline_s=deadline_s)
    return fake_sequence(request, number=number, now_s=now_s)


class Simulation:
    """An engine whose prompts and decode steps take fixed times, on a clock of its own."""

    def __init__(self, size_of: Callable[[int], Size] = alike) -> None:
        self.scheduler = Scheduler(EngineConfig(max_kept_prefixes=0), num_slots=8, max_len=200)
        self.now_s = 0.0
        self.num_good = 0
        self.num_good_tokens = 0
        self._size_of = size_of

    def offer(self, number: int, *, patience_s: float) -> AimassError | None:
        try:
            size, deadline_s = self._size_of(number), self.now_s + patience_s
            each = sequence(number, size, now_s=self.now_s, deadline_s=deadline_s)
            self.scheduler.submit(each, self.now_s)
        except AimassError as error:
            return error
        return None

    def step(self) -> None:
        """Do what the stepper does, without a model."""
        for late in self.scheduler.expired(self.now_s):
            self.scheduler.remove(late)
        while (lost := self.scheduler.hopeless(self.now_s)) is not None:
            self.scheduler.remove(lost)
        step = self.scheduler.schedule(self.now_s)
        seconds = CHUNK_S * step.count / PROMPT if isinstance(step, PrefillStep) else STEP_S
        self.now_s += seconds
        if step is None:
            return
        self.scheduler.commit(step, now_s=self.now_s, seconds=seconds)
        if isinstance(step, DecodeStep) or (isinstance(step, PrefillStep) and step.is_last_chunk):
            for each in step.sequences:
                self._accept(each)

    def _accept(self, each: Sequence) -> None:
        each.num_output += 1
        if each.num_output == 1:
            each.first_token_s = self.now_s
        if each.num_output == each.request.max_new_tokens:
            is_good = each.expires_at_s > self.now_s
            self.num_good += is_good
            self.num_good_tokens += is_good * each.num_output
            self.scheduler.remove(each)


def overloaded(
    calls_a_second: float, *, size_of: Callable[[int], Size] = alike, duration_s: float = 60
) -> Simulation:
    """Return what came of so many calls a second, at random times, each with 6 seconds to end in."""
    gaps = np.random.default_rng(0).exponential(1 / calls_a_second, size=int(2 * calls_a_second * duration_s))
    arrivals = deque(np.cumsum(gaps).tolist())
    sut, number = Simulation(size_of), 0
    while sut.now_s < duration_s:
        while arrivals and arrivals[0] <= sut.now_s:
            arrivals.popleft()
            number += 1
            sut.offer(number, patience_s=6)
        sut.step()
    return sut


def test_goodput_stays_up_when_twice_and_four_times_as_many_calls_come() -> None:
    peak = max(overloaded(rate).num_good for rate in (4, 5, 6))
    assert peak > 3 * 60
    for factor in (2, 4):
        assert overloaded(factor * peak / 60).num_good >= 0.9 * peak


def test_goodput_of_ragged_calls_stays_up_in_tokens_too() -> None:
    peak = max(overloaded(rate, size_of=ragged).num_good_tokens for rate in (4, 5, 6))
    assert overloaded(2 * 5, size_of=ragged).num_good_tokens >= 0.9 * peak


def test_without_a_forecast_most_work_is_for_calls_that_end_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: what keeps goodput up is the forecast, not the simulation."""
    peak = max(overloaded(rate, size_of=ragged).num_good_tokens for rate in (4, 5, 6))
    monkeypatch.setattr(Forecast, "seconds", lambda *_, **__: 0.0)
    monkeypatch.setattr(DrainRate, "seconds", lambda *_: 0.0)
    assert overloaded(2 * 5, size_of=ragged).num_good_tokens < 0.5 * peak


def test_a_burst_after_a_long_silence_is_taken() -> None:
    sut = Simulation()
    for number in range(8):
        assert sut.offer(number, patience_s=60) is None
    while sut.scheduler.has_work:
        sut.step()
    sut.now_s += 600
    assert [sut.offer(10 + number, patience_s=6) for number in range(16)] == [None] * 16


def test_a_deadline_that_the_pace_of_now_would_miss_is_refused_at_once() -> None:
    sut = Simulation()
    assert sut.offer(0, patience_s=60) is None
    while not sut.num_good:
        sut.step()
    assert sut.offer(1, patience_s=60) is None
    with pytest.raises(Overloaded, match=r"take up to 0\.7 s, its deadline is in 0\.5 s"):
        raise sut.offer(2, patience_s=0.5) or AssertionError("it was taken")
    assert sut.offer(3, patience_s=0.8) is None


def test_an_idle_engine_tries_whatever_the_forecast_says() -> None:
    sut = Simulation()
    assert sut.offer(0, patience_s=60) is None
    while not sut.num_good:
        sut.step()
    assert sut.offer(1, patience_s=0.5) is None


def observed(sut: Forecast, *, num_tokens: int, has_stopped: bool) -> Forecast:
    """Let a forecast see a prompt of 10 tokens that took 1 s, and a token each 0.2 s after it."""
    sut.observe(
        entered_s=1,
        first_token_s=2,
        last_token_s=2 + 0.2 * (num_tokens - 1),
        num_prompt_tokens=10,
        num_tokens=num_tokens,
        has_stopped=has_stopped,
    )
    return sut


def test_what_the_model_did_not_end_is_as_long_as_it_may_be() -> None:
    sut = Forecast()
    assert sut.seconds(num_prompt_tokens=10, max_new_tokens=100) == 0
    observed(sut, num_tokens=10, has_stopped=False)
    assert sut.seconds(num_prompt_tokens=20, max_new_tokens=100) == pytest.approx(2 + 99 * 0.2)
    assert sut.seconds(num_prompt_tokens=20, max_new_tokens=1) == pytest.approx(2)


def test_what_the_model_ended_is_as_long_as_others_lately() -> None:
    sut = Forecast()
    for _ in range(50):
        observed(sut, num_tokens=20, has_stopped=True)
    assert sut.seconds(num_prompt_tokens=10, max_new_tokens=10_000) == pytest.approx(1 + 19 * 0.2)
    shorter_s = sut.seconds(num_prompt_tokens=10, max_new_tokens=20)
    assert 1 + 10 * 0.2 < shorter_s < 1 + 15 * 0.2  # some of them end before


def test_time_without_a_queue_does_not_slow_the_drain_of_a_queue() -> None:
    sut = DrainRate()
    sut.begin(0)
    for second in range(1, 6):
        sut.record(100, second)
    assert sut.seconds(200, 5) == pytest.approx(2)
    sut.stop()
    assert sut.seconds(200, 1000) == pytest.approx(2)
    sut.begin(1000)
    assert sut.seconds(200, 1001) > 2.2  # a second in which nothing left


def test_a_drain_that_was_hardly_measured_tells_nothing() -> None:
    sut = DrainRate()
    sut.begin(0)
    sut.record(5, 0)
    assert sut.seconds(1000, 0.1) == 0
