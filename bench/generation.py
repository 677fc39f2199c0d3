"""The generation benchmark: SmolLM2-135M-Instruct, float32, greedy, a fixed number of new tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from bench import peers
from bench.contest import Entry, hold
from bench.generation_runners import read_tokens
from bench.machine import describe_machine
from bench.measurement import share_of_equal_answers
from bench.report import Benchmark
from bench.texts import prompts

MODEL = "smollm2-135m-instruct"
SERVED, IN_PROCESS = "aimass, served over gRPC", "aimass engine, in process"
TRANSFORMERS, OPTIMUM, CTRANSLATE2 = "transformers generate", "optimum ORTModelForCausalLM", "CTranslate2"
RUNNERS = "bench.generation_runners"


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How long and how wide."""

    store: Path
    num_rounds: int
    new_tokens: int
    streams: tuple[int, ...]
    threads: tuple[int, ...]
    """Every peer runs at each of these; the table shows its best."""


def run(settings: GenerationSettings, *, command: str) -> Benchmark:
    """Hold the contest and return its record."""
    machine = describe_machine()
    scenarios = [str(count) for count in settings.streams]
    repetitions = hold(entries(settings), scenarios, num_rounds=settings.num_rounds)
    benchmark = Benchmark(
        name="generation",
        title="Text generation: SmolLM2-135M-Instruct, float32, greedy",
        unit="tokens/s",
        command=command,
        machine=machine,
        settings={
            "rounds": settings.num_rounds,
            "new tokens a stream": settings.new_tokens,
            "prompt lengths": ", ".join(str(len(row)) for row in prompt_ids()),
            "threads tried for the peers": ", ".join(map(str, settings.threads)),
        },
        scenarios={str(n): f"{n} stream{'s' if n > 1 else ''}" for n in settings.streams},
        ours=SERVED,
        repetitions=repetitions,
    )
    return _with_remarks(benchmark)


def entries(settings: GenerationSettings) -> list[Entry]:
    """Return every contender: ours as they come, each peer at each number of threads."""
    texts, ids = prompts(), prompt_ids()
    hf, onnx, ct2 = (
        make(MODEL) for make in (peers.causal_lm_folder, peers.optimum_folder, peers.ctranslate2_folder)
    )
    common = {"new_tokens": settings.new_tokens}
    ours = {"store": str(settings.store), "model": MODEL, **common}
    most = max(settings.threads)
    chosen = [
        Entry(SERVED, "its own threads", f"{RUNNERS}:Served", {**ours, "texts": texts}, most),
        Entry(IN_PROCESS, "its own threads", f"{RUNNERS}:InProcess", {**ours, "prompts": ids}, most),
    ]
    for count in settings.threads:
        variant = f"{count} thread{'s' if count > 1 else ''}"
        peer = {**common, "num_threads": count}
        chosen += [
            Entry(
                TRANSFORMERS,
                variant,
                f"{RUNNERS}:Transformers",
                {**peer, "folder": str(hf), "prompts": ids},
                count,
            ),
            Entry(
                OPTIMUM, variant, f"{RUNNERS}:Optimum", {**peer, "folder": str(onnx), "prompts": ids}, count
            ),
            Entry(
                CTRANSLATE2,
                variant,
                f"{RUNNERS}:CTranslate2",
                {**peer, "folder": str(ct2), "tokens": read_tokens(hf, ids)},
                count,
            ),
        ]
    return chosen


def prompt_ids() -> list[list[int]]:
    """Return the prompts as token ids."""
    tokenizer = Tokenizer.from_file(str(peers.causal_lm_folder(MODEL) / "tokenizer.json"))
    return [tokenizer.encode(text).ids for text in prompts()]


def _with_remarks(benchmark: Benchmark) -> Benchmark:
    from dataclasses import replace

    widest = max(benchmark.scenarios, key=int)
    reference = benchmark.cell(TRANSFORMERS, widest)
    remarks = [
        f"{name}: {share:.0%} of the {widest} texts equal transformers' token for token"
        for name in benchmark.candidates
        if not math.isnan(share := _share(benchmark, name, widest))
        if name != reference.candidate
    ]
    return replace(benchmark, remarks=[*remarks, *_latency_remarks(benchmark)])


def _share(benchmark: Benchmark, name: str, scenario: str) -> float:
    mine, reference = benchmark.cell(name, scenario), benchmark.cell(TRANSFORMERS, scenario)
    return share_of_equal_answers(benchmark.repetitions, mine, reference, scenario)


def _latency_remarks(benchmark: Benchmark) -> Sequence[str]:
    sentences = []
    for scenario, heading in benchmark.scenarios.items():
        details = benchmark.cell(SERVED, scenario).details
        figures = ", ".join(
            f"{name.removesuffix('_ms').replace('_', ' ')} {ms:.0f} ms" for name, ms in details.items()
        )
        sentences.append(f"{SERVED}, {heading}, at the client: {figures}")
    return sentences
