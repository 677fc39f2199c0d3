"""Turns, medians and ratios of the benchmarks, without a clock or a model."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from bench.measurement import (
    Contender,
    Outcome,
    Repetition,
    best_cell,
    interleave,
    paired_ratio,
    share_of_equal_answers,
)


def repetition(
    candidate: str,
    rate: float,
    *,
    round_index: int = 0,
    variant: str = "v",
    foreign: float = 0.0,
    answers: str = "",
) -> Repetition:
    outcome = Outcome(units=int(rate * 10), seconds=10.0, answers=tuple(answers))
    return Repetition(candidate, variant, "s", round_index, foreign, outcome)


def take_turns(num_contenders: int, num_rounds: int) -> list[tuple[str, str]]:
    """Run contenders that note when they ran; return `(contender, scenario)` in order, warm-up included."""
    ran: list[tuple[str, str]] = []

    def contender(name: str) -> Contender:
        def run(scenario: str) -> Outcome:
            ran.append((name, scenario))
            return Outcome(1, 1.0)

        return Contender(name, "v", run)

    def measured(run: Callable[[], Outcome]) -> tuple[Outcome, float]:
        return run(), 0.0

    contenders = [contender(str(i)) for i in range(num_contenders)]
    yielded = list(interleave(contenders, ["x", "y"], num_rounds=num_rounds, measure_foreign=measured))
    assert [(r.candidate, r.scenario) for r in yielded] == ran[num_contenders * 2 :]
    return ran


def test_every_contender_warms_up_on_every_scenario_before_anything_counts() -> None:
    assert take_turns(2, 1)[:4] == [("0", "x"), ("0", "y"), ("1", "x"), ("1", "y")]


def test_contenders_take_turns_and_the_order_moves_on_each_round() -> None:
    counted = take_turns(3, 3)[6:]
    orders = ["".join(name for name, _ in counted[i : i + 3]) for i in range(0, len(counted), 3)]
    assert orders == ["012", "012", "120", "120", "201", "201"]


def test_a_disturbed_repetition_does_not_count() -> None:
    runs = [
        repetition("a", 10),
        repetition("a", 12, round_index=1),
        repetition("a", 1, round_index=2, foreign=0.5),
    ]
    cell = best_cell(runs, "a", "s")
    assert cell.rate == pytest.approx(11)
    assert (cell.num_quiet, cell.num_repetitions) == (2, 3)


def test_disturbed_repetitions_count_when_there_is_no_other() -> None:
    runs = [repetition("a", rate, round_index=i, foreign=0.9) for i, rate in enumerate((3, 4, 5))]
    cell = best_cell(runs, "a", "s")
    assert cell.rate == pytest.approx(4)
    assert cell.num_quiet == 0


def test_a_candidate_is_shown_at_its_best_variant() -> None:
    runs = [repetition("a", 10, variant="1 thread"), repetition("a", 15, variant="2 threads")]
    assert best_cell(runs, "a", "s").variant == "2 threads"


def test_a_variant_that_ran_every_round_is_shown_before_a_lucky_one_that_ran_once() -> None:
    steady = [repetition("a", rate, variant="2 threads", round_index=i) for i, rate in enumerate((15, 9, 9))]
    assert best_cell([*steady, repetition("a", 12, variant="1 thread")], "a", "s").variant == "2 threads"


def rounds_of_settings(
    rates: Mapping[str, Mapping[str, float | list[float]]], *, num_rounds: int = 2, **limits: Any
) -> list[tuple[int, str, str]]:
    """Run one candidate at settings of known rates, the same each time or one after the other.

    Returns `(round, scenario, setting)` of what counted.
    """

    def contender(variant: str) -> Contender:
        def run(scenario: str) -> Outcome:
            rate = rates[variant][scenario]
            return Outcome(1000, 1000 / (rate.pop(0) if isinstance(rate, list) else rate))

        return Contender("a", variant, run, warm_up=())

    def measured(run: Callable[[], Outcome]) -> tuple[Outcome, float]:
        return run(), 0.0

    scenarios = list(next(iter(rates.values())))
    found = interleave(
        [contender(v) for v in rates], scenarios, num_rounds=num_rounds, measure_foreign=measured, **limits
    )
    return [(r.round_index, r.scenario, r.variant) for r in found]


def test_after_the_first_round_only_the_best_setting_of_each_scenario_runs() -> None:
    ran = rounds_of_settings({"1": {"x": 10, "y": 9}, "2": {"x": 8, "y": 11}})
    assert [r for r in ran if r[0] == 0] == [(0, "x", "1"), (0, "x", "2"), (0, "y", "1"), (0, "y", "2")]
    assert [r for r in ran if r[0] == 1] == [(1, "x", "1"), (1, "y", "2")]


def test_a_setting_that_is_close_has_a_second_chance_and_one_that_is_not_has_none() -> None:
    """The machine was slow while the best setting ran first."""
    rates = {"1": {"x": [9.0, 9.0]}, "2": {"x": [8.5, 12.0, 12.0, 12.0]}, "4": {"x": [7.0]}}
    ran = rounds_of_settings(rates, num_rounds=4)
    assert [r for r in ran if r[0] == 1] == [(1, "x", "2"), (1, "x", "1")]
    assert [r for r in ran if r[0] > 1] == [(2, "x", "2"), (3, "x", "2")]


def test_a_setting_far_behind_is_not_tried_at_heavier_scenarios() -> None:
    ran = rounds_of_settings({"1": {"x": 5, "y": 99}, "2": {"x": 10, "y": 10}})
    assert (0, "y", "1") not in ran


def test_every_setting_is_tried_at_every_scenario_where_these_are_not_alike() -> None:
    ran = rounds_of_settings({"8": {"x": 5, "y": 99}, "32": {"x": 10, "y": 10}}, carries_over=False)
    assert [r for r in ran if r[0] == 1] == [(1, "x", "32"), (1, "y", "8")]


def test_a_scenario_without_time_for_another_round_is_left_out_and_the_others_go_on() -> None:
    ran = rounds_of_settings({"1": {"x": 1, "y": 1}}, may_go_on=lambda scenario: scenario == "y")
    assert ran == [(0, "x", "1"), (0, "y", "1"), (1, "y", "1")]


def test_a_slow_candidate_takes_part_in_its_rounds_only_and_ratios_pair_those() -> None:
    runs = [
        *(repetition("ours", rate, round_index=i) for i, rate in enumerate((40, 90, 90))),
        repetition("slow", 20),
    ]
    cells = best_cell(runs, "ours", "s"), best_cell(runs, "slow", "s")
    assert paired_ratio(runs, *cells, "s") == pytest.approx(2)


def test_a_ratio_pairs_the_runs_of_a_round() -> None:
    """The machine halves its speed after the first round: the ratio stays what it is within a round."""
    runs = [
        *(repetition("ours", rate, round_index=i) for i, rate in enumerate((40, 20, 20))),
        *(repetition("peer", rate, round_index=i) for i, rate in enumerate((20, 10, 10))),
    ]
    assert paired_ratio(
        runs, best_cell(runs, "ours", "s"), best_cell(runs, "peer", "s"), "s"
    ) == pytest.approx(2)


def test_equal_answers_are_counted_stream_by_stream() -> None:
    runs = [repetition("a", 1, answers="abcd"), repetition("b", 1, answers="abxd")]
    mine, reference = best_cell(runs, "a", "s"), best_cell(runs, "b", "s")
    assert share_of_equal_answers(runs, mine, reference, "s") == pytest.approx(0.75)
