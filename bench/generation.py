"""The generation benchmark: one language model, greedy, ragged prompts, a fixed number of new tokens.

Ours at two precisions, served and in process, beside the peers at the precisions they have.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from aimass_serving.cpu import usable_cores
from tokenizers import Tokenizer

from bench import peers
from bench.busy import BusyCore
from bench.contest import Entry, hold, lineup
from bench.generation_runners import NO_DRAFTS, OUTSIDE_GRAPH
from bench.machine import describe_machine
from bench.measurement import share_of_equal_answers
from bench.models import INT4, LANGUAGE_MODELS, PRECISIONS, SMOLLM2, BenchModel
from bench.report import Benchmark, Ratio
from bench.roofline import Roofline, measure_roofline, weight_bytes
from bench.table import Table
from bench.texts import long_prompt_ids, prompt_ids
from bench.workload import PREFILL, Workload

TRANSFORMERS, OPTIMUM = "transformers eager fp32", "optimum ONNX Runtime fp32"
CONTENDERS = (
    "served",
    "no-drafts",
    "in-process",
    "steps",
    "ctranslate2",
    "genai",
    "transformers",
    "optimum",
)
LONG_PROMPT_TOKENS = 512
SLOW_PEER_ROUNDS = 1
_COMPUTE_TYPES = {"fp32": "float32", "int8": "int8"}
NOT_RUN = (
    "Not run: llama.cpp (llama-cpp-python has no wheel, and xllamacpp builds its own without AVX-512, which "
    "would not be llama.cpp at its best)"
)


def served(precision: str) -> str:
    """Return the name of our service at a precision."""
    return f"aimass {precision}, served"


def without_drafts(precision: str) -> str:
    """Return the name of our service when it guesses nothing."""
    return f"aimass {precision}, served, no drafts"


def in_process(precision: str) -> str:
    """Return the name of our engine at a precision."""
    return f"aimass {precision}, in process"


def steps(precision: str) -> str:
    """Return the name of our engine when it guesses nothing: a step gives one token and reads one graph."""
    return f"aimass {precision}, in process, no drafts"


def ctranslate2(precision: str) -> str:
    """Return the name of CTranslate2 at a precision."""
    return f"CTranslate2 {precision}"


def genai(precision: str) -> str:
    """Return the name of onnxruntime-genai at a precision."""
    return f"onnxruntime-genai {precision}"


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How long and how wide."""

    model: BenchModel
    scenarios: tuple[str, ...]
    contenders: tuple[str, ...]
    precisions: tuple[str, ...]
    num_rounds: int
    max_s: float
    new_tokens: int
    threads: tuple[int, ...]
    """Every peer runs at each of these in the first round, and at its best in the others."""
    is_busy: bool
    """Whether another process keeps a core busy meanwhile."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this part."""
    parser.add_argument("--model", choices=LANGUAGE_MODELS, default=SMOLLM2.name)
    parser.add_argument("--scenarios", type=_words, default=("1", "4", "16", PREFILL), help="1,4,16,prefill")
    parser.add_argument("--contenders", type=_words, default=CONTENDERS, help=",".join(CONTENDERS))
    parser.add_argument("--precisions", type=_words, default=PRECISIONS, help=",".join((*PRECISIONS, INT4)))
    parser.add_argument("--rounds", type=int, default=5, help="most repetitions of each contender")
    parser.add_argument("--seconds", type=float, default=300, help="no further round begins after this")
    parser.add_argument("--new-tokens", type=int, default=32, help="tokens each stream produces")
    cores = tuple(str(count) for count in sorted({1, usable_cores()}))
    parser.add_argument("--threads", type=_words, default=cores, help="settings every peer is tried at")
    parser.add_argument("--busy", action="store_true", help="keep one core busy meanwhile")


def run(options: argparse.Namespace, *, command: str) -> Benchmark:
    """Hold the contest and return its record."""
    settings = GenerationSettings(
        LANGUAGE_MODELS[options.model],
        options.scenarios,
        options.contenders,
        options.precisions,
        options.rounds,
        options.seconds,
        options.new_tokens,
        tuple(map(int, options.threads)),
        options.busy,
    )
    return contest(settings, command=command)


def contest(settings: GenerationSettings, *, command: str) -> Benchmark:
    """Hold the contest and return its record."""
    work, machine = workload(settings), describe_machine()
    contenders, absences = lineup(makers(settings, work))
    roofline = None if settings.is_busy else measure_roofline(max(settings.threads))
    with BusyCore(2 * settings.max_s + 300) if settings.is_busy else nullcontext():
        repetitions = hold(
            contenders, settings.scenarios, num_rounds=settings.num_rounds, max_s=settings.max_s
        )
    benchmark = Benchmark(
        name=_file_name(settings),
        title=f"Text generation: {settings.model.title}, greedy" + (", one core busy" * settings.is_busy),
        unit="tokens/s",
        command=command,
        machine=machine,
        settings=_stated(settings, work),
        scenarios={name: work.heading(name) for name in settings.scenarios},
        ours="",
        repetitions=repetitions,
        ratios=ratios(settings.precisions),
    )
    tables = [_roofline_table(benchmark, settings, roofline)] if roofline else []
    remarks = [
        *_equalities(benchmark),
        *_latencies(benchmark),
        *_outside_graph(benchmark),
        *_own_environment(benchmark),
        *absences,
        NOT_RUN,
    ]
    return replace(
        benchmark,
        tables=[table for table in tables if table.rows],
        remarks=[*remarks, roofline.sentence()] if roofline else remarks,
    )


def _file_name(settings: GenerationSettings) -> str:
    model = "" if settings.model is SMOLLM2 else f"-{settings.model.name.split('-')[0]}"
    precisions = "" if set(PRECISIONS) & set(settings.precisions) else f"-{'-'.join(settings.precisions)}"
    return f"generation{model}{precisions}" + ("-busy" if settings.is_busy else "")


def _stated(settings: GenerationSettings, work: Workload) -> dict[str, object]:
    return {
        "most rounds": settings.num_rounds,
        "seconds": f"{settings.max_s:.0f}",
        "new tokens a stream": settings.new_tokens,
        "prompt lengths": ", ".join(str(len(row)) for row in work.prompts),
        "threads tried for the peers": ", ".join(map(str, settings.threads)),
        "one core kept busy by another process": "yes" if settings.is_busy else "no",
    }


def workload(settings: GenerationSettings) -> Workload:
    """Return the prompts, cut from reviews by the model's own tokeniser."""
    folder = peers.causal_lm_folder(settings.model.find())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return Workload(
        prompt_ids(tokenizer), long_prompt_ids(tokenizer, LONG_PROMPT_TOKENS), settings.new_tokens
    )


def makers(settings: GenerationSettings, work: Workload) -> list[Callable[[], list[Entry]]]:
    """Return what makes the entries of each contender: ours as they come, peers at every setting."""
    wanted = settings.precisions
    of = {
        "served": (_served, wanted),
        "no-drafts": (_without_drafts, wanted),
        "in-process": (_in_process, wanted),
        "steps": (_steps, wanted),
        "ctranslate2": (_ctranslate2, [p for p in wanted if p in _COMPUTE_TYPES]),
        "genai": (_genai, wanted),
        "transformers": (_transformers, ["fp32"]),
        "optimum": (_optimum, ["fp32"]),
    }
    return [partial(of[name][0], settings, work, p) for name in settings.contenders for p in of[name][1]]


def _served(settings: GenerationSettings, work: Workload, precision: str) -> list[Entry]:
    return [_ours(settings, work, precision, served(precision), "Served")]


def _without_drafts(settings: GenerationSettings, work: Workload, precision: str) -> list[Entry]:
    entry = _ours(settings, work, precision, without_drafts(precision), "Served")
    config = {**entry.config, "store": str(settings.model.store(precision)), "settings": NO_DRAFTS}
    return [replace(entry, config=config)]


def _in_process(settings: GenerationSettings, work: Workload, precision: str) -> list[Entry]:
    return [_ours(settings, work, precision, in_process(precision), "InProcess")]


def _steps(settings: GenerationSettings, work: Workload, precision: str) -> list[Entry]:
    entry = _ours(settings, work, precision, steps(precision), "InProcess")
    return [replace(entry, config={**entry.config, "is_drafted": False})]


def _ours(settings: GenerationSettings, work: Workload, precision: str, name: str, runner: str) -> Entry:
    model = settings.model
    config = {
        "store": str(model.drafted_store() if precision == "fp32" else model.store(precision)),
        "model": model.served_name(precision),
        "workload": asdict(work),
    }
    return Entry(name, "its own threads", f"bench.generation_runners:{runner}", config, max(settings.threads))


def _ctranslate2(settings: GenerationSettings, work: Workload, precision: str) -> list[Entry]:
    config = {
        "folder": str(peers.ctranslate2_folder(settings.model.find())),
        "compute_type": _COMPUTE_TYPES[precision],
        "workload": asdict(work),
    }
    runner, most = "bench.generation_peers:CTranslate2", max(settings.threads)
    return _at_each_setting(settings, Entry(ctranslate2(precision), "", runner, config, most))


def _genai(settings: GenerationSettings, work: Workload, precision: str) -> list[Entry]:
    folder = str(peers.genai_folder(settings.model.find(), precision))
    config = {"folder": folder, "workload": asdict(work)}
    runner, most, python = "bench.foreign.genai:Genai", max(settings.threads), str(peers.GENAI.python())
    return _at_each_setting(settings, Entry(genai(precision), "", runner, config, most, python=python))


def _transformers(settings: GenerationSettings, work: Workload, _: str) -> list[Entry]:
    return _slow(settings, work, TRANSFORMERS, "Transformers", peers.causal_lm_folder)


def _optimum(settings: GenerationSettings, work: Workload, _: str) -> list[Entry]:
    return _slow(settings, work, OPTIMUM, "Optimum", peers.optimum_folder)


def _slow(
    settings: GenerationSettings, work: Workload, name: str, runner: str, find: Callable[[str], Path]
) -> list[Entry]:
    config = {"folder": str(find(settings.model.find())), "workload": asdict(work)}
    factory, most = f"bench.generation_peers:{runner}", max(settings.threads)
    return _at_each_setting(settings, Entry(name, "", factory, config, most, max_rounds=SLOW_PEER_ROUNDS))


def _at_each_setting(settings: GenerationSettings, entry: Entry) -> list[Entry]:
    return [
        replace(
            entry,
            variant=f"{count} thread{'s' if count > 1 else ''}",
            setting={"num_threads": count},
            warm_up=settings.scenarios[:1],
        )
        for count in settings.threads
    ]


def ratios(precisions: Sequence[str]) -> list[Ratio]:
    """Return what to compare, with what issue and design hope for."""
    fp32 = served("fp32")
    against_int8 = "quiet: 3, 3, 2.3 (GPT-2 2.1); busy 1.8; prompt above 1"
    return [
        *(
            [
                Ratio(without_drafts("int8"), without_drafts("fp32"), "1.9, 1.4, 1.1"),
                Ratio(served("int8"), fp32, ""),
            ]
            if "int8" in precisions
            else []
        ),
        Ratio(fp32, ctranslate2("fp32"), "2 (busy 1.8)"),
        Ratio(served("int8"), ctranslate2("int8"), against_int8),
        Ratio(in_process("int8"), ctranslate2("int8"), against_int8),
        Ratio(without_drafts("fp32"), ctranslate2("fp32"), ""),
        Ratio(without_drafts("int8"), ctranslate2("int8"), ""),
        *(Ratio(served(precision), genai(precision), "above 1") for precision in precisions),
        *(Ratio(without_drafts(precision), genai(precision), "") for precision in precisions),
        Ratio(fp32, TRANSFORMERS, "2.5 at 1, 3.3 at 16"),
        Ratio(fp32, OPTIMUM, "above 1"),
        *(Ratio(served(precision), in_process(precision), "0.95") for precision in precisions),
    ]


def _equalities(benchmark: Benchmark) -> Iterable[str]:
    """Say how many texts of the widest scenario are transformers' own, or fp32's of ours without it."""
    widest = max((name for name in benchmark.scenarios if name != PREFILL), key=int, default=None)
    known = [name for name in (TRANSFORMERS, served("fp32")) if name in benchmark.candidates]
    if widest is None or not known:
        return
    for name in benchmark.candidates:
        share = share_of_equal_answers(
            benchmark.repetitions, benchmark.cell(name, widest), benchmark.cell(known[0], widest), widest
        )
        if name != known[0] and not math.isnan(share):
            yield f"{name}: {share:.0%} of the {widest} texts equal those of {known[0]} token for token"


def _own_environment(benchmark: Benchmark) -> Iterable[str]:
    """Say what the peers ran on that do not share our packages."""
    if any(name.startswith(peers.GENAI.name) for name in benchmark.candidates):
        yield peers.GENAI.sentence()


def _latencies(benchmark: Benchmark) -> Iterable[str]:
    for name in benchmark.candidates:
        for scenario, heading in benchmark.scenarios.items():
            details = benchmark.cell(name, scenario).details
            if details and "served" in name and scenario != PREFILL:
                figures = ", ".join(
                    f"{key.removesuffix('_ms').replace('_', ' ')} {ms:.0f} ms" for key, ms in details.items()
                )
                yield f"{name}, {heading}, at the client: {figures}"


def _outside_graph(benchmark: Benchmark) -> Iterable[str]:
    """Say which share of its time our engine spends beside runs of the graph."""
    for name in benchmark.candidates:
        cells = {heading: benchmark.cell(name, key).details for key, heading in benchmark.scenarios.items()}
        shares = [
            f"{details[OUTSIDE_GRAPH]:.1%} at {heading}"
            for heading, details in cells.items()
            if OUTSIDE_GRAPH in details
        ]
        if shares:
            yield f"{name}, time outside of the graph (aim at 16 streams: below 10%): {', '.join(shares)}"


def _roofline_table(benchmark: Benchmark, settings: GenerationSettings, roofline: Roofline) -> Table:
    """Return how much of the memory bandwidth decoding one stream uses; prompts are left out of it."""
    rows: list[list[str | float]] = []
    for precision in settings.precisions:
        name = steps(precision)
        if name not in benchmark.candidates or "1" not in benchmark.scenarios:
            continue
        model = settings.model
        graph = next(model.store(precision).glob(f"{model.served_name(precision)}/*/decoder.onnx"))
        steps_per_s = 1e3 / benchmark.cell(name, "1").details["gap_mean_ms"]
        read_mb = weight_bytes(graph) / 1e6
        rows.append([name, read_mb, steps_per_s, read_mb * steps_per_s / 1e3 / roofline.read_gb_s])
    columns = ["", "weights read a step (MB)", "steps/s while decoding", "share of the memory bandwidth"]
    return Table("Roofline of one stream (aim: fp32 0.85, int8 0.60)", columns, rows)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))
