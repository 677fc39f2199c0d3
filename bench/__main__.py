"""Command line of the benchmarks: `python -m bench generation|embedding|all`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from aimass_serving.cpu import usable_cores

from bench import embedding, generation
from bench.report import Benchmark, markdown, write_report


def main() -> int:
    """Run what was asked for, print its table and write its report."""
    options = _parser().parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in ("generation", "embedding") if options.benchmark == "all" else (options.benchmark,):
        benchmark = _run(name, options)
        print(markdown(benchmark))
        write_report(benchmark, options.output)
    return 0


def _run(name: str, options: argparse.Namespace) -> Benchmark:
    command = f"make bench BENCH={name}" + (f' BENCH_ARGS="{extra}"' if (extra := _given()) else "")
    if name == "generation":
        generation_settings = generation.GenerationSettings(
            options.store, options.rounds, options.new_tokens, options.streams, options.threads
        )
        return generation.run(generation_settings, command=command)
    embedding_settings = embedding.EmbeddingSettings(
        options.store, options.rounds, options.texts, options.threads
    )
    return embedding.run(embedding_settings, command=command)


def _given() -> str:
    """Return the options on this command line that change what is measured, as they were typed."""
    words = sys.argv[2:]
    kept = [
        (name, value) for name, value in zip(words[::2], words[1::2], strict=False) if name not in _PLACES
    ]
    return " ".join(word for pair in kept for word in pair)


_PLACES = ("--store", "--output")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("benchmark", choices=("generation", "embedding", "all"))
    parser.add_argument("--store", type=Path, default=Path(os.environ.get("AIMASS_STORE", "models")))
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each contender")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens each stream produces")
    parser.add_argument("--streams", type=_numbers, default=(1, 4, 16), help="such as 1,4,16; at most 16")
    parser.add_argument("--texts", type=int, default=256, help="texts to embed")
    threads = tuple(sorted({1, usable_cores()}))
    parser.add_argument("--threads", type=_numbers, default=threads, help="settings every peer is tried at")
    return parser


if __name__ == "__main__":
    sys.exit(main())
