"""Measures an exported decoder against PyTorch on the same weights, through the very runner that will serve
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from aimass.model.v1.manifest_pb2 import DecoderSpec
from aimass_decoding.runner import DecoderRunner, geometry_of
from aimass_serving.session import Device, Session, SessionConfig, open_session
from numpy.typing import NDArray

from aimass_exporters.bundles.parity import ParityReport
from aimass_exporters.decoders.causal_lm import CausalLM
from aimass_exporters.errors import InvalidExportOption
from aimass_exporters.graphs.torch_threads import one_torch_thread
from aimass_exporters.precision import DecoderBounds
from aimass_exporters.progress import Progress

Logits = NDArray[np.float32]

PASSAGES = (
    "The lighthouse keeper climbed the spiral stairs every evening to light the lamp for the fishing boats.",
    "In 1928 a mould that had drifted in through an open window ruined a culture plate and changed medicine.",
    "def mean(values):\n    return sum(values) / len(values)\n\nprint(mean([3, 5, 8, 13]))\n",
    "Grüße aus Zürich 🙂 今日は天気がいいですね。 Précisément à 18h30, rendez-vous à la gare.",
)
_MIN_CHUNK, _DECODE_STEPS, _MAX_PASSAGE_TOKENS = 2, 8, 40
HELD_OUT_ROWS, HELD_OUT_GROUPS, HELD_OUT_TOKENS = 8, 4, 72
_HELD_OUT_PREFILL = 8


@dataclass(frozen=True, slots=True)
class DecoderUnderTest:
    """An exported graph beside the PyTorch model it came from."""

    session: Session
    spec: DecoderSpec
    reference: CausalLM
    num_adapters: int = 0
    """How many adapters lie beside the graph's weights."""
    adapter: int = 0
    """Number of the one that is measured; 0 for none."""

    @classmethod
    def open(
        cls, graph: Path, spec: DecoderSpec, reference: CausalLM, *, num_adapters: int = 0
    ) -> DecoderUnderTest:
        """Open the graph on the CPU, where PyTorch runs too."""
        session = open_session(graph, SessionConfig(device=Device.CPU, allow_spinning=False))
        return cls(session, spec, reference, num_adapters)

    def runner(self, *, max_slots: int, max_len: int) -> DecoderRunner:
        """Return a runner with empty slots."""
        geometry = geometry_of(self.spec, num_adapters=self.num_adapters)
        runner = DecoderRunner(
            self.session, geometry, max_slots=max_slots, max_len=min(max_len, geometry.max_positions)
        )
        for slot in range(max_slots):
            runner.set_adapter(slot, self.adapter)
        return runner

    def reference_logits(self, token_ids: Sequence[int]) -> Logits:
        """Return PyTorch's logits of every position: [len(token_ids), vocab]."""
        with torch.inference_mode(), one_torch_thread():
            logits: Logits = (
                self.reference.model(torch.tensor([token_ids]), use_cache=False).logits[0].float().numpy()
            )
        return logits


def measure_logits(
    test: DecoderUnderTest, bounds: DecoderBounds, report: ParityReport, progress: Progress
) -> None:
    """Compare logits on passages of different lengths: prompts in two chunks, then ragged batches."""
    progress.stage("compare logits with PyTorch")
    passages = [_passage(test, text) for text in PASSAGES]
    expected = [test.reference_logits(ids) for ids in passages]
    pairs = list(_walk(test, passages, expected))
    largest = max(float(np.abs(got - want).max()) for got, want in pairs)
    agreement = float(np.mean([got.argmax() == want.argmax() for got, want in pairs]))
    if bounds.max_abs_diff_logits is not None:
        report.at_most(
            "max_abs_diff_logits", largest, bound=bounds.max_abs_diff_logits, num_samples=len(pairs)
        )
        report.at_least(
            "top1_agreement_passages", agreement, bound=bounds.min_top1_agreement, num_samples=len(pairs)
        )
    elif not np.isfinite(largest):
        report.at_most("max_abs_diff_logits", largest, bound=0.0, num_samples=len(pairs))


def _passage(test: DecoderUnderTest, text: str) -> list[int]:
    """Return a passage's tokens, cut to what the model has positions for, and different in length from the
    others.
    """
    ids = test.reference.text.encode(text)[: min(_MAX_PASSAGE_TOKENS, test.spec.max_positions)]
    return ids[: max(len(ids) - len(text) % 5, _DECODE_STEPS + 2 * _MIN_CHUNK)]


def _walk(
    test: DecoderUnderTest, passages: Sequence[list[int]], expected: Sequence[Logits]
) -> list[tuple[Logits, Logits]]:
    """Feed the passages as the engine would; return pairs of logits [vocab]: got, expected."""
    runner = test.runner(max_slots=len(passages), max_len=_MAX_PASSAGE_TOKENS)
    lengths = np.array([len(ids) - _DECODE_STEPS for ids in passages])
    pairs = []
    for slot, (ids, length) in enumerate(zip(passages, lengths, strict=True)):
        for start, end in ((0, length // 2), (length // 2, length)):
            got = runner.prefill(slot, np.array(ids[start:end]), start=start)
            pairs.append((got.copy(), expected[slot][end - 1]))
    for _ in range(_DECODE_STEPS):
        tokens = np.array([ids[n] for ids, n in zip(passages, lengths, strict=True)])
        got = runner.decode(tokens, lengths).copy()
        pairs += [(got[slot], expected[slot][n]) for slot, n in enumerate(lengths)]
        lengths = lengths + 1
    return pairs


@dataclass(slots=True)
class _HeldOutSums:
    """Sums over the positions of held-out text. Owned by one measurement."""

    got_nll: float = 0.0
    expected_nll: float = 0.0
    num_agreeing: int = 0
    num_positions: int = 0

    def add(self, got: Logits, expected: Logits, following: NDArray[np.int64]) -> None:
        """Add a step: logits [rows, vocab] of both, and the tokens [rows] that the text goes on with."""
        self.got_nll += _negative_log_likelihood(got, following)
        self.expected_nll += _negative_log_likelihood(expected, following)
        self.num_agreeing += int((got.argmax(-1) == expected.argmax(-1)).sum())
        self.num_positions += len(following)


def measure_held_out(
    test: DecoderUnderTest,
    texts: Sequence[str],
    bounds: DecoderBounds,
    report: ParityReport,
    progress: Progress,
) -> None:
    """Compare perplexity and best tokens on text that the export never saw, teacher-forced."""
    progress.stage("measure perplexity on held-out text")
    groups = _token_groups(test, texts)
    sums = _HeldOutSums()
    for done, group in enumerate(groups):
        progress.advance(done, len(groups))
        _force(test, group, sums)
    got, expected = (float(np.exp(nll / sums.num_positions)) for nll in (sums.got_nll, sums.expected_nll))
    if bounds.max_perplexity_increase is not None:
        limit = expected * (1 + bounds.max_perplexity_increase)
        report.at_most("perplexity_held_out", got, bound=limit, num_samples=sums.num_positions)
        increase = got / expected - 1
        bound = bounds.max_perplexity_increase
        report.at_most("perplexity_increase", increase, bound=bound, num_samples=sums.num_positions)
    agreement = sums.num_agreeing / sums.num_positions
    report.at_least(
        "top1_agreement", agreement, bound=bounds.min_top1_agreement, num_samples=sums.num_positions
    )


def _token_groups(test: DecoderUnderTest, texts: Sequence[str]) -> list[NDArray[np.int64]]:
    """Return batches of equally long beginnings of texts: [HELD_OUT_ROWS, tokens] each."""
    length = min(HELD_OUT_TOKENS, test.spec.max_positions)
    wanted = HELD_OUT_ROWS * HELD_OUT_GROUPS
    rows: list[list[int]] = []
    for text in texts:
        ids = test.reference.text.encode(text[: 20 * length])
        if len(ids) >= length:
            rows.append(ids[:length])
        if len(rows) == wanted:
            return list(np.array(rows).reshape(HELD_OUT_GROUPS, HELD_OUT_ROWS, length))
    expected = f"at least {wanted} paragraphs of {length} tokens"
    raise InvalidExportOption("--eval-text", expected=expected, got=f"{len(rows)} such paragraphs")


def _force(test: DecoderUnderTest, group: NDArray[np.int64], sums: _HeldOutSums) -> None:
    rows, length = group.shape
    expected = np.stack([test.reference_logits(row.tolist()) for row in group])  # [rows, length, vocab]
    runner = test.runner(max_slots=rows, max_len=length)
    for slot, row in enumerate(group):
        runner.prefill(slot, row[:_HELD_OUT_PREFILL], start=0)
    for position in range(_HELD_OUT_PREFILL, length - 1):
        got = runner.decode(group[:, position], np.full(rows, position))
        sums.add(got, expected[:, position], group[:, position + 1])


def _negative_log_likelihood(logits: Logits, following: NDArray[np.int64]) -> float:
    wide = logits.astype(np.float64)
    peak = wide.max(-1, keepdims=True)
    total = np.log(np.exp(wide - peak).sum(-1)) + peak[:, 0]
    return float((total - wide[np.arange(len(following)), following]).sum())


def golden_arrays(test: DecoderUnderTest, bounds: DecoderBounds) -> dict[str, NDArray[np.generic]]:
    """Return a prompt and what the graph makes of it here: what a service replays before it serves the
    model.
    """
    ids = np.array(_passage(test, PASSAGES[0]), np.int64)
    logits = test.runner(max_slots=1, max_len=len(ids)).prefill(0, ids, start=0).copy()
    tolerance = max(bounds.golden_tolerance_std * float(logits.std()), 1e-4)
    return {"prompt_ids": ids, "logits": logits, "tolerance": np.array(tolerance, np.float64)}
