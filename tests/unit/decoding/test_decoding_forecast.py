"""Deadlines under load: forecast from what ended lately, refused when hopeless, and so no collapse."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from aimass_decoding.config import EngineConfig
from aimass_decoding.forecast import Forecast
from aimass_decoding.request import SequenceRequest
from aimass_decoding.scheduler import DecodeStep, PrefillStep, Scheduler
from aimass_decoding.sequence import Sequence
from aimass_decoding.testing import fake_sequence
from aimass_serving.errors import AimassError, Overloaded

PROMPT, OUTPUT = 64, 20
CHUNK_S, STEP_S = 0.1, 0.02


def sequence(number: int, *, now_s: float, deadline_s: float | None) -> Sequence:
    request = SequenceRequest(f"r{number}", np.arange(PROMPT), max_new_tokens=OUTPUT, deadline_s=deadline_s)
    return fake_sequence(request, number=number, now_s=now_s)


class Simulation:
    """An engine whose prompts and decode steps take fixed times, on a clock of its own."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(EngineConfig(max_kept_prefixes=0), num_slots=8, max_len=200)
        self.now_s = 0.0
        self.num_good = 0

    def offer(self, number: int, *, patience_s: float) -> AimassError | None:
        try:
            each = sequence(number, now_s=self.now_s, deadline_s=self.now_s + patience_s)
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
        seconds = CHUNK_S if isinstance(step, PrefillStep) else STEP_S
        self.now_s += seconds
        if step is None:
            return
        self.scheduler.commit(step, now_s=self.now_s, seconds=seconds)
        if isinstance(step, DecodeStep) or step.sequence.num_cached == PROMPT:
            for each in step.sequences:
                self._accept(each)

    def _accept(self, each: Sequence) -> None:
        each.num_output += 1
        if each.num_output == 1:
            each.first_token_s = self.now_s
        if each.num_output == OUTPUT:
            self.num_good += each.expires_at_s > self.now_s
            self.scheduler.remove(each)


def goodput(*, calls_a_second: float, duration_s: float = 60, patience_s: float = 6) -> float:
    """Return how many calls a second end in time when so many come, at random times."""
    gaps = np.random.default_rng(0).exponential(1 / calls_a_second, size=int(2 * calls_a_second * duration_s))
    arrivals = deque(np.cumsum(gaps).tolist())
    sut, number = Simulation(), 0
    while sut.now_s < duration_s:
        while arrivals and arrivals[0] <= sut.now_s:
            arrivals.popleft()
            number += 1
            sut.offer(number, patience_s=patience_s)
        sut.step()
    return sut.num_good / duration_s


def test_goodput_stays_up_when_twice_and_four_times_as_many_calls_come() -> None:
    peak = max(goodput(calls_a_second=rate) for rate in (4, 5, 6))
    assert peak > 3
    for rate in (2 * peak, 4 * peak):
        assert goodput(calls_a_second=rate) >= 0.9 * peak


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


def test_what_was_given_up_tells_the_pace_and_not_the_length() -> None:
    sut = Forecast()
    assert sut.seconds(num_prompt_tokens=10, max_new_tokens=100) == 0
    sut.observe(
        entered_s=1, first_token_s=2, last_token_s=3.8, num_prompt_tokens=10, num_tokens=10, is_whole=True
    )
    assert sut.seconds(num_prompt_tokens=20, max_new_tokens=100) == pytest.approx(2 + 9 * 0.2)
    sut.observe(
        entered_s=1, first_token_s=2, last_token_s=2.2, num_prompt_tokens=10, num_tokens=2, is_whole=False
    )
    assert sut.seconds(num_prompt_tokens=20, max_new_tokens=100) == pytest.approx(2 + 9 * 0.2)
    assert sut.seconds(num_prompt_tokens=20, max_new_tokens=1) == pytest.approx(2)
