"""Turns repetitions into a JSON record, a Markdown table and a picture. Measures nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.machine import Machine
from bench.measurement import MAX_FOREIGN_SHARE, Cell, Repetition, best_cell, paired_ratio
from bench.table import Panel, Table, draw


@dataclass(frozen=True, slots=True)
class Ratio:
    """A comparison that the report draws for every scenario."""

    ours: str
    theirs: str
    aim: str = ""
    """What was hoped for, in words; empty where nothing was."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Everything a report of a contest needs."""

    name: str
    title: str
    unit: str
    """What a second yields, such as `tokens/s`."""
    command: str
    machine: Machine
    settings: Mapping[str, Any]
    scenarios: Mapping[str, str]
    """Scenario to its heading."""
    ours: str
    """The candidate the others are compared with in the table; empty where `ratios` say what to compare."""
    repetitions: Sequence[Repetition]
    remarks: Sequence[str] = ()
    """Sentences under the table, such as how far the answers agree."""
    ratios: Sequence[Ratio] = ()
    tables: Sequence[Table] = ()
    """Further tables."""

    @property
    def candidates(self) -> list[str]:
        """Names in the order of the first round."""
        return list(dict.fromkeys(r.candidate for r in sorted(self.repetitions, key=lambda r: r.round_index)))

    def cell(self, candidate: str, scenario: str) -> Cell:
        """Return the candidate's best variant in a scenario."""
        return best_cell(self.repetitions, candidate, scenario)

    def ratio(self, candidate: str, scenario: str) -> float:
        """Return our rate over the candidate's."""
        return self._ratio(self.ours, candidate, scenario)

    def ratio_table(self) -> Table:
        """Return every ratio whose two sides took part, scenario by scenario."""
        took_part = set(self.candidates)
        rows: list[list[str | float]] = [
            [
                f"{ratio.ours} / {ratio.theirs}",
                *(self._ratio(ratio.ours, ratio.theirs, scenario) for scenario in self.scenarios),
                ratio.aim,
            ]
            for ratio in self.ratios
            if {ratio.ours, ratio.theirs} <= took_part
        ]
        return Table(
            "Ratios: medians of the ratios within each round", ["", *self.scenarios.values(), "aim"], rows
        )

    def all_tables(self) -> list[Table]:
        """Return the ratios, if any, and the further tables."""
        return [*([self.ratio_table()] if self.ratios else []), *self.tables]

    def _ratio(self, ours: str, theirs: str, scenario: str) -> float:
        return paired_ratio(
            self.repetitions, self.cell(ours, scenario), self.cell(theirs, scenario), scenario
        )


def write_report(benchmark: Benchmark, folder: Path) -> None:
    """Write `<name>.json`, `.md` and `.png` into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{benchmark.name}.json").write_text(json.dumps(_record(benchmark), indent=1) + "\n")
    (folder / f"{benchmark.name}.md").write_text(markdown(benchmark))
    draw(benchmark.title, _panels(benchmark), folder / f"{benchmark.name}.png")


def _record(benchmark: Benchmark) -> dict[str, Any]:
    return {
        "command": benchmark.command,
        "machine": asdict(benchmark.machine),
        "settings": dict(benchmark.settings),
        "unit": benchmark.unit,
        "table": {
            scenario: {name: asdict(benchmark.cell(name, scenario)) for name in benchmark.candidates}
            for scenario in benchmark.scenarios
        },
        "tables": {table.heading: table.record() for table in benchmark.all_tables()},
        "remarks": list(benchmark.remarks),
        "repetitions": [asdict(r) for r in benchmark.repetitions],
    }


def markdown(benchmark: Benchmark) -> str:
    """Return the table as Markdown, with what it was measured on and how to repeat it."""
    heads = list(benchmark.scenarios.values())
    compared = f"how many times as fast {benchmark.ours} is (by rounds), " if benchmark.ours else ""
    lines = [
        f"# {benchmark.title}",
        "",
        f"Median {benchmark.unit}. In brackets: {compared}the setting,",
        f"and how many repetitions were quiet (others used under {MAX_FOREIGN_SHARE:.0%} of the machine).",
        "Only quiet repetitions count, unless there is none.",
        "",
        "| | " + " | ".join(heads) + " |",
        "|---|" + "---|" * len(heads),
        *(_row(benchmark, name) for name in benchmark.candidates),
        "",
        *(line for table in benchmark.all_tables() for line in table.markdown()),
        *(f"- {remark}" for remark in benchmark.remarks),
        *provenance(benchmark.command, benchmark.machine, benchmark.settings),
    ]
    return "\n".join(lines)


def provenance(command: str, machine: Machine, settings: Mapping[str, Any]) -> list[str]:
    """Return the lines that say how, and on what, a report was measured."""
    return [
        f"- Command: `{command}`",
        f"- Machine: {machine.sentence()}",
        "- Settings: " + ", ".join(f"{k} {v}" for k, v in settings.items()),
        "- Versions: " + ", ".join(f"{k} {v}" for k, v in machine.versions.items()),
        "",
    ]


def _row(benchmark: Benchmark, name: str) -> str:
    cells = [_cell_text(benchmark, name, scenario) for scenario in benchmark.scenarios]
    return f"| {name} | " + " | ".join(cells) + " |"


def _cell_text(benchmark: Benchmark, name: str, scenario: str) -> str:
    cell = benchmark.cell(name, scenario)
    is_compared = benchmark.ours not in ("", name)
    ratio = f"{benchmark.ratio(name, scenario):.2f}x, " if is_compared else ""
    return f"**{cell.rate:.1f}** ({ratio}{cell.variant}, quiet {cell.num_quiet}/{cell.num_repetitions})"


def _panels(benchmark: Benchmark) -> list[Panel]:
    return [
        Panel(
            heading,
            benchmark.unit,
            {name: benchmark.cell(name, scenario).rate for name in benchmark.candidates},
        )
        for scenario, heading in benchmark.scenarios.items()
    ]
