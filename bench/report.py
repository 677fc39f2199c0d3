"""Turns repetitions into a JSON record, a Markdown table and a picture. Measures nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.machine import Machine
from bench.measurement import MAX_FOREIGN_SHARE, Cell, Repetition, best_cell, paired_ratio


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Everything a report needs."""

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
    """The candidate the others are compared with."""
    repetitions: Sequence[Repetition]
    remarks: Sequence[str] = ()
    """Sentences under the table, such as how far the answers agree."""

    @property
    def candidates(self) -> list[str]:
        """Names in the order of the first round."""
        return list(dict.fromkeys(r.candidate for r in sorted(self.repetitions, key=lambda r: r.round_index)))

    def cell(self, candidate: str, scenario: str) -> Cell:
        """Return the candidate's best variant in a scenario."""
        return best_cell(self.repetitions, candidate, scenario)

    def ratio(self, candidate: str, scenario: str) -> float:
        """Return our rate over the candidate's."""
        mine, theirs = self.cell(self.ours, scenario), self.cell(candidate, scenario)
        return paired_ratio(self.repetitions, mine, theirs, scenario)


def write_report(benchmark: Benchmark, folder: Path) -> None:
    """Write `<name>.json`, `.md` and `.png` into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{benchmark.name}.json").write_text(json.dumps(_record(benchmark), indent=1) + "\n")
    (folder / f"{benchmark.name}.md").write_text(markdown(benchmark))
    draw(benchmark, folder / f"{benchmark.name}.png")


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
        "repetitions": [asdict(r) for r in benchmark.repetitions],
    }


def markdown(benchmark: Benchmark) -> str:
    """Return the table as Markdown, with what it was measured on and how to repeat it."""
    heads = list(benchmark.scenarios.values())
    lines = [
        f"# {benchmark.title}",
        "",
        f"Median {benchmark.unit}. In brackets: how many times as fast {benchmark.ours} is (by rounds),",
        f"the setting, and how many repetitions were quiet (others used under {MAX_FOREIGN_SHARE:.0%} of the",
        "machine). Only quiet repetitions count, unless there is none.",
        "",
        "| | " + " | ".join(heads) + " |",
        "|---|" + "---|" * len(heads),
        *(_row(benchmark, name) for name in benchmark.candidates),
        "",
        *(f"- {remark}" for remark in benchmark.remarks),
        f"- Command: `{benchmark.command}`",
        f"- Machine: {benchmark.machine.sentence()}",
        "- Settings: " + ", ".join(f"{k} {v}" for k, v in benchmark.settings.items()),
        "- Versions: " + ", ".join(f"{k} {v}" for k, v in benchmark.machine.versions.items()),
        "",
    ]
    return "\n".join(lines)


def _row(benchmark: Benchmark, name: str) -> str:
    cells = [_cell_text(benchmark, name, scenario) for scenario in benchmark.scenarios]
    return f"| {name} | " + " | ".join(cells) + " |"


def _cell_text(benchmark: Benchmark, name: str, scenario: str) -> str:
    cell = benchmark.cell(name, scenario)
    ratio = "" if name == benchmark.ours else f"{benchmark.ratio(name, scenario):.2f}x, "
    return f"**{cell.rate:.1f}** ({ratio}{cell.variant}, quiet {cell.num_quiet}/{cell.num_repetitions})"


def draw(benchmark: Benchmark, file: Path) -> None:
    """Draw one group of bars a scenario, one bar a candidate."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(benchmark.scenarios), figsize=(4 * len(benchmark.scenarios), 3.6), squeeze=False
    )
    for axis, (scenario, heading) in zip(axes[0], benchmark.scenarios.items(), strict=True):
        rates = [benchmark.cell(name, scenario).rate for name in benchmark.candidates]
        colours = ["#c2410c" if name == benchmark.ours else "#94a3b8" for name in benchmark.candidates]
        bars = axis.barh(benchmark.candidates, rates, color=colours)
        axis.bar_label(bars, fmt="%.0f", padding=3)
        axis.set(title=heading, xlabel=benchmark.unit, xlim=(0, 1.18 * max(rates)))
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
        if axis is not axes[0][0]:
            axis.set_yticklabels([])
    figure.suptitle(benchmark.title)
    figure.tight_layout()
    figure.savefig(file, dpi=120, metadata={"Software": ""})
    plt.close(figure)
