"""Measures an exported encoder against PyTorch on the same weights: the graph on padded batches, PyTorch
text by text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from aimass.model.v1.manifest_pb2 import POOLING_CLS, POOLING_LAST, POOLING_MEAN
from aimass_encoder.pooling import Pooling, l2_normalize, pool
from aimass_serving.session import Device, Session, SessionConfig, open_session
from numpy.typing import NDArray

from aimass_exporters.bundles.parity import ParityReport
from aimass_exporters.encoders.sentence_encoder import SentenceEncoder
from aimass_exporters.graphs.torch_threads import one_torch_thread
from aimass_exporters.precision import EncoderBounds
from aimass_exporters.progress import Progress

Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]

BATCH = 8
NUM_HELD_OUT, MAX_HELD_OUT_TOKENS = 192, 48
NUM_NEIGHBOURS = 10
PASSAGES = (
    "A violin is a stringed instrument.",
    "The stock market fell sharply on Monday after the central bank raised interest rates a third time.",
    "How do I reset my password?",
    "Grüße aus Zürich 🙂 今日は天気がいいですね。",
    "def mean(values): return sum(values) / len(values)",
    "x",
    "In 1928 a mould that had drifted in through an open window ruined a culture plate. " * 12,
    "The lighthouse keeper climbed the spiral stairs every evening to light the lamp.",
)
_POOLING = {POOLING_CLS: Pooling.CLS, POOLING_MEAN: Pooling.MEAN, POOLING_LAST: Pooling.LAST}


@dataclass(frozen=True, slots=True)
class EncoderUnderTest:
    """An exported graph beside the PyTorch model it came from."""

    session: Session
    reference: SentenceEncoder

    @classmethod
    def open(cls, graph: Path, reference: SentenceEncoder) -> EncoderUnderTest:
        """Open the graph on the CPU, where PyTorch runs too."""
        return cls(open_session(graph, SessionConfig(device=Device.CPU, allow_spinning=False)), reference)

    def tokenize(self, text: str, *, max_tokens: int | None = None) -> list[int]:
        """Return the ids of a text, its special tokens kept when it is cut to the longest input."""
        limit = self.reference.spec.max_tokens
        tokenizer = self.reference.text.tokenizer
        tokenizer.enable_truncation(min(limit, max_tokens or limit))
        ids = list(tokenizer.encode(text).ids)
        tokenizer.no_truncation()
        return ids

    def vectors(self, batch: Sequence[list[int]]) -> Vectors:
        """Return the graph's vectors [batch, hidden] of one padded batch, pooled and of length 1."""
        ids, mask = self.padded(batch)
        return self._finish(self.session.run(self._feeds(ids, mask))["last_hidden_state"], mask)

    def padded(self, batch: Sequence[list[int]]) -> tuple[Ids, Ids]:
        """Return ids and mask [batch, seq], padded on the right."""
        longest = max(len(ids) for ids in batch)
        ids = np.full((len(batch), longest), self.reference.text.pad_token_id, np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        return ids, mask

    def _feeds(self, ids: Ids, mask: Ids) -> dict[str, NDArray[Any]]:
        feeds: dict[str, NDArray[Any]] = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(ids),
        }
        return {value.name: feeds[value.name] for value in self.session.inputs}

    def reference_vector(self, ids: list[int]) -> Vectors:
        """Return PyTorch's vector [hidden] of one text alone, pooled and of length 1."""
        with torch.inference_mode(), one_torch_thread():
            mask = torch.ones(1, len(ids), dtype=torch.long)
            hidden = self.reference.model(torch.tensor([ids]), attention_mask=mask).last_hidden_state
        vector: Vectors = self._finish(hidden.numpy(), mask.numpy())[0]
        return vector

    def _finish(self, hidden: Vectors, mask: Ids) -> Vectors:
        """Pool, and normalise whatever the spec says: a difference is judged on vectors of length 1."""
        return l2_normalize(pool(hidden, mask, _POOLING[self.reference.spec.pooling]))


def measure_vectors(
    test: EncoderUnderTest, bounds: EncoderBounds, report: ParityReport, progress: Progress
) -> None:
    """Compare vectors of passages of very different lengths, in one padded batch, with PyTorch's text by
    text.
    """
    progress.stage("compare vectors with PyTorch")
    texts = [test.tokenize(text) for text in PASSAGES]
    _compare(test.vectors(texts), _references(test, texts), bounds, report, suffix="_passages")


def measure_neighbours(
    test: EncoderUnderTest,
    texts: Sequence[str],
    bounds: EncoderBounds,
    report: ParityReport,
    progress: Progress,
) -> None:
    """Compare vectors, and who is near whom, on text that the export never saw."""
    progress.stage("measure neighbours on held-out text")
    batches = _batches([test.tokenize(t, max_tokens=MAX_HELD_OUT_TOKENS) for t in texts[:NUM_HELD_OUT]])
    got, expected = [], []
    for done, batch in enumerate(batches):
        progress.advance(done, len(batches))
        got.append(test.vectors(batch))
        expected.append(_references(test, batch))
    ours, theirs = np.concatenate(got), np.concatenate(expected)
    _compare(ours, theirs, bounds, report, suffix="")
    if bounds.min_neighbour_overlap is not None:
        overlap = neighbour_overlap(ours, theirs, count=NUM_NEIGHBOURS)
        report.at_least(
            f"neighbour_overlap_top{NUM_NEIGHBOURS}",
            overlap,
            bound=bounds.min_neighbour_overlap,
            num_samples=len(ours),
        )


def _batches(texts: Sequence[list[int]]) -> list[list[list[int]]]:
    by_length = sorted(texts, key=len)
    return [by_length[i : i + BATCH] for i in range(0, len(by_length), BATCH)]


def _references(test: EncoderUnderTest, texts: Sequence[list[int]]) -> Vectors:
    return np.stack([test.reference_vector(ids) for ids in texts])


def _compare(
    got: Vectors, expected: Vectors, bounds: EncoderBounds, report: ParityReport, *, suffix: str
) -> None:
    cosines = (got * expected).sum(axis=1)
    report.at_least(
        f"cosine_min{suffix}", float(cosines.min()), bound=bounds.min_cosine, num_samples=len(got)
    )
    report.at_least(
        f"cosine_mean{suffix}", float(cosines.mean()), bound=bounds.min_mean_cosine, num_samples=len(got)
    )
    if bounds.max_abs_diff_vectors is not None:
        largest = float(np.abs(got - expected).max())
        report.at_most(
            f"max_abs_diff_vectors{suffix}", largest, bound=bounds.max_abs_diff_vectors, num_samples=len(got)
        )


def neighbour_overlap(left: Vectors, right: Vectors, *, count: int) -> float:
    """Return the mean share of each vector's `count` nearest others that two sets agree on."""
    shares = [len(a & b) / count for a, b in zip(_nearest(left, count), _nearest(right, count), strict=True)]
    return float(np.mean(shares))


def _nearest(vectors: Vectors, count: int) -> list[set[int]]:
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    return [set(row) for row in np.argpartition(-similarity, count, axis=1)[:, :count].tolist()]


def golden_vectors(test: EncoderUnderTest, bounds: EncoderBounds) -> dict[str, NDArray[Any]]:
    """Return a batch and what the graph makes of it here, pooled and normalised as the spec says."""
    ids, mask = test.padded([test.tokenize(text) for text in PASSAGES[:3]])
    hidden = test.session.run(test._feeds(ids, mask))["last_hidden_state"]
    vectors = pool(hidden, mask, _POOLING[test.reference.spec.pooling])
    if test.reference.spec.normalize:
        vectors = l2_normalize(vectors)
    scale = float(np.linalg.norm(vectors, axis=1).max())
    tolerance = np.array(bounds.golden_tolerance * scale, np.float64)
    return {"input_ids": ids, "attention_mask": mask, "vectors": vectors, "tolerance": tolerance}
