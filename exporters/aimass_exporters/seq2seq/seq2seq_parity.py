"""Compares the graphs of an encoder-decoder with PyTorch, through the runner that will serve them.

Given what PyTorch makes of some sources (keys and values, its own greedy text, logits along it), feeds the
graphs as the engine would. Must not know what a source is: speech or text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from aimass_decoding.cross_attention import SourceMemory
from aimass_decoding.runner import DecoderRunner
from numpy.typing import NDArray

from aimass_exporters.bundles.parity import ParityReport
from aimass_exporters.precision import Seq2SeqBounds

MAX_TEXT_TOKENS = 48
_CHUNK = 2

Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Reading:
    """What PyTorch makes of a source."""

    memory: SourceMemory
    token_ids: list[int]
    """Prompt and text."""
    num_prompt_tokens: int
    logits: Logits  # [len(token_ids), vocab]


def measure_memories(
    readings: Sequence[Reading],
    memories: Sequence[SourceMemory],
    bounds: Seq2SeqBounds,
    report: ParityReport,
) -> None:
    """Compare keys and values of the sources."""
    pairs = [
        (got, want)
        for reading, memory in zip(readings, memories, strict=True)
        for got, want in zip(memory.arrays, reading.memory.arrays, strict=True)
    ]
    error = sum(float(np.square(got - want).sum()) for got, want in pairs)
    size = sum(float(np.square(want).sum()) for _, want in pairs)
    bound = bounds.max_relative_error_encoder
    report.at_most("relative_error_encoder", (error / size) ** 0.5, bound=bound, num_samples=len(readings))


def walk(
    runner: DecoderRunner, readings: Sequence[Reading], memories: Sequence[SourceMemory]
) -> list[tuple[Logits, Logits]]:
    """Feed PyTorch's texts as the engine would: prompts in chunks, then ragged batched decoding.

    Returns pairs of logits [vocab]: got, expected.
    """
    pairs, lengths = [], np.zeros(len(readings), np.int64)
    last = np.array([len(reading.token_ids) - 1 for reading in readings])
    for slot, (reading, memory) in enumerate(zip(readings, memories, strict=True)):
        runner.set_memory(slot, memory)
        lengths[slot] = end = reading.num_prompt_tokens + slot % 2  # so that rows differ in length
        for start in range(0, end, _CHUNK):
            chunk = np.array(reading.token_ids[start : min(start + _CHUNK, end)])
            got = runner.prefill(slot, chunk, start=start)
            pairs.append((got.copy(), reading.logits[start + len(chunk) - 1]))
    while (lengths <= last).any():
        places = np.minimum(lengths, last)  # a row whose text has ended repeats its last token
        tokens = np.array([reading.token_ids[n] for reading, n in zip(readings, places, strict=True)])
        got = runner.decode(tokens, places).copy()
        pairs += [(got[row], readings[row].logits[n]) for row, n in enumerate(places) if n == lengths[row]]
        lengths = lengths + 1
    return pairs


def measure_logits(
    pairs: Sequence[tuple[Logits, Logits]], bounds: Seq2SeqBounds, report: ParityReport
) -> None:
    """Compare logits, and what they predict."""
    largest = max(float(np.abs(got - want).max()) for got, want in pairs)
    agreement = float(np.mean([got.argmax() == want.argmax() for got, want in pairs]))
    divergence = float(np.mean([_kl(want, got) for got, want in pairs]))
    if bounds.max_abs_diff_logits is not None:
        report.at_most(
            "max_abs_diff_logits", largest, bound=bounds.max_abs_diff_logits, num_samples=len(pairs)
        )
    report.at_least("top1_agreement", agreement, bound=bounds.min_top1_agreement, num_samples=len(pairs))
    report.at_most("kl_divergence_mean", divergence, bound=bounds.max_kl_divergence, num_samples=len(pairs))


def _kl(reference: Logits, got: Logits) -> float:
    """Return the Kullback-Leibler divergence, in nats, of what `got` predicts from what the reference
    does.
    """
    p, q = (_log_softmax(logits) for logits in (reference, got))
    return float((np.exp(p) * (p - q)).sum())


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max()
    scores: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return scores


def measure_text(
    runner: DecoderRunner,
    readings: Sequence[Reading],
    memories: Sequence[SourceMemory],
    bounds: Seq2SeqBounds,
    report: ParityReport,
) -> None:
    """Compare what each writes by itself, token by token, greedily."""
    num_errors, num_tokens = 0, 0
    for reading, memory in zip(readings, memories, strict=True):
        prompt = reading.token_ids[: reading.num_prompt_tokens]
        expected = reading.token_ids[reading.num_prompt_tokens :]
        num_errors += edit_distance(write_text(runner, memory, prompt, len(expected)), expected)
        num_tokens += len(expected)
    rate = num_errors / num_tokens
    report.at_most("token_error_rate", rate, bound=bounds.max_token_error_rate, num_samples=num_tokens)


def write_text(
    runner: DecoderRunner,
    memory: SourceMemory,
    prompt: Sequence[int],
    count: int,
    *,
    end_token_id: int | None = None,
) -> list[int]:
    """Return at most `count` tokens that the graphs write after a prompt, greedily; the end is the last."""
    runner.set_memory(0, memory)
    written = [int(runner.prefill(0, np.array(prompt), start=0).argmax())]
    while len(written) < count and written[-1] != end_token_id:
        length = np.array([len(prompt) + len(written) - 1])
        written.append(int(runner.decode(np.array(written[-1:]), length)[0].argmax()))
    return written


def edit_distance(got: Sequence[object], expected: Sequence[object]) -> int:
    """Return how many tokens or words must be inserted, deleted or replaced (Levenshtein)."""
    row = list(range(len(expected) + 1))
    for number, token in enumerate(got, 1):
        before, row[0] = row[0], number
        for place, wanted in enumerate(expected, 1):
            change = before + (token != wanted)
            before, row[place] = row[place], min(change, row[place] + 1, row[place - 1] + 1)
    return row[-1]
