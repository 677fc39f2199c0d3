"""The synthesis benchmark: each voice of the service beside the voice as its own package runs it.

Speed, time to the first audio, parallel listeners whose players must not run dry, and the words that a
recogniser hears again.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

from aimass_serving.cpu import usable_cores

from bench.contest import Entry, hold
from bench.machine import describe_machine
from bench.models import BenchModel
from bench.report import Benchmark, Ratio
from bench.round_trip import round_trip_table
from bench.spoken_streams import parallel_table
from bench.synthesis_runners import LONG, SHORT, WARM_UP
from bench.table import Table

_RUNNERS = "bench.synthesis_runners"


@dataclass(frozen=True, slots=True)
class BenchVoice:
    """A voice to measure."""

    model: BenchModel
    peer: str
    """How its own package runs it."""
    factory: str

    @property
    def served(self) -> str:
        """Name of our service with this voice."""
        return f"aimass {self.model.name}, served"

    @property
    def name(self) -> str:
        """Its name in the catalogue."""
        return self.model.name


VOICES = {
    voice.name: voice
    for voice in (
        BenchVoice(
            BenchModel("piper-joe", "Piper joe", lambda: "piper-joe"),
            "piper-joe, its graph whole in ONNX Runtime",
            "PiperWhole",
        ),
        BenchVoice(
            BenchModel("hibari-heart", "hibari heart", lambda: "hibari-heart"),
            "hibari-heart, its package",
            "HibariPackage",
        ),
    )
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this part."""
    parser.add_argument("--voices", default=",".join(VOICES), help=",".join(VOICES))
    parser.add_argument("--rounds", type=int, default=5, help="most repetitions of each contender")
    parser.add_argument("--seconds", type=float, default=600, help="no further round begins after this")
    parser.add_argument("--sentences", type=int, default=20, help="of each length, spoken in a repetition")
    parser.add_argument("--streams", default="4", help="listeners at once, such as 4,8")
    parser.add_argument("--parallel-rounds", type=int, default=10, help="sentences of each listener; 0: none")
    parser.add_argument("--round-trip", type=int, default=200, help="sentences of each length; 0: none")


def run(options: argparse.Namespace, *, command: str) -> Benchmark:
    """Hold the contest, then let listeners listen and the recogniser hear; return the record."""
    machine = describe_machine()
    chosen = [VOICES[name] for name in options.voices.split(",")]
    repetitions = hold(
        [entry for voice in chosen for entry in _entries(voice, options.sentences)],
        (LONG, SHORT),
        num_rounds=options.rounds,
        max_s=options.seconds,
    )
    benchmark = Benchmark(
        name="synthesis",
        title="Speech synthesis",
        unit="seconds of audio a second",
        command=command,
        machine=machine,
        settings={
            "most rounds": options.rounds,
            "seconds": f"{options.seconds:.0f}",
            "sentences": f"{options.sentences} of each length, one after the other",
            "audio": "16-bit samples at the voice's own rate",
        },
        scenarios={LONG: "sentences of about 12 s", SHORT: "sentences of about 3.5 s"},
        ours="",
        repetitions=repetitions,
        ratios=[Ratio(voice.served, voice.peer) for voice in chosen],
        remarks=[
            "A peer's first audio is its whole audio",
            "Piper's graph is given the symbols that our reader reads: its own reader is espeak",
        ],
    )
    return replace(benchmark, tables=[_first_audio(benchmark), *_further_tables(chosen, options)])


def _entries(voice: BenchVoice, num_sentences: int) -> list[Entry]:
    cores, warm_up = usable_cores(), (WARM_UP,)
    ours = {
        "store": str(voice.model.store("fp32")),
        "voice": voice.name,
        "num_sentences": num_sentences,
    }
    theirs: dict[str, object] = {"num_sentences": num_sentences}
    if voice.factory == "PiperWhole":
        theirs |= {"source": voice.model.find(), "num_threads": cores}
    return [
        Entry(voice.served, "its own threads", f"{_RUNNERS}:ServedVoice", ours, cores, warm_up=warm_up),
        Entry(voice.peer, "its own threads", f"{_RUNNERS}:{voice.factory}", theirs, cores, warm_up=warm_up),
    ]


def _first_audio(benchmark: Benchmark) -> Table:
    rows: list[list[str | float]] = []
    for name in benchmark.candidates:
        for scenario, heading in benchmark.scenarios.items():
            details = benchmark.cell(name, scenario).details
            figures = ("rtf", "first_audio_p50_ms", "first_audio_p95_ms", "sentence_s")
            rows.append([f"{name}, {heading}", *(details[figure] for figure in figures)])
    return Table(
        "One listener (aim, sentences of 12 s: RTF 0.15, first audio p50 100 ms, p95 180 ms)",
        ["", "time by audio (RTF)", "first audio, p50 ms", "first audio, p95 ms", "mean length s"],
        rows,
    )


def _further_tables(chosen: list[BenchVoice], options: argparse.Namespace) -> list[Table]:
    counts = [int(count) for count in options.streams.split(",")]
    tables = []
    if options.parallel_rounds:
        stores = {voice.name: voice.model.store("fp32") for voice in chosen}
        tables.append(parallel_table(stores, counts, num_rounds=options.parallel_rounds))
    if options.round_trip:
        tables.append(round_trip_table([voice.model for voice in chosen], options.round_trip))
    return tables
