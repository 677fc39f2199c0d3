"""The command line of the benchmarks: what `all` runs, and the command a report is repeated by."""

import shlex

import pytest

from bench.__main__ import ALL, PARTS, _command, _parser


def test_a_report_tells_how_to_repeat_it_wherever_it_was_written() -> None:
    assert _command(["quality"]) == "make bench BENCH=quality"
    assert _command(["quality", "--output", "/elsewhere"]) == "make bench BENCH=quality"
    command = _command(["generation", "--streams", "1,4", "--output", "x", "--busy"])
    assert shlex.split(command) == ["make", "bench", "BENCH=generation", "BENCH_ARGS=--streams 1,4 --busy"]


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_all_runs_parts_with_options_they_have(words: tuple[str, ...]) -> None:
    assert _parser(words[0]).parse_args(words).part == words[0]


def test_a_part_that_does_not_exist_is_refused_with_those_that_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _parser("").parse_args(["poetry"])
    message = capsys.readouterr().err
    assert all(part in message for part in PARTS)
