"""When each word was said: the path that the decoder's cross-attention takes through the audio.

Pure; attention scores in, times out. Source: `whisper/timing.py` of OpenAI, whose rules these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from aimass_speech.transcript_tokenizer import WordTokens

_MEDIAN_WIDTH = 7
_PREPENDED = "\"'“¿([{-"
_APPENDED = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001 - marks as models write them
_SENTENCE_END = ".。!！?？"  # noqa: RUF001 - marks as models write them
_MAX_MEDIAN_FRAMES = 35
"""0.7 s: a longer median word says that the alignment failed."""


@dataclass(frozen=True, slots=True)
class AlignedWord:
    """A word and its place, in frames of the encoder's output from the start of the window."""

    text: str
    start: int
    end: int
    token_ids: tuple[int, ...]
    confidence: float
    """Mean probability of its tokens."""


def token_starts(scores: NDArray[np.float32], *, first: int) -> NDArray[np.int64]:
    """Return the frame at which each token begins, and the frame at which the last one ends.

    `scores` is [heads, tokens, frames] before the softmax, of the start tokens, a marker at `first`, the text
    and the token that ends it. A row tells where the decoder looked to choose the token after it.
    """
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mean, deviation = weights.mean(axis=-2, keepdims=True), weights.std(axis=-2, keepdims=True)
    normal = (weights - mean) / np.maximum(deviation, 1e-10)
    matrix = _median_filtered(normal).mean(axis=0)[first:-1]
    rows, frames = shortest_path(-matrix)
    return frames[np.searchsorted(rows, np.arange(len(matrix)))]


def aligned_words(
    words: Sequence[WordTokens],
    starts: NDArray[np.int64],
    probabilities: Sequence[float],
) -> list[AlignedWord]:
    """Return the words with their places. `starts` has one more entry than there are tokens: the end."""
    aligned, place = [], 0
    for word in words:
        end = place + len(word.token_ids)
        confidence = float(np.mean(probabilities[place:end])) if end > place else 0.0
        aligned.append(
            AlignedWord(word.text, int(starts[place]), int(starts[end]), word.token_ids, confidence)
        )
        place = end
    return _with_punctuation(_without_long_words(aligned))


def shortest_path(cost: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the cheapest monotonic path through a cost matrix [rows, columns] by dynamic time warping.

    One entry for each step: its row, its column; rows and columns advance by 0 or 1. Diagonals are computed
    at once: each depends on the two before it only.
    """
    num_rows, num_columns = cost.shape
    total = np.full((num_rows + 1, num_columns + 1), np.inf)
    move = np.zeros((num_rows + 1, num_columns + 1), np.int8)
    total[0, 0] = 0
    for diagonal in range(2, num_rows + num_columns + 1):
        rows = np.arange(max(1, diagonal - num_columns), min(num_rows, diagonal - 1) + 1)
        columns = diagonal - rows
        options = np.stack([total[rows - 1, columns - 1], total[rows - 1, columns], total[rows, columns - 1]])
        best = options.argmin(axis=0)
        total[rows, columns] = cost[rows - 1, columns - 1] + options[best, np.arange(len(rows))]
        move[rows, columns] = best
    return _walk_back(move)


def _walk_back(move: NDArray[np.int8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    row, column = move.shape[0] - 1, move.shape[1] - 1
    path = []
    while row > 0 and column > 0:
        path.append((row - 1, column - 1))
        step = move[row, column]
        row, column = row - (step != 2), column - (step != 1)
    rows, columns = np.array(path[::-1], np.int64).T
    return rows, columns


def _median_filtered(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the running median over the last axis, its ends reflected."""
    half = _MEDIAN_WIDTH // 2
    if values.shape[-1] <= half:
        return values
    widened = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(half, half)], mode="reflect")
    filtered: NDArray[np.float32] = np.partition(
        sliding_window_view(widened, _MEDIAN_WIDTH, axis=-1), half, axis=-1
    )[..., half]
    return filtered


def _without_long_words(words: list[AlignedWord]) -> list[AlignedWord]:
    """Cut words beside the end of a sentence that are longer than two median ones: a pause is in them."""
    lengths = [word.end - word.start for word in words if word.end > word.start]
    longest = 2 * min(_MAX_MEDIAN_FRAMES, int(np.median(lengths))) if lengths else 0
    cut: list[AlignedWord] = []
    for index, word in enumerate(words):
        start, end = word.start, word.end
        if longest and index and end - start > longest:
            if word.text.strip() and word.text.strip() in _SENTENCE_END:
                end = start + longest
            elif words[index - 1].text.strip() and words[index - 1].text.strip() in _SENTENCE_END:
                start = end - longest
        cut.append(AlignedWord(word.text, start, end, word.token_ids, word.confidence))
    return cut


def _with_punctuation(words: list[AlignedWord]) -> list[AlignedWord]:
    """Join marks of punctuation to the word they belong to; its time stays the word's."""
    joined: list[AlignedWord] = []
    for word in words:
        last = joined[-1] if joined else None
        mark = word.text.strip()
        if last is not None and mark and mark in _APPENDED and not last.text.endswith(" "):
            joined[-1] = _joined(last, word, owner=last)
        elif last is not None and last.text.startswith(" ") and last.text.strip() in list(_PREPENDED):
            joined[-1] = _joined(last, word, owner=word)
        else:
            joined.append(word)
    return joined


def _joined(first: AlignedWord, second: AlignedWord, *, owner: AlignedWord) -> AlignedWord:
    return AlignedWord(
        first.text + second.text,
        owner.start,
        owner.end,
        first.token_ids + second.token_ids,
        owner.confidence,
    )
