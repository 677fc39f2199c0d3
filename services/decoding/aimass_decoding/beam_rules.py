"""What a request forbids the beams of its search, as transformers forbids it, in the same order.

Pure. Works on log-probabilities, as transformers does there. Source: the logits processors of transformers
4.57 (`RepetitionPenalty`, `NoRepeatNGram`, `MinNewTokensLength`, `ForcedEOSToken`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from aimass_decoding.beam_search import LogitsRule
from aimass_decoding.request import SequenceRequest

Scores = NDArray[np.float32]  # [vocab]
Ids = NDArray[np.int64]  # [n]


def rule_of(request: SequenceRequest, *, max_new_tokens: int) -> LogitsRule:
    """Return the rule of a request's search, whose texts have at most `max_new_tokens`."""
    assert request.beams is not None, "only asked for a search"
    ngram_size, forced = request.beams.no_repeat_ngram_size, request.beams.forced_eos_id
    penalty = request.sampling.repetition_penalty
    ending = np.array(sorted(request.eos_token_ids | request.stop_token_ids), np.int64)

    def apply(texts: Sequence[tuple[int, ...]], log_probs: NDArray[np.float32]) -> None:
        num_new = len(texts[0])
        for text, scores in zip(texts, log_probs, strict=True):
            written = np.concatenate([request.prompt_ids, np.array(text, np.int64)])
            if penalty != 1:
                _penalize(scores, written, penalty)
            if ngram_size:
                scores[repeating(written, ngram_size)] = -np.inf
            if num_new < request.min_new_tokens and len(ending):
                scores[ending] = -np.inf
            if forced is not None and num_new == max_new_tokens - 1:
                scores[:] = -np.inf
                scores[forced] = 0

    return apply


def repeating(written: Ids, size: int) -> Ids:
    """Return the tokens that would end a run of `size` tokens which is in `written` [n] already."""
    if len(written) < size:
        return np.zeros(0, np.int64)
    runs = np.lib.stride_tricks.sliding_window_view(written, size)  # [n - size + 1, size]
    begun = written[len(written) - size + 1 :]
    found: Ids = runs[(runs[:, : size - 1] == begun).all(axis=1), -1]
    return found


def _penalize(scores: Scores, written: Ids, penalty: float) -> None:
    seen = np.unique(written)
    before = scores[seen]
    scores[seen] = np.where(before < 0, before * penalty, before / penalty)
