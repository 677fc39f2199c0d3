"""Tables and bars of an open load: latencies at parts of the capacity, and what is left of it at overload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.load import LoadRun, percentiles_ms, statuses_sentence
from bench.table import Panel, Table


def goodput_table(runs: Sequence[LoadRun], peak: LoadRun, *, unit: str) -> Table:
    """Return what came of each load, beside the peak of a closed loop."""
    rows: list[list[str | float]] = [
        ["closed loop: peak", peak.calls_per_s, len(peak.calls), peak.goodput, 1.0, _ends(peak)]
    ]
    rows += [
        [run.name, run.calls_per_s, len(run.calls), run.goodput, _share(run, peak), _ends(run)]
        for run in runs
    ]
    columns = ["", "calls a second", "calls", f"goodput ({unit})", "of the peak", "how the calls ended"]
    return Table("Goodput (aim at 200 %: 0.90 of the peak)", columns, rows)


def latency_table(heading: str, seconds: Mapping[str, Sequence[float]]) -> Table:
    """Return percentiles of each load's latencies, in milliseconds, and how many they rest on."""
    rows: list[list[str | float]] = [
        [name, *percentiles_ms(values).values(), len(values)] for name, values in seconds.items()
    ]
    return Table(heading, ["", "p50 (ms)", "p95 (ms)", "p99 (ms)", "samples"], rows)


def latency_panel(heading: str, seconds: Mapping[str, Sequence[float]]) -> Panel:
    """Return the same percentiles as bars."""
    bars = {
        f"{name}, {rank}": value
        for name, values in seconds.items()
        if values
        for rank, value in percentiles_ms(values).items()
    }
    return Panel(heading, "ms", bars)


def goodput_panel(runs: Sequence[LoadRun], peak: LoadRun, *, unit: str) -> Panel:
    """Return goodput as bars."""
    return Panel("goodput", unit, {"peak": peak.goodput, **{run.name: run.goodput for run in runs}})


def _share(run: LoadRun, peak: LoadRun) -> float:
    return run.goodput / peak.goodput if peak.goodput else float("nan")


def _ends(run: LoadRun) -> str:
    return statuses_sentence(run.calls)
