"""The embedding benchmark: all-MiniLM-L6-v2 at fixed lengths and on a realistic mix of film reviews."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
from aimass_exporters.encoders.encoder_parity import neighbour_overlap
from aimass_serving.cpu import usable_cores
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bench import peers
from bench.contest import Entry, hold, lineup
from bench.machine import describe_machine
from bench.models import MINILM, PRECISIONS
from bench.padding import padding_efficiency
from bench.report import Benchmark, Ratio
from bench.roofline import Roofline, encoder_gflop, measure_roofline
from bench.table import Table
from bench.text_sets import CALLS_IN_FLIGHT, TEXTS_A_CALL, TextSets, vectors_file
from bench.texts import sentences, sentences_and_reviews, texts_of_length

SENTENCE_TRANSFORMERS, FASTEMBED = "sentence-transformers fp32", "fastembed fp32"
INFINITY = "infinity fp32, served"
INFINITY_ENGINES = {"optimum": "ONNX Runtime", "torch": "PyTorch"}
CONTENDERS = ("served", "offline", "ctranslate2", "sentence-transformers", "fastembed", "infinity")
MIX, QUERIES = "mix", "queries"
LENGTHS = {"16": 192, "64": 96, "256": 24}
"""Tokens a text, and how many such texts a run embeds."""
NUM_QUERIES, NUM_DOCUMENTS, NUM_NEAREST = 200, 600, 10
MAX_TOKENS = 256
_SHAPE = {"num_layers": 6, "hidden": 384, "intermediate": 1536}
_COMPUTE_TYPES = {"fp32": "float32", "int8": "int8"}


def served(precision: str) -> str:
    """Return the name of our service at a precision."""
    return f"aimass {precision}, served"


def offline(precision: str) -> str:
    """Return the name of the plain loop over the graph we serve."""
    return f"offline ONNX Runtime loop {precision}"


def ctranslate2(precision: str) -> str:
    """Return the name of CTranslate2 at a precision."""
    return f"CTranslate2 {precision}"


RATIOS = (
    *(Ratio(served(precision), offline(precision), "0.9") for precision in PRECISIONS),
    Ratio(served("fp32"), SENTENCE_TRANSFORMERS, "1.4 on the mix"),
    Ratio(served("fp32"), ctranslate2("fp32"), ""),
    Ratio(served("int8"), ctranslate2("int8"), "1.0, better 1.2, at equal accuracy"),
    Ratio(served("fp32"), FASTEMBED, "above 1"),
    Ratio(served("fp32"), INFINITY, "above 1"),
    Ratio(served("int8"), served("fp32"), ""),
)


@dataclass(frozen=True, slots=True)
class EmbeddingSettings:
    """How long and how wide."""

    contenders: tuple[str, ...]
    scenarios: tuple[str, ...]
    num_rounds: int
    max_s: float
    num_texts: int
    threads: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    """Peers run at each number of threads and batch size in the first round, and at their best later."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this part."""
    parser.add_argument("--contenders", type=_words, default=CONTENDERS, help=",".join(CONTENDERS))
    parser.add_argument("--scenarios", type=_words, default=(*LENGTHS, MIX), help="16,64,256,mix")
    parser.add_argument("--rounds", type=int, default=5, help="most repetitions of each contender")
    parser.add_argument("--seconds", type=float, default=240, help="no further round begins after this")
    parser.add_argument("--texts", type=int, default=128, help="texts of the mix")
    cores = tuple(str(count) for count in sorted({1, usable_cores()}))
    parser.add_argument("--threads", type=_words, default=cores, help="settings every peer is tried at")
    parser.add_argument("--batch-sizes", type=_words, default=("8", "32"), help="the same of batches")


def run(options: argparse.Namespace, *, command: str) -> Benchmark:
    """Hold the contest and return its record."""
    settings = EmbeddingSettings(
        options.contenders,
        options.scenarios,
        options.rounds,
        options.seconds,
        options.texts,
        tuple(map(int, options.threads)),
        tuple(map(int, options.batch_sizes)),
    )
    return contest(settings, command=command)


def contest(settings: EmbeddingSettings, *, command: str) -> Benchmark:
    """Hold the contest, then compare the vectors of queries and documents, and return the record."""
    machine, sets = describe_machine(), text_sets(settings)
    roofline = measure_roofline(max(settings.threads))
    with tempfile.TemporaryDirectory(prefix="aimass-bench-") as folder:
        contenders, absences = lineup(makers(settings, sets, folder))
        repetitions = hold(
            contenders,
            settings.scenarios,
            num_rounds=settings.num_rounds,
            max_s=settings.max_s,
            carries_over=False,  # small batches are slow for short texts, and the best for a mix
        )
        benchmark = Benchmark(
            name="embedding",
            title=f"Sentence embeddings: {MINILM.title}",
            unit="texts/s",
            command=command,
            machine=machine,
            settings=_stated(settings, sets),
            scenarios={name: _heading(name, len(sets[name])) for name in settings.scenarios},
            ours="",
            repetitions=repetitions,
            ratios=RATIOS,
        )
        accuracy = _accuracy_table(benchmark, folder)
    tables = [accuracy, _roofline_table(benchmark, sets, roofline)]
    remarks = [_padding_remark(sets), roofline.sentence(), *_own_environment(benchmark), *absences]
    return replace(benchmark, tables=tables, remarks=remarks)


def _heading(scenario: str, count: int) -> str:
    return f"{count} texts, a mix" if scenario == MIX else f"{count} texts of {scenario} tokens"


def _stated(settings: EmbeddingSettings, sets: dict[str, list[str]]) -> dict[str, object]:
    lengths = token_lengths(sets[MIX])
    return {
        "most rounds": settings.num_rounds,
        "seconds": f"{settings.max_s:.0f}",
        "tokens a text of the mix": f"mean {np.mean(lengths):.0f}, median {np.median(lengths):.0f}, "
        f"most {max(lengths)}",
        "served": f"calls of {TEXTS_A_CALL} texts, {CALLS_IN_FLIGHT} in flight",
        "threads tried for the others": ", ".join(map(str, settings.threads)),
        "batch sizes tried for the others": ", ".join(map(str, settings.batch_sizes)),
    }


@cache
def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer


def _folder() -> Path:
    return peers.sentence_transformers_folder(MINILM.find())


def token_lengths(texts: Sequence[str]) -> list[int]:
    """Return the tokens of each text, special ones included, as the model takes them."""
    return [len(encoding.ids) for encoding in _tokenizer().encode_batch(list(texts))]


def text_sets(settings: EmbeddingSettings) -> dict[str, list[str]]:
    """Return the texts of every scenario, and those whose vectors are compared."""
    whole = Tokenizer.from_file(str(_folder() / "tokenizer.json"))
    whole.no_padding()
    whole.no_truncation()
    return {
        **{name: texts_of_length(whole, int(name), count) for name, count in LENGTHS.items()},
        MIX: sentences_and_reviews(settings.num_texts),
        QUERIES: sentences(NUM_QUERIES + NUM_DOCUMENTS),
    }


def makers(
    settings: EmbeddingSettings, sets: dict[str, list[str]], folder: str
) -> list[Callable[[], list[Entry]]]:
    """Return what makes the entries of each contender that was asked for."""
    maker = _Maker(settings, sets, folder)
    of: dict[str, tuple[Callable[[str], list[Entry]], Sequence[str]]] = {
        "served": (maker.served, PRECISIONS),
        "offline": (maker.offline, PRECISIONS),
        "ctranslate2": (maker.ctranslate2, PRECISIONS),
        "sentence-transformers": (maker.torch, ("fp32",)),
        "fastembed": (maker.fastembed, ("fp32",)),
        "infinity": (maker.infinity, ("fp32",)),
    }
    return [partial(of[name][0], precision) for name in settings.contenders for precision in of[name][1]]


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes the entries of each contender at a precision."""

    settings: EmbeddingSettings
    sets: dict[str, list[str]]
    folder: str
    """Where contenders leave their vectors."""

    def served(self, precision: str) -> list[Entry]:
        config = {
            "store": str(MINILM.store(precision)),
            "model": MINILM.served_name(precision),
            "texts": self._texts(served(precision)),
        }
        warm_up, runner = (QUERIES, *self.settings.scenarios), "bench.embedding_runners:Served"
        return [Entry(served(precision), "its own threads", runner, config, self._most, warm_up=warm_up)]

    def offline(self, precision: str) -> list[Entry]:
        folders = MINILM.store(precision).glob(f"{MINILM.served_name(precision)}/*")
        bundle = max(folders, key=lambda path: int(path.name))
        config = {"bundle": str(bundle), "texts": self._texts(offline(precision))}
        return _variants(self.settings, offline(precision), "embedding_runners:OfflineLoop", config)

    def ctranslate2(self, precision: str) -> list[Entry]:
        config = {
            "folder": str(peers.ctranslate2_encoder_folder(MINILM.find())),
            "tokenizer": str(_folder() / "tokenizer.json"),
            "compute_type": _COMPUTE_TYPES[precision],
            "texts": self._texts(ctranslate2(precision)),
        }
        return _variants(self.settings, ctranslate2(precision), "embedding_peers:CTranslate2", config)

    def torch(self, _: str) -> list[Entry]:
        config = {"folder": str(_folder()), "texts": self._texts(SENTENCE_TRANSFORMERS)}
        runner = "embedding_peers:SentenceTransformers"
        return _variants(self.settings, SENTENCE_TRANSFORMERS, runner, config)

    def fastembed(self, _: str) -> list[Entry]:
        config = {"folder": str(peers.onnx_encoder_folder(MINILM.find())), "texts": self._texts(FASTEMBED)}
        return _variants(self.settings, FASTEMBED, "embedding_peers:FastEmbed", config)

    def infinity(self, _: str) -> list[Entry]:
        folders = {
            "optimum": str(peers.infinity_onnx_folder(MINILM.find(), max_tokens=MAX_TOKENS)),
            "torch": str(_folder()),
        }
        config = {"folders": folders, "texts": self._texts(INFINITY)}
        runner, python = "bench.foreign.infinity:Infinity", str(peers.INFINITY.python())
        return _at_each_engine(self.settings, Entry(INFINITY, "", runner, config, self._most, python=python))

    @property
    def _most(self) -> int:
        return max(self.settings.threads)

    def _texts(self, candidate: str) -> dict[str, object]:
        return asdict(TextSets(self.sets, self.folder, candidate))


def _variants(
    settings: EmbeddingSettings, candidate: str, runner: str, config: Mapping[str, object]
) -> list[Entry]:
    """Return a contender at each setting. The first one also embeds the queries, while it warms up."""
    pairs = [(count, size) for count in reversed(settings.threads) for size in settings.batch_sizes]
    return [
        Entry(
            candidate,
            f"{count} thread{'s' if count > 1 else ''}, batches of {size}",
            f"bench.{runner}",
            config,
            max(settings.threads),
            setting={"num_threads": count, "batch_size": size},
            warm_up=(QUERIES,) if (count, size) == pairs[0] else settings.scenarios[:1],
        )
        for count, size in pairs
    ]


def _at_each_engine(settings: EmbeddingSettings, entry: Entry) -> list[Entry]:
    """Return infinity on each engine. The first one also embeds the queries, while it warms up."""
    first = next(iter(INFINITY_ENGINES))
    return [
        replace(
            entry,
            variant=title,
            setting={"engine": engine},
            warm_up=(QUERIES,) if engine == first else settings.scenarios[:1],
        )
        for engine, title in INFINITY_ENGINES.items()
    ]


def _own_environment(benchmark: Benchmark) -> Iterable[str]:
    """Say what the peers ran on that do not share our packages."""
    if INFINITY in benchmark.candidates:
        yield peers.INFINITY.sentence()


def _accuracy_table(benchmark: Benchmark, folder: str) -> Table:
    """Compare each candidate's vectors with PyTorch's, or with ours in fp32 without PyTorch."""
    known = [name for name in (SENTENCE_TRANSFORMERS, served("fp32")) if name in benchmark.candidates]
    rows: list[list[str | float]] = []
    for name in benchmark.candidates if known else []:
        got, expected = (np.load(vectors_file(folder, who, QUERIES)) for who in (name, known[0]))
        cosines = np.sum(got * expected, axis=1)
        overlap = top_overlap(got, expected, num_queries=NUM_QUERIES, count=NUM_NEAREST)
        among = neighbour_overlap(got, expected, count=NUM_NEAREST)
        rows.append([name, float(cosines.mean()), float(cosines.min()), overlap, among])
    reference = known[0] if known else "nothing"
    heading = (
        f"Accuracy against {reference}: {NUM_QUERIES} sentences as queries, {NUM_DOCUMENTS} as documents "
        "(aim for int8: cosine 0.996, overlap 0.93)"
    )
    columns = ["", "cosine, mean", "cosine, least", "top-10 of the queries", "top-10 among all"]
    return Table(heading, columns, rows)


def top_overlap(
    got: NDArray[np.float32], expected: NDArray[np.float32], *, num_queries: int, count: int
) -> float:
    """Return the mean share of each query's nearest documents that two sets of vectors agree on.

    The first rows [num_queries] are queries, the others documents.
    """

    def nearest(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
        scores = vectors[:num_queries] @ vectors[num_queries:].T
        return np.argpartition(-scores, count, axis=1)[:, :count]

    pairs = zip(nearest(got).tolist(), nearest(expected).tolist(), strict=True)
    return float(np.mean([len(set(mine) & set(theirs)) / count for mine, theirs in pairs]))


def _roofline_table(benchmark: Benchmark, sets: dict[str, list[str]], roofline: Roofline) -> Table:
    rows: list[list[str | float]] = []
    for scenario, heading in benchmark.scenarios.items():
        lengths = token_lengths(sets[scenario])
        gflop_a_text = encoder_gflop(lengths, **_SHAPE) / len(lengths)
        for name in benchmark.candidates:
            gflop_s = gflop_a_text * benchmark.cell(name, scenario).rate
            rows.append([f"{name}, {heading}", gflop_s, gflop_s / roofline.gemm_gflop_s])
    heading = "Share of the float32 arithmetic roofline (operations without padding)"
    return Table(heading, ["", "GFLOP/s", "share"], rows)


def _padding_remark(sets: dict[str, list[str]]) -> str:
    share = padding_efficiency(token_lengths(sets[MIX]), texts_a_call=TEXTS_A_CALL, calls=CALLS_IN_FLIGHT)
    return (
        f"Padding efficiency of the mix: {share:.1%} of the computed tokens are tokens of a text (the "
        f"service's own batcher, replayed on calls of {TEXTS_A_CALL} texts, {CALLS_IN_FLIGHT} in flight)"
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))
