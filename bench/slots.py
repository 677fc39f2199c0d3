"""What slots cost beside the graph: growth of memory, copies, holes, and steps at each number of threads.

`python -m bench.slots --store models --model smollm2-135m-instruct`. Prints one line a measurement: medians.
Runs the runner that serves, on a real bundle. Knows no peers.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from aimass_decoding.runner import DECODER_ROLE, DecoderRunner, geometry_of
from aimass_serving.adaptive_session import open_adaptive_session, thread_use
from aimass_serving.bundle import Bundle
from aimass_serving.session import SessionConfig
from aimass_serving.store import open_store

_PROMPT_TOKENS = 128


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", default="models", help="folder of the model store")
    parser.add_argument("--model", required=True, help="name of a decoder's bundle, its newest version")
    parser.add_argument("--rounds", type=int, default=15, help="repetitions of each measurement")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--max-len", type=int, default=256)
    options = parser.parse_args()
    measure(_bundle(options.store, options.model), options)
    return 0


def measure(bundle: Bundle, options: argparse.Namespace) -> None:
    """Print memory, copies and steps of one bundle."""
    session = open_adaptive_session(
        bundle.graph(DECODER_ROLE), SessionConfig(), precision=bundle.manifest.precision
    )
    runner = DecoderRunner(
        session, geometry_of(bundle.manifest.decoder), max_slots=options.slots, max_len=options.max_len
    )
    prompt = np.arange(_PROMPT_TOKENS) % 200 + 5
    print(f"resident before any slot {_resident_mib():.0f} MiB")
    for slot in range(options.slots):
        runner.prefill(slot, prompt, start=0)
        print(f"resident with {slot + 1} slots of {_PROMPT_TOKENS} tokens {_resident_mib():.0f} MiB")

    def report(name: str, work: Callable[[], object]) -> None:
        print(f"{name} {_median_ms(work, options.rounds):.2f} ms")

    report(f"prompt of {_PROMPT_TOKENS} tokens", lambda: runner.prefill(0, prompt, start=0))
    report(f"copy of {_PROMPT_TOKENS} tokens", lambda: runner.copy_slot(0, 1, num_tokens=_PROMPT_TOKENS))
    for rows in [count for count in (1, 2, 4, 8, 16, 32) if count <= options.slots]:
        full = np.full(rows, _PROMPT_TOKENS)
        one = np.where(np.arange(rows) == rows - 1, _PROMPT_TOKENS, 0)
        report(f"step of {rows} rows", partial(runner.decode, full % 7, full))
        report(f"step of {rows} rows, all but one empty", partial(runner.decode, one % 7, one))
    print(f"threads {thread_use(session)}")


def _median_ms(work: Callable[[], object], rounds: int) -> float:
    seconds = []
    for _ in range(rounds + 1):
        started_s = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started_s)
    return 1e3 * statistics.median(seconds[1:])


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def _bundle(store: str, model: str) -> Bundle:
    opened = open_store(store)
    newest = max((ref for ref in opened.list() if ref.name == model), key=lambda ref: int(ref.version))
    return opened.open(newest)


if __name__ == "__main__":
    raise SystemExit(main())
