"""Beam search for one sequence: which continuations live on, which are finished, and when to stop.

Pure: logits in, moves out. Knows no slots and no model; `beam_batch` runs it. The rules, ties but for
rounding included, are those of transformers 4.57 (`GenerationMixin._beam_search`), so that results are the
same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from aimass_serving.errors import InvalidField
from numpy.typing import NDArray

_IMPOSSIBLE = -1e9

LogitsRule = Callable[[Sequence[tuple[int, ...]], NDArray[np.float32]], None]
"""Changes log-probabilities [beams, vocab] in place; is given what each beam has written so far."""


@dataclass(frozen=True, slots=True)
class BeamOptions:
    """How to search."""

    num_beams: int
    max_new_tokens: int
    eos_token_ids: frozenset[int]
    length_penalty: float = 1.0
    """A finished text's score is its log-probability divided by its length to this power."""
    early_stopping: bool = False
    """End as soon as `num_beams` texts are finished; else when no running one looks better than the worst."""
    num_counted_prompt_tokens: int = 0
    """Last tokens of the prompt that count as written where a score is divided by a length: those that
    transformers forces, such as BART's second."""
    rule: LogitsRule | None = None

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name in ("num_beams", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise InvalidField(name, expected="at least 1", got=getattr(self, name))


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished text."""

    token_ids: tuple[int, ...]
    """Without the token that ended it."""
    score: float
    """Log-probability divided by the length penalty: hypotheses are ranked by it."""
    logprob: float
    """Sum over all tokens, the one that ended it included."""
    is_complete: bool
    """Whether it ended by itself rather than by `max_new_tokens`."""
    end_token_id: int | None = None
    """The token that ended it, when it is complete."""


@dataclass(frozen=True, slots=True)
class BeamMove:
    """What each running beam becomes: the beam it goes on from, and its new token."""

    parents: NDArray[np.int64]  # [beams]
    token_ids: NDArray[np.int64]  # [beams]


class BeamSearch:
    """The state of one search. Mutable; owned by whoever runs it."""

    def __init__(self, options: BeamOptions) -> None:
        self.options = options
        self._running: list[tuple[int, ...]] = [()] * options.num_beams
        self._scores = np.full(options.num_beams, _IMPOSSIBLE)
        self._scores[0] = 0.0  # the beams are the same at first: only one may be continued
        self._finished: list[Hypothesis] = []
        self._can_improve = True
        self._is_done = False
        self._has_failed = False

    @property
    def has_failed(self) -> bool:
        """Whether the search ended because its logits were not numbers."""
        return self._has_failed

    @property
    def is_done(self) -> bool:
        """Whether the search has ended."""
        return self._is_done

    @property
    def num_new_tokens(self) -> int:
        """Tokens of each running beam."""
        return len(self._running[0])

    @property
    def _counted_length(self) -> int:
        return self.num_new_tokens + self.options.num_counted_prompt_tokens

    @property
    def hypotheses(self) -> list[Hypothesis]:
        """The finished texts, best first; at most `num_beams`."""
        return list(self._finished)

    @property
    def best_so_far(self) -> Hypothesis:
        """The best finished text, or else the best of those that are being written."""
        if self._finished:
            return self._finished[0]
        logprob = float(self._scores[0])
        penalty = max(1, self._counted_length) ** self.options.length_penalty
        return Hypothesis(self._running[0], logprob / penalty, logprob, is_complete=False)

    def advance(self, logits: NDArray[np.float32]) -> BeamMove | None:
        """Take the logits [beams, vocab] of every running beam; return what they become, None at the end."""
        assert not self._is_done, "the search has ended"
        if not np.isfinite(logits.max(-1)).all():
            self._is_done = self._has_failed = True
            return None
        options = self.options
        log_probs = _log_softmax(logits)
        if options.rule is not None:
            options.rule(self._running, log_probs)
        totals = log_probs + self._scores[:, np.newaxis]  # float64: scores add up over a long text
        beams, token_ids, scores = _best(totals, max(2, 1 + len(options.eos_token_ids)) * options.num_beams)
        is_last = self.num_new_tokens + 1 >= options.max_new_tokens
        has_ended = np.isin(token_ids, list(options.eos_token_ids)) | is_last
        self._finish(beams, token_ids, scores, has_ended)
        move = self._continue(beams, token_ids, np.where(has_ended, scores + _IMPOSSIBLE, scores))
        self._decide_end(all_ended=bool(has_ended.all()))
        return None if self._is_done else move

    def _finish(
        self,
        beams: NDArray[np.int64],
        token_ids: NDArray[np.int64],
        scores: NDArray[np.float64],
        has_ended: NDArray[np.bool_],
    ) -> None:
        """Keep the best of what has just ended, among the best `num_beams` candidates only."""
        options = self.options
        is_full = len(self._finished) >= options.num_beams and options.early_stopping
        if is_full or not self._can_improve:
            return
        penalty = (self._counted_length + 1) ** options.length_penalty
        for place in np.flatnonzero(has_ended[: options.num_beams]):
            beam, token_id = int(beams[place]), int(token_ids[place])
            is_complete = token_id in options.eos_token_ids
            text = self._running[beam] if is_complete else (*self._running[beam], token_id)
            score, logprob = float(scores[place]) / penalty, float(scores[place])
            if logprob > _IMPOSSIBLE / 2:
                end = token_id if is_complete else None
                self._finished.append(Hypothesis(text, score, logprob, is_complete, end))
        self._finished.sort(key=lambda hypothesis: -hypothesis.score)
        del self._finished[options.num_beams :]

    def _continue(
        self, beams: NDArray[np.int64], token_ids: NDArray[np.int64], scores: NDArray[np.float64]
    ) -> BeamMove:
        kept = np.argsort(-scores, kind="stable")[: self.options.num_beams]
        parents, tokens = beams[kept], token_ids[kept]
        self._running = [
            (*self._running[parent], token)
            for parent, token in zip(parents.tolist(), tokens.tolist(), strict=True)
        ]
        self._scores = scores[kept]
        return BeamMove(parents, tokens)

    def _decide_end(self, *, all_ended: bool) -> None:
        options = self.options
        is_full = len(self._finished) >= options.num_beams
        best_running = self._scores[0] / self._counted_length**options.length_penalty
        worst_finished = self._finished[-1].score if is_full else _IMPOSSIBLE
        self._can_improve = self._can_improve and bool(best_running > worst_finished)
        self._is_done = all_ended or not self._can_improve or (is_full and options.early_stopping)


def _best(
    totals: NDArray[np.float64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return beam, token and score of the highest totals [beams, vocab], best first."""
    flat = totals.reshape(-1)
    count = min(count, len(flat))
    places = np.argpartition(-flat, count - 1)[:count]
    places = places[np.argsort(-flat[places], kind="stable")]
    return places // totals.shape[1], places % totals.shape[1], flat[places]


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = logits - logits.max(-1, keepdims=True)
    log_probs: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return log_probs
