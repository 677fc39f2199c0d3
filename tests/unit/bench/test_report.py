"""The table of a benchmark says what was measured, on what, and by which command."""

import json
from dataclasses import replace
from pathlib import Path

from bench.machine import Machine
from bench.measurement import Outcome, Repetition
from bench.report import Benchmark, Ratio, markdown, write_report
from bench.study import Study
from bench.table import Panel, Table

MACHINE = Machine("A processor", 2, ("avx2",), 24.0, "Linux", "3.11", (0.5, 0.4, 0.3), {"numpy": "2"})


def benchmark() -> Benchmark:
    def run(candidate: str, rate: float, round_index: int) -> Repetition:
        return Repetition(candidate, "2 threads", "1", round_index, 0.0, Outcome(int(rate), 1.0))

    runs = [run(name, rate, i) for i in range(3) for name, rate in (("ours", 40), ("peer", 10))]
    return Benchmark(
        "demo", "A title", "tokens/s", "make bench", MACHINE, {"rounds": 3}, {"1": "1 stream"}, "ours", runs
    )


def test_the_table_shows_rates_ratios_command_and_machine() -> None:
    text = markdown(benchmark())
    assert "| ours | **40.0** (2 threads, quiet 3/3) |" in text
    assert "| peer | **10.0** (4.00x, 2 threads, quiet 3/3) |" in text
    assert "`make bench`" in text
    assert "A processor, 2 cores, avx2" in text
    assert "load before 0.50, 0.40, 0.30" in text


def test_the_record_keeps_every_repetition(tmp_path: Path) -> None:
    write_report(benchmark(), tmp_path)
    record = json.loads((tmp_path / "demo.json").read_text())
    assert len(record["repetitions"]) == 6
    assert record["table"]["1"]["peer"]["rate"] == 10
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_ratios_are_tabled_for_both_sides_that_took_part() -> None:
    ratios = [Ratio("ours", "peer", "3"), Ratio("ours", "somebody absent")]
    text = markdown(replace(benchmark(), ratios=ratios))
    assert "| ours / peer | 4.00 | 3 |" in text
    assert "absent" not in text


def test_a_study_writes_its_tables_its_record_and_a_picture(tmp_path: Path) -> None:
    table = Table("Loss", ["", "perplexity"], [["int8", 61.25], ["fp32", 0.5]])
    panels = [Panel("perplexity", "lower is better", {"int8": 61.25, "fp32": 0.5})]
    Study("loss", "A study", "make bench", MACHINE, {"texts": 8}, [table], panels).write(tmp_path)
    assert "| int8 | 61.25 |" in (tmp_path / "loss.md").read_text()
    assert json.loads((tmp_path / "loss.json").read_text())["tables"]["Loss"][0]["perplexity"] == 61.25
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
