"""The embedding benchmark: all-MiniLM-L6-v2, float32, on film reviews and single sentences."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench import peers
from bench.contest import Entry, hold
from bench.embedding_runners import (
    BATCH_SIZES,
    BULK,
    CALLS_IN_FLIGHT,
    NUM_SINGLE,
    SCENARIOS,
    SINGLE,
    TEXTS_A_CALL,
)
from bench.machine import describe_machine
from bench.report import Benchmark
from bench.texts import sentences_and_reviews

MODEL = "all-minilm-l6-v2"
SERVED, SENTENCE_TRANSFORMERS = "aimass, served over gRPC", "sentence-transformers"
RUNNERS = "bench.embedding_runners"


@dataclass(frozen=True, slots=True)
class EmbeddingSettings:
    """How long and how wide."""

    store: Path
    num_rounds: int
    num_texts: int
    threads: tuple[int, ...]
    """The peer runs at each of these, and at each batch size; the table shows its best."""


def run(settings: EmbeddingSettings, *, command: str) -> Benchmark:
    """Hold the contest and return its record."""
    machine = describe_machine()
    texts = sentences_and_reviews(settings.num_texts)
    with tempfile.TemporaryDirectory(prefix="aimass-bench-") as scratch:
        contenders = entries(settings, texts, Path(scratch))
        repetitions = hold(contenders, SCENARIOS, num_rounds=settings.num_rounds)
        remark = _agreement(contenders)
    words = [len(text.split()) for text in texts]
    benchmark = Benchmark(
        name="embedding",
        title="Sentence embeddings: all-MiniLM-L6-v2, float32",
        unit="texts/s",
        command=command,
        machine=machine,
        settings={
            "rounds": settings.num_rounds,
            "texts": len(texts),
            "words a text": f"mean {np.mean(words):.0f}, median {np.median(words):.0f}, most {max(words)}",
            "threads tried for the peer": ", ".join(map(str, settings.threads)),
            "batch sizes tried for the peer": ", ".join(map(str, BATCH_SIZES)),
        },
        scenarios={
            BULK: f"{len(texts)} texts at once ({TEXTS_A_CALL} a call, {CALLS_IN_FLIGHT} calls in flight)",
            SINGLE: f"{NUM_SINGLE} texts one by one",
        },
        ours=SERVED,
        repetitions=repetitions,
    )
    return replace(benchmark, remarks=[remark])


def entries(settings: EmbeddingSettings, texts: Sequence[str], scratch: Path) -> list[Entry]:
    """Return every contender: ours as it comes, the peer at each number of threads and batch size."""
    ours = {
        "store": str(settings.store),
        "model": MODEL,
        "texts": texts,
        "vectors_file": str(scratch / "ours.npy"),
    }
    chosen = [Entry(SERVED, "its own threads", f"{RUNNERS}:Served", ours, max(settings.threads))]
    folder = str(peers.sentence_transformers_folder(MODEL))
    for count in settings.threads:
        for batch_size in BATCH_SIZES:
            config = {
                "folder": folder,
                "texts": texts,
                "vectors_file": str(scratch / f"peer-{count}-{batch_size}.npy"),
                "batch_size": batch_size,
                "num_threads": count,
            }
            variant = f"{count} thread{'s' if count > 1 else ''}, batches of {batch_size}"
            factory = f"{RUNNERS}:SentenceTransformers"
            chosen.append(Entry(SENTENCE_TRANSFORMERS, variant, factory, config, count))
    return chosen


def _agreement(contenders: Sequence[Entry]) -> str:
    ours, theirs, *_ = (np.load(entry.config["vectors_file"]) for entry in contenders)  # [texts, dimensions]
    cosines = np.sum(ours * theirs, axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    return f"Cosine of the served vectors with sentence-transformers': at least {cosines.min():.6f}"
