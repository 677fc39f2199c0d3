"""The number of threads follows the machine: on a simulated one, in simulated time."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import numpy as np
import pytest
from aimass_serving.session import SPIN_US
from aimass_serving.thread_choice import ThreadChoice

FAST_QUIET, FAST_BUSY = 0, 1
Costs = tuple[float, float]
QUIET: Costs = (0.010, 0.014)
BUSY: Costs = (0.026, 0.015)


class Machine:
    """Runs of two variants whose time is given; 3 % of noise, always the same.

    For `spin_s` after a run of the first, its idle threads take half a core from the second.
    """

    def __init__(self, choice: ThreadChoice, *, spin_s: float = 0.0) -> None:
        self.choice = choice
        self._spin_s, self._spins_until_s = spin_s, 0.0
        self.now_s = 100.0
        self.taken: list[int] = []
        self.lost_s = 0.0
        self._noise = np.random.default_rng(1)

    def run(self, costs: Costs, *, kind: Hashable = 1, num_units: int = 1) -> int:
        variant = self.choice.choose(kind, self.now_s)
        seconds = costs[variant] * num_units * float(self._noise.uniform(0.97, 1.03))
        if variant == FAST_QUIET:
            self._spins_until_s = self.now_s + seconds + self._spin_s
        else:
            seconds += 0.5 * min(seconds, max(0.0, self._spins_until_s - self.now_s))
        self.now_s += seconds
        self.lost_s += seconds - min(costs) * num_units
        self.choice.observe(kind, seconds=seconds, num_units=num_units, now_s=self.now_s)
        self.taken.append(variant)
        return variant

    def run_until(self, is_done: Callable[[], bool], costs: Costs, *, at_most_s: float) -> float:
        """Run until something holds; return the seconds it took."""
        started_s = self.now_s
        while not is_done():
            assert self.now_s - started_s < at_most_s, "too slow to notice"
            self.run(costs)
        return self.now_s - started_s

    def run_for(self, seconds: float, costs: Costs) -> list[int]:
        until_s, first = self.now_s + seconds, len(self.taken)
        while self.now_s < until_s:
            self.run(costs)
        return self.taken[first:]


@pytest.fixture
def machine() -> Machine:
    return Machine(ThreadChoice(2))


def test_what_is_faster_is_found_within_a_second_of_the_start(machine: Machine) -> None:
    machine.run_until(lambda: machine.choice.best_of(1) == FAST_BUSY, BUSY, at_most_s=1)


def test_it_changes_within_a_second_when_others_start_to_compute(machine: Machine) -> None:
    machine.run_for(5, QUIET)
    assert machine.choice.best_of(1) == FAST_QUIET
    machine.run_until(lambda: machine.choice.best_of(1) == FAST_BUSY, BUSY, at_most_s=1)


def test_it_changes_back_although_the_variant_in_use_shows_no_sign(machine: Machine) -> None:
    machine.run_for(5, BUSY)
    assert machine.choice.best_of(1) == FAST_BUSY
    quiet_without_a_sign = (QUIET[0], BUSY[1])
    machine.run_until(lambda: machine.choice.best_of(1) == FAST_QUIET, quiet_without_a_sign, at_most_s=1.5)


@pytest.mark.parametrize("slower", [1.1, 1.5, 3.0, 20.0])
def test_trials_cost_two_percent_of_the_time_at_most(machine: Machine, slower: float) -> None:
    machine.run_for(60, (0.01, 0.01 * slower))
    noise_s = 0.03 * 60
    one_trial_s = 0.01 * slower
    assert machine.lost_s <= 0.25 + 0.02 * 60 + one_trial_s + noise_s


def test_trials_are_few_once_the_machine_is_calm(machine: Machine) -> None:
    machine.run_for(10, QUIET)
    before = machine.choice.num_trials
    runs = machine.run_for(30, QUIET)
    assert machine.choice.num_trials - before <= 31, "one a second"
    assert runs.count(FAST_BUSY) / len(runs) <= 0.015


def test_long_seldom_runs_are_hardly_ever_on_trial_although_short_ones_save_up(machine: Machine) -> None:
    prompt = (0.063, 0.105)
    taken = []
    for _ in range(200):
        taken.append(machine.run(prompt, kind="prompt"))
        for _ in range(31):
            machine.run((0.007, 0.010), kind="step")
    assert taken.count(FAST_BUSY) <= 8, "one in thirty, and one or two at the start"
    assert taken[:20].count(FAST_BUSY) <= 2


def test_long_seldom_runs_change_when_the_machine_does(machine: Machine) -> None:
    def calls(count: int, prompt: Costs, step: Costs) -> None:
        for _ in range(count):
            machine.run(prompt, kind="prompt")
            for _ in range(31):
                machine.run(step, kind="step")

    calls(40, (0.063, 0.105), (0.007, 0.010))
    calls(10, (0.200, 0.110), (0.022, 0.011))
    assert machine.choice.best_of("prompt") == FAST_BUSY
    calls(15, (0.063, 0.105), (0.007, 0.010))
    assert machine.choice.best_of("prompt") == FAST_QUIET


def test_noise_alone_changes_nothing(machine: Machine) -> None:
    machine.run_for(60, (0.01, 0.01))
    assert machine.choice.num_changes == 0


def test_each_kind_of_run_has_its_own_best(machine: Machine) -> None:
    for _ in range(400):
        machine.run(QUIET, kind="decode")
        machine.run((0.002, 0.001), kind="prefill", num_units=64)
    assert machine.choice.best_of("decode") == FAST_QUIET
    assert machine.choice.best_of("prefill") == FAST_BUSY


def test_a_kind_never_seen_starts_with_what_was_best_last(machine: Machine) -> None:
    machine.run_for(3, BUSY)
    assert machine.choice.choose("new", machine.now_s) == FAST_BUSY


def test_idle_threads_of_one_variant_do_not_make_the_other_look_slow() -> None:
    """With the 20 ms for which the runtime lets threads spin by itself, a trial never wins here."""
    machine = Machine(ThreadChoice(2), spin_s=1e-6 * SPIN_US)
    machine.run_until(lambda: machine.choice.best_of(1) == FAST_BUSY, (0.0105, 0.008), at_most_s=1)


def test_a_kind_that_ran_too_seldom_to_judge_goes_along_with_a_change(machine: Machine) -> None:
    machine.run((0.07, 0.10), kind="prompt")
    machine.run_for(3, BUSY)
    assert machine.choice.best_of("prompt") == FAST_BUSY


def test_a_kind_that_was_silent_for_long_goes_along_with_a_change(machine: Machine) -> None:
    for _ in range(10):
        machine.run((0.07, 0.10), kind="prompt")
    machine.run_for(3, QUIET)
    assert machine.choice.best_of("prompt") == FAST_QUIET
    machine.run_for(3, BUSY)
    assert machine.choice.best_of("prompt") == FAST_BUSY


def test_a_single_variant_is_never_on_trial() -> None:
    machine = Machine(ThreadChoice(1))
    machine.run_for(3, QUIET)
    assert machine.choice.num_trials == 0


def test_of_three_variants_each_gets_its_turn() -> None:
    choice = ThreadChoice(3)
    now_s, taken = 0.0, set()
    for _ in range(500):
        variant = choice.choose(1, now_s)
        taken.add(variant)
        seconds = (0.03, 0.02, 0.01)[variant]
        now_s += seconds
        choice.observe(1, seconds=seconds, num_units=1, now_s=now_s)
    assert taken == {0, 1, 2}
    assert choice.best_of(1) == 2
