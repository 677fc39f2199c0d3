"""The recognition benchmark: whole recordings, beside faster-whisper on the same weights.

Speed as a multiple of real time, word errors on recordings and on synthetic sentences, and how far the texts
agree.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from aimass_exporters.progress import SilentProgress
from aimass_exporters.sources.source import resolve_source
from aimass_serving.cpu import usable_cores

from bench.contest import Entry, hold
from bench.machine import describe_machine
from bench.measurement import share_of_equal_answers
from bench.models import BenchModel
from bench.report import Benchmark, Ratio
from bench.speech_audio import LIBRIVOX, SYNTHETIC, clips
from bench.speech_runners import BEAMS, DRAWS, GREEDY, WARM_UP
from bench.table import Table

MODELS = {
    model.name: model
    for model in (
        BenchModel("whisper-tiny.en", "Whisper tiny.en", lambda: "whisper-tiny.en"),
        BenchModel("whisper-base", "Whisper base", lambda: "whisper-base"),
    )
}
REFERENCE = (
    "Both put zeros behind the spectrogram of a recording, as `transcribe` of OpenAI's whisper does; tests "
    "hold tokens to CTranslate2's and transformers' on equal spectrograms"
)
COMPUTE_TYPES = {"fp32": "float32", "int8": "int8"}


def served(precision: str) -> str:
    """Return the name of our service at a precision."""
    return f"aimass {precision}, served"


def peer(precision: str) -> str:
    """Return the name of faster-whisper at a precision."""
    return f"faster-whisper {precision}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this part."""
    parser.add_argument("--model", choices=MODELS, default="whisper-tiny.en")
    parser.add_argument("--precisions", default="fp32,int8", help="fp32,int8")
    parser.add_argument("--rounds", type=int, default=5, help="most repetitions of each contender")
    parser.add_argument("--seconds", type=float, default=900, help="no further round begins after this")
    parser.add_argument("--sentences", type=int, default=200, help="synthetic sentences; about 3.5 s each")


def run(options: argparse.Namespace, *, command: str) -> Benchmark:
    """Hold the contest and return its record."""
    machine, model = describe_machine(), MODELS[options.model]
    precisions = options.precisions.split(",")
    every = clips(options.sentences)
    repetitions = hold(
        _entries(model, precisions, options.sentences),
        (GREEDY, BEAMS),
        num_rounds=options.rounds,
        max_s=options.seconds,
    )
    audio_s = sum(clip.seconds for clip in every)
    benchmark = Benchmark(
        name=f"speech-{model.name}",
        title=f"Speech recognition: {model.title}",
        unit="seconds of audio a second",
        command=command,
        machine=machine,
        settings={
            "most rounds": options.rounds,
            "seconds": f"{options.seconds:.0f}",
            "clips": f"{len(every)} of {audio_s:.0f} s in all, one after the other",
            "language detection, voice activity": "off",
            "best of": DRAWS,
        },
        scenarios={GREEDY: "greedy", BEAMS: "beam search of 5"},
        ours="",
        repetitions=repetitions,
        ratios=[Ratio(served(precision), peer(precision), "1.25") for precision in precisions],
    )
    return replace(benchmark, tables=[_quality(benchmark)], remarks=[REFERENCE])


def _entries(model: BenchModel, precisions: list[str], num_synthetic: int) -> list[Entry]:
    cores = usable_cores()
    folder = str(resolve_source(model.find(), SilentProgress()).path)
    entries = []
    for precision in precisions:
        ours = {
            "store": str(model.store(precision)),
            "model": model.served_name(precision),
            "num_synthetic": num_synthetic,
        }
        theirs = {
            "folder": folder,
            "compute_type": COMPUTE_TYPES[precision],
            "num_threads": cores,
            "num_synthetic": num_synthetic,
        }
        warm_up, module = (WARM_UP,), "bench.speech_runners"
        entries += [
            Entry(
                served(precision),
                "its own threads",
                f"{module}:ServedRecognition",
                ours,
                cores,
                warm_up=warm_up,
            ),
            Entry(
                peer(precision), f"{cores} threads", f"{module}:FasterWhisper", theirs, cores, warm_up=warm_up
            ),
        ]
    return entries


def _quality(benchmark: Benchmark) -> Table:
    rows: list[list[str | float]] = []
    known = [name for name in (peer("fp32"), served("fp32")) if name in benchmark.candidates]
    for scenario, heading in benchmark.scenarios.items():
        for name in benchmark.candidates:
            cell = benchmark.cell(name, scenario)
            equal = (
                share_of_equal_answers(
                    benchmark.repetitions, cell, benchmark.cell(known[0], scenario), scenario
                )
                if known
                else float("nan")
            )
            details = cell.details
            rows.append(
                [
                    f"{name}, {heading}",
                    details["rtf"],
                    details[f"wer_{LIBRIVOX}"],
                    details[f"wer_{SYNTHETIC}"],
                    equal,
                ]
            )
    columns = [
        "",
        "time by audio (RTF)",
        "WER %, LibriVox, 71 words",
        "WER %, synthetic",
        f"texts equal to those of {known[0] if known else 'nobody'}",
    ]
    return Table(
        "Quality (aim: within 0.5 of the reference; fp32 greedy equal on 99 % of clips)", columns, rows
    )
