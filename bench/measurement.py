"""Interleaved rounds and what they say: medians and paired ratios. Knows no model and no clock.

Candidates take turns within a round, so that a machine that slows down slows all of them; a ratio pairs the
two runs of the same round. A repetition during which other programs used much of the machine stays in the
record but does not count, unless no quiet one is left. In the first round a candidate runs at each of its
settings, in the second at those that were close to the best at the scenario, and then at the best of these.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

MAX_FOREIGN_SHARE = 0.15
TRIAL_ROUNDS = 2
"""Rounds in which a candidate's settings are compared."""
CLOSE_SHARE = 0.85
"""A setting this much slower than its candidate's best in the first round is not tried in the second."""
HOPELESS_SHARE = 0.75
"""A setting this much slower than its candidate's best is not tried at the scenarios that follow."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run of one candidate gave."""

    units: int
    """How many were produced: tokens or sentences."""
    seconds: float
    """Wall time they took."""
    answers: tuple[str, ...] = ()
    """One digest for each stream or text, to see whether candidates computed the same."""
    details: dict[str, float] = field(default_factory=dict)
    """Further figures of the run, such as `ttft_p50_ms`."""

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.units / self.seconds


@dataclass(frozen=True, slots=True)
class Repetition:
    """One run in its round."""

    candidate: str
    variant: str
    """The setting of the candidate, such as `2 threads`; a table shows its best one."""
    scenario: str
    round_index: int
    foreign_share: float
    outcome: Outcome

    @property
    def is_quiet(self) -> bool:
        """Whether the machine was ours."""
        return self.foreign_share < MAX_FOREIGN_SHARE


@dataclass(frozen=True, slots=True)
class Contender:
    """A candidate at one setting, ready to run any scenario."""

    candidate: str
    variant: str
    run: Callable[[str], Outcome]
    """Runs a scenario once."""
    warm_up: Sequence[str] | None = None
    """Scenarios to run before anything counts; None is each of the contest's."""
    max_rounds: int | None = None
    """Rounds it takes part in, for the slow; None is all."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What a table shows for one candidate in one scenario."""

    candidate: str
    variant: str
    rate: float
    """Median units a second."""
    num_quiet: int
    num_repetitions: int
    details: dict[str, float]


class SettingChoice:
    """Which settings of each candidate still run. Owns what the first two rounds showed.

    With `carries_over`, scenarios are alike but for their weight and come from the lightest to the heaviest:
    a setting that is far behind at one of them is not tried at the later ones of the first round. Those
    close to the best run in the second round too, so that a moment in which the machine was slow does not
    choose.
    """

    def __init__(self, *, carries_over: bool = True) -> None:
        self._carries_over = carries_over
        self._rates: dict[tuple[str, str], dict[str, list[float]]] = {}

    def observe(self, contender: Contender, scenario: str, round_index: int, rate: float) -> None:
        """Note a rate; later ones than those of the second round do not matter."""
        if round_index < TRIAL_ROUNDS:
            of_setting = self._rates.setdefault((contender.candidate, scenario), {})
            of_setting.setdefault(contender.variant, []).append(rate)

    def may_run(self, contender: Contender, scenario: str, round_index: int) -> bool:
        """Return whether a contender is worth its time."""
        if contender.max_rounds is not None and round_index >= contender.max_rounds:
            return False
        if round_index >= TRIAL_ROUNDS:
            return self._best(contender.candidate, scenario) == contender.variant
        if round_index:
            tried = self._rates[contender.candidate, scenario]
            return contender.variant in tried and _is_near_best(tried, contender, CLOSE_SHARE)
        if not self._carries_over:
            return True
        earlier = (rates for (name, _), rates in self._rates.items() if name == contender.candidate)
        return all(
            _is_near_best(rates, contender, HOPELESS_SHARE) for rates in earlier if contender.variant in rates
        )

    def _best(self, candidate: str, scenario: str) -> str:
        rates = self._rates[candidate, scenario]
        most = max(map(len, rates.values()))
        again = [variant for variant in rates if len(rates[variant]) == most]
        return max(again, key=lambda variant: statistics.fmean(rates[variant]))


def _is_near_best(rates: Mapping[str, Sequence[float]], contender: Contender, share: float) -> bool:
    """Whether a setting's first rate is at least this share of the best one's."""
    return rates[contender.variant][0] >= share * max(first for first, *_ in rates.values())


def interleave(
    contenders: Sequence[Contender],
    scenarios: Sequence[str],
    *,
    num_rounds: int,
    measure_foreign: Callable[[Callable[[], Outcome]], tuple[Outcome, float]],
    may_go_on: Callable[[str], bool] = lambda _: True,
    carries_over: bool = True,
) -> Iterator[Repetition]:
    """Warm every contender up, then yield repetitions: round by round, scenario by scenario, in turn.

    The order of the contenders turns by one each round: nobody always runs after the same neighbour.
    `may_go_on` is asked before each scenario of the rounds after the first; those it refuses are left out.
    `carries_over`: see `SettingChoice`.
    """
    for contender in contenders:
        for scenario in scenarios if contender.warm_up is None else contender.warm_up:
            contender.run(scenario)
    choice = SettingChoice(carries_over=carries_over)
    for round_index in range(num_rounds):
        shift = round_index % len(contenders)
        order = [*contenders[shift:], *contenders[:shift]]
        for scenario in scenarios:
            if round_index and not may_go_on(scenario):
                continue
            for contender in [c for c in order if choice.may_run(c, scenario, round_index)]:
                outcome, foreign = measure_foreign(lambda c=contender, s=scenario: c.run(s))  # type: ignore[misc]  # binds now
                choice.observe(contender, scenario, round_index, outcome.rate)
                yield Repetition(
                    contender.candidate, contender.variant, scenario, round_index, foreign, outcome
                )


def counted(repetitions: Sequence[Repetition]) -> list[Repetition]:
    """Return the quiet repetitions, or all of them when none is quiet."""
    return [r for r in repetitions if r.is_quiet] or list(repetitions)


def best_cell(repetitions: Sequence[Repetition], candidate: str, scenario: str) -> Cell:
    """Return the median of the candidate's best variant in a scenario, of those that ran the most rounds."""
    mine = [r for r in repetitions if r.candidate == candidate and r.scenario == scenario]
    cells = [
        _cell([r for r in mine if r.variant == variant]) for variant in dict.fromkeys(r.variant for r in mine)
    ]
    return max(cells, key=lambda cell: (cell.num_repetitions, cell.rate))


def _cell(repetitions: Sequence[Repetition]) -> Cell:
    kept = counted(repetitions)
    names = kept[0].outcome.details
    return Cell(
        candidate=kept[0].candidate,
        variant=kept[0].variant,
        rate=statistics.median(r.outcome.rate for r in kept),
        num_quiet=sum(r.is_quiet for r in repetitions),
        num_repetitions=len(repetitions),
        details={name: statistics.median(r.outcome.details[name] for r in kept) for name in names},
    )


def paired_ratio(repetitions: Sequence[Repetition], ours: Cell, peer: Cell, scenario: str) -> float:
    """Return the median over rounds of our rate over the peer's in the same round.

    Rounds in which both ran and were quiet count; all rounds of both when there is none.
    """

    def rounds_of(cell: Cell) -> dict[int, Repetition]:
        wanted = (cell.candidate, cell.variant, scenario)
        return {r.round_index: r for r in repetitions if (r.candidate, r.variant, r.scenario) == wanted}

    mine, theirs = rounds_of(ours), rounds_of(peer)
    pairs = [(mine[i], theirs[i]) for i in sorted(mine.keys() & theirs.keys())]
    quiet = [(a, b) for a, b in pairs if a.is_quiet and b.is_quiet] or pairs
    return statistics.median(a.outcome.rate / b.outcome.rate for a, b in quiet)


def share_of_equal_answers(
    repetitions: Sequence[Repetition], cell: Cell, reference: Cell, scenario: str
) -> float:
    """Return the share of streams or texts for which a candidate gave the same answer as the reference."""

    def answers(wanted: Cell) -> tuple[str, ...]:
        found = (r for r in repetitions if r.scenario == scenario)
        return next(
            r.outcome.answers for r in found if (r.candidate, r.variant) == (wanted.candidate, wanted.variant)
        )

    mine, theirs = answers(cell), answers(reference)
    return statistics.fmean(a == b for a, b in zip(mine, theirs, strict=True)) if theirs else float("nan")
