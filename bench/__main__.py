"""Command line of the benchmarks: `python -m bench PART [options]`; `all` runs every part at its defaults."""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.report import Benchmark, markdown, write_report
from bench.study import Study

PARTS = {
    "prepare": "bench.prepare",
    "generation": "bench.generation",
    "quality": "bench.quality",
    "generation-load": "bench.generation_load",
    "embedding": "bench.embedding",
    "embedding-load": "bench.embedding_load",
    "speech": "bench.speech",
    "speech-live": "bench.speech_live",
    "synthesis": "bench.synthesis",
}
"""A part is a module with `add_options(parser)` and `run(options, command=...)`, which returns a report, or
None when it has none."""

ALL: Sequence[Sequence[str]] = (
    ("prepare",),
    ("generation",),
    ("generation", "--model", "gpt2-124m"),
    ("generation", "--precisions", "int4", "--contenders", "served,in-process,genai", "--seconds", "90"),
    ("generation", "--busy", "--contenders", "served,in-process,ctranslate2"),
    ("quality",),
    ("generation-load",),
    ("embedding",),
    ("embedding-load",),
    ("embedding-load", "--precision", "int8"),
    ("speech",),
    ("speech", "--model", "whisper-base", "--sentences", "60"),
    ("speech-live",),
    ("synthesis",),
)


def main() -> int:
    """Run what was asked for, print its tables and write its reports."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    words = sys.argv[1:]
    if words[:1] == ["all"]:
        for part in ALL:
            _run([*part, *words[1:]])
    else:
        _run(words)
    return 0


def _run(words: Sequence[str]) -> None:
    name = words[0] if words and words[0] in PARTS else ""
    options = _parser(name).parse_args(words)
    module: Any = importlib.import_module(PARTS[options.part])
    report = module.run(options, command=_command(words))
    if isinstance(report, Benchmark):
        print(markdown(report))
        write_report(report, options.output)
    elif isinstance(report, Study):
        print(report.markdown())
        report.write(options.output)


def _command(words: Sequence[str]) -> str:
    """Return how to repeat a run; where its report goes is left out."""
    kept = list(words)
    if "--output" in kept:
        at = kept.index("--output")
        del kept[at : at + 2]
    arguments = f" BENCH_ARGS={shlex.quote(shlex.join(kept[1:]))}" if kept[1:] else ""
    return f"make bench BENCH={kept[0]}{arguments}"


def _parser(part: str) -> argparse.ArgumentParser:
    """Return the parser; a part's options are known once it is named: its module is heavy to load."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=f"{__doc__} `python -m bench PART --help` lists a part's options.",
    )
    parser.add_argument("part", choices=(part,) if part else (*PARTS, "all"))
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"), help="folder of the reports")
    if part:
        importlib.import_module(PARTS[part]).add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
