"""Measures an encoder with a head against PyTorch on the same weights: the graph on padded batches, PyTorch
text by text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from aimass_serving.session import Device, Session, SessionConfig, open_session
from numpy.typing import NDArray
from tokenizers import Encoding

from aimass_exporters.bundles.parity import ParityReport
from aimass_exporters.encoders.task_encoder import TaskEncoder
from aimass_exporters.precision import Precision
from aimass_exporters.progress import Progress

BATCH = 8
NUM_HELD_OUT, MAX_HELD_OUT_TOKENS = 192, 48
MAX_PASSAGE_TOKENS, MAX_VOCABULARY_WIDE_TOKENS = 256, 32
NUM_GOLDEN, MAX_GOLDEN_TOKENS = 3, 12

Logits = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class HeadBounds:
    """What logits must reach against fp32 PyTorch on the same weights."""

    max_diff_std: float | None
    """Largest difference allowed, as a share of the logits' standard deviation; None when weights are
    integers.
    """
    min_agreement: float
    """Share of texts, or tokens, whose best label is the same."""
    golden_tolerance_std: float
    """Drift allowed between machines when golden inputs are replayed."""


HEAD_BOUNDS: Mapping[Precision, HeadBounds] = {
    # The same arithmetic in another order, as for vectors. Near-ties of random heads may turn.
    Precision.FP32: HeadBounds(1e-3, 0.99, 1e-3),
    # Eleven bits of mantissa through the layers.
    Precision.FP16: HeadBounds(5e-2, 0.97, 5e-2),
    # Weights and activations rounded to 8 bits; weights to 4 bits in blocks.
    Precision.INT8: HeadBounds(None, 0.95, 0.3),
    Precision.INT4: HeadBounds(None, 0.85, 0.4),
}


@dataclass(frozen=True, slots=True)
class HeadUnderTest:
    """An exported graph beside the PyTorch model it came from."""

    session: Session
    reference: TaskEncoder

    @classmethod
    def open(cls, graph: Path, reference: TaskEncoder) -> HeadUnderTest:
        """Open the graph on the CPU, where PyTorch runs too."""
        return cls(open_session(graph, SessionConfig(device=Device.CPU, allow_spinning=False)), reference)

    def tokenize(self, texts: Sequence[str], *, max_tokens: int) -> list[Encoding]:
        """Return the tokens of each text, or of each text with the next for heads that read pairs."""
        limit = min(self.reference.spec.max_tokens, max_tokens)
        return self.reference.text.encode_all(
            texts, max_tokens=limit, in_pairs=self.reference.kind.reads_pairs
        )

    def padded(self, batch: Sequence[Encoding]) -> dict[str, NDArray[np.int64]]:
        """Return the graph's inputs [batch, seq], padded on the right."""
        feeds = self.reference.text.padded(batch)
        return {value.name: feeds[value.name] for value in self.session.inputs}

    def graph_logits(self, batch: Sequence[Encoding]) -> Iterator[Logits]:
        """Yield the graph's outputs of each input of one padded batch, padding cut off."""
        outputs = self.session.run(self.padded(batch))
        for row, e in enumerate(batch):
            yield {name: self._own(outputs[name][row], len(e.ids)) for name in self.reference.kind.outputs}

    def reference_logits(self, encoding: Encoding) -> Logits:
        """Return PyTorch's outputs of one input alone."""
        feeds = {name: torch.from_numpy(v) for name, v in self.padded([encoding]).items()}
        with torch.inference_mode():
            outputs = self.reference.model(**feeds)
        return {name: outputs[name][0].numpy() for name in self.reference.kind.outputs}

    def _own(self, values: NDArray[Any], num_tokens: int) -> NDArray[np.float32]:
        return values[:num_tokens] if self.reference.kind.is_token_level else values


def measure_head(
    test: HeadUnderTest,
    texts: Sequence[str],
    precision: Precision,
    report: ParityReport,
    progress: Progress,
) -> None:
    """Compare logits with PyTorch's: on passages of very different lengths, and on held-out `texts`."""
    progress.stage("compare logits with PyTorch")
    wide = test.reference.kind.is_vocabulary_wide
    limit = MAX_VOCABULARY_WIDE_TOKENS if wide else MAX_PASSAGE_TOKENS
    passages = test.reference.passages
    _compare(test, test.tokenize(passages, max_tokens=limit), precision, report, suffix="_passages")
    if test.reference.original is not None:
        _compare_with_original(test, test.reference.original, precision, report)
    if texts:
        limit = MAX_VOCABULARY_WIDE_TOKENS if wide else MAX_HELD_OUT_TOKENS
        held_out = test.tokenize(texts[:NUM_HELD_OUT], max_tokens=limit)
        _compare(test, sorted(held_out, key=lambda e: len(e.ids)), precision, report, suffix="")


def _compare(
    test: HeadUnderTest,
    inputs: Sequence[Encoding],
    precision: Precision,
    report: ParityReport,
    *,
    suffix: str,
) -> None:
    bounds = HEAD_BOUNDS[precision]
    largest, spread, same, compared = 0.0, 0.0, 0, 0
    for start in range(0, len(inputs), BATCH):
        batch = inputs[start : start + BATCH]
        for encoding, ours in zip(batch, test.graph_logits(batch), strict=True):
            for name, theirs in test.reference_logits(encoding).items():
                largest = max(largest, _largest_difference(ours[name], theirs))
                spread = max(spread, float(theirs.std()))
                best = np.argmax(np.atleast_2d(ours[name]), -1) == np.argmax(np.atleast_2d(theirs), -1)
                same, compared = same + int(best.sum()), compared + best.size
    share = same / compared
    # Of a single logit there is no best, so its value alone is judged.
    if bounds.max_diff_std is not None:
        bound = bounds.max_diff_std * max(spread, 1e-3)
        report.at_most(f"max_abs_diff_logits{suffix}", largest, bound=bound, num_samples=compared)
    if bounds.max_diff_std is None or not suffix:
        report.at_least(f"best_agreement{suffix}", share, bound=bounds.min_agreement, num_samples=compared)


def _largest_difference(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Return infinity for what is no number, or of another shape."""
    if ours.shape != theirs.shape:
        return np.inf
    difference = float(np.abs(ours - theirs).max())
    return difference if np.isfinite(difference) else np.inf


def _compare_with_original(
    test: HeadUnderTest,
    original: Callable[[str], NDArray[np.float32]],
    precision: Precision,
    report: ParityReport,
) -> None:
    """Compare with the graph that the model came as, which has a tokenizer of its own."""
    largest, spread, compared = 0.0, 1e-3, 0
    passages = test.reference.passages
    encodings = test.tokenize(passages, max_tokens=test.reference.spec.max_tokens)
    for text, ours in zip(passages, test.graph_logits(encodings), strict=True):
        theirs = original(text)
        largest = max(largest, _largest_difference(ours["logits"], theirs))
        spread, compared = max(spread, float(theirs.std())), compared + len(theirs)
    bound = (HEAD_BOUNDS[precision].max_diff_std or np.inf) * spread
    report.at_most("max_abs_diff_logits_original", largest, bound=bound, num_samples=compared)


def golden_logits(test: HeadUnderTest, precision: Precision) -> dict[str, NDArray[Any]]:
    """Return a small batch and what the graph makes of it here."""
    passages = test.reference.passages[: NUM_GOLDEN + 1]
    encodings = test.tokenize(passages, max_tokens=MAX_GOLDEN_TOKENS)[:NUM_GOLDEN]
    feeds = test.padded(encodings)
    outputs = test.session.run(feeds)
    logits = {name: outputs[name].astype(np.float32) for name in test.reference.kind.outputs}
    spread = max(float(values.std()) for values in logits.values())
    tolerance = np.array(HEAD_BOUNDS[precision].golden_tolerance_std * max(spread, 1e-3), np.float64)
    return {**feeds, **logits, "tolerance": tolerance}
