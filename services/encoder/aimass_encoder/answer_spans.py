"""Logits of starts and ends to answers. Pure; knows no model and no request.

The arithmetic is that of transformers' question-answering pipeline (BERT's SQuAD evaluation, Devlin et al.
2018): in each window starts and ends are probabilities over the context and the first token, which stands
for "no answer"; an answer's score is their product.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aimass_encoder.characters import whole_characters
from aimass_encoder.labels import softmax
from aimass_encoder.tokenization import TokenSpans
from aimass_encoder.windows import Window

CONTEXT = 1
"""Which text of the pair the context is."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A piece of a context."""

    text: str
    """Empty for "no answer"."""
    score: float
    start: int
    """First character, in Unicode code points of the context."""
    end: int
    """Character after the last one."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A run of tokens that may be the answer."""

    score: float
    first: int
    """Place of the first token in the whole input."""
    last: int
    """Place of the last token."""


@dataclass(frozen=True, slots=True)
class WindowAnswers:
    """What one window says."""

    candidates: Sequence[Candidate]
    """Best first."""
    no_answer_score: float


def window_answers(
    window: Window, logits: NDArray[np.float32], *, count: int, max_answer_tokens: int
) -> WindowAnswers:
    """Return the best `count` runs of at most `max_answer_tokens`; `logits` is [tokens, 2], start and end."""
    spans = window.text.spans
    assert spans is not None, "the call asked for spans"
    is_context = spans.parts == CONTEXT
    has_null = spans.parts[0] < 0
    allowed = is_context.copy()
    allowed[0] |= has_null
    starts, ends = (_probabilities(logits[:, side], allowed) for side in (0, 1))
    no_answer = float(starts[0] * ends[0]) if has_null else 0.0
    context = np.flatnonzero(is_context)
    found = _best_runs(starts[context], ends[context], count=count, longest=max_answer_tokens)
    places = window.places[context]
    return WindowAnswers([Candidate(s, int(places[f]), int(places[e])) for s, f, e in found], no_answer)


def merged_answers(candidates: Iterable[Candidate], spans: TokenSpans, context: str) -> list[Answer]:
    """Return candidates as pieces of the context, best first: whole words; those that read alike are one."""
    by_text: dict[str, Answer] = {}
    for candidate in candidates:
        start, end = _characters(candidate, spans, context)
        key = context[start:end].lower()
        known = by_text.get(key)
        by_text[key] = (
            Answer(context[start:end], candidate.score, start, end)
            if known is None
            else Answer(known.text, known.score + candidate.score, known.start, known.end)
        )
    return sorted((a for a in by_text.values() if a.text), key=lambda answer: -answer.score)


def _probabilities(logits: NDArray[np.float32], allowed: NDArray[np.bool_]) -> NDArray[np.float64]:
    return softmax(np.where(allowed, logits, np.float32(-10_000)))


def _best_runs(
    starts: NDArray[np.float64], ends: NDArray[np.float64], *, count: int, longest: int
) -> list[tuple[float, int, int]]:
    """Return the best runs as score, first and last place in the context, best first."""
    num = len(starts)
    reach = min(longest, num)
    if not reach:
        return []
    padded = np.concatenate([ends, np.full(reach - 1, -1.0)])
    # Row s holds the ends s .. s + reach - 1; what lies behind the context scores below zero.
    scores = starts[:, None] * np.lib.stride_tricks.sliding_window_view(padded, reach)
    flat = scores.ravel()
    some = np.argpartition(-flat, min(count, len(flat)) - 1)[:count]
    order = some[np.argsort(-flat[some], kind="stable")]
    return [
        (float(flat[i]), int(i // reach), int(i // reach + i % reach))
        for i in order.tolist()
        if i // reach + i % reach < num
    ]


def _characters(candidate: Candidate, spans: TokenSpans, context: str) -> tuple[int, int]:
    """Return where the words of a run stand in the context."""
    first, last = candidate.first, candidate.last
    while _is_same_word(spans, first - 1, first):
        first -= 1
    while last + 1 < len(spans.words) and _is_same_word(spans, last, last + 1):
        last += 1
    return whole_characters(context, int(spans.offsets[first, 0]), int(spans.offsets[last, 1]))


def _is_same_word(spans: TokenSpans, before: int, after: int) -> bool:
    same_part = spans.parts[before] == spans.parts[after] == CONTEXT
    return bool(same_part and spans.words[before] == spans.words[after] >= 0)
