"""Chooses tokens from logits: repetition penalty, temperature, top-k, top-p, min-p, then one draw.

Pure functions of their arguments: the random number is one of them. A row's choice depends on that row alone.
Sampled rows are treated one after the other on purpose: at the size of a vocabulary one row fills the inner
cache, and numpy's cost per call is small beside its work. Greedy rows take one argmax over all rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aimass_decoding.request import SamplingParams, SequenceRequest, TokenLogprob

_WINDOWS_NATS = (6.0, 12.0, 24.0)
"""How far below the best logit candidates are looked for, before all of them are sorted."""

_MAX_LOGIT = float(np.finfo(np.float32).max)

Row = NDArray[np.float32]  # [vocab]
Ids = NDArray[np.int64]  # [n]


@dataclass(frozen=True, slots=True)
class Choice:
    """How to choose one token from one row of logits."""

    params: SamplingParams
    seen_ids: Ids | None = None
    """Distinct tokens the repetition penalty is for."""
    blocked_ids: Ids | None = None
    """Tokens that must not be chosen."""
    uniform: float = 0.0
    """The random number, from 0 up to, not including, 1. Not used when greedy."""

    @property
    def is_argmax(self) -> bool:
        """Whether the best of the raw logits is the answer."""
        return self.params.is_greedy and self.seen_ids is None and self.blocked_ids is None


@dataclass(frozen=True, slots=True)
class Chosen:
    """The token of each row, and whether its logits were numbers."""

    token_ids: Ids  # [n]
    is_finite: NDArray[np.bool_]  # [n]
    """False where a row holds NaN or infinity, or nothing that may be chosen: its token means nothing."""


def choose(logits: NDArray[np.float32], rows: Sequence[int], choices: Sequence[Choice]) -> Chosen:
    """Choose a token for each of `rows` of logits [batch, vocab] by the choice at the same place.

    An argmax stops at NaN, and so finds it without another pass.
    """
    best = logits.argmax(axis=1)[rows]  # [n]
    is_finite = np.isfinite(logits[rows, best])
    for place, choice in enumerate(choices):
        if choice.is_argmax or not is_finite[place]:
            continue
        row = adjust(logits[rows[place]], choice)
        best[place] = row.argmax()
        is_finite[place] = np.isfinite(row[best[place]])
        if is_finite[place] and not choice.params.is_greedy:
            best[place] = draw(row, choice.params, choice.uniform)
    return Chosen(best, is_finite)


def adjust(logits: Row, choice: Choice) -> Row:
    """Return logits [vocab] with the repetition penalty applied and blocked tokens at minus infinity.

    The penalty is the one of CTRL (Keskar et al. 2019), as transformers has it. Copies what it changes.
    """
    if choice.seen_ids is None and choice.blocked_ids is None:
        return logits
    row = logits.copy()
    if choice.seen_ids is not None:
        row[choice.seen_ids] = _penalized(row[choice.seen_ids], choice.params.repetition_penalty)
    if choice.blocked_ids is not None:
        row[choice.blocked_ids] = -np.inf
    return row


def _penalized(logits: NDArray[np.float32], penalty: float) -> NDArray[np.float64]:
    """Return logits [n] pushed down by a penalty; kept finite, for a penalty may be next to nothing."""
    wide = logits.astype(np.float64)
    with np.errstate(over="ignore"):
        pushed = np.where(wide > 0, wide / penalty, wide * penalty)
    return np.clip(pushed, -_MAX_LOGIT, _MAX_LOGIT)


def draw(logits: Row, params: SamplingParams, uniform: float) -> int:
    """Draw one token from logits [vocab] with temperature above 0 and filters applied."""
    if params.top_k == 0 and params.top_p == 1:
        return _draw_in_vocabulary_order(logits, params, uniform)
    ids, weights = nucleus(logits, params)
    return int(ids[_inverse_cdf(weights, uniform)])


def nucleus(logits: Row, params: SamplingParams) -> tuple[Ids, NDArray[np.float32]]:
    """Return the tokens that pass top-k, top-p and min-p, best first, and their weights; the best weighs 1.

    Equal logits rank by token id, so that the answer does not depend on how many candidates were looked at.
    """
    ids, weights, total = _candidates(logits, params)
    if 0 < params.top_k < len(ids):
        ids, weights = ids[: params.top_k], weights[: params.top_k]
    if params.top_k > 0:
        total = _sum(weights)
    num_kept = len(ids)
    if params.top_p < 1:
        num_kept = int(np.searchsorted(np.cumsum(weights, dtype=np.float64), params.top_p * total)) + 1
    if params.min_p > 0:
        num_kept = min(num_kept, int(np.count_nonzero(weights >= params.min_p)))
    return ids[:num_kept], weights[:num_kept]


def _candidates(logits: Row, params: SamplingParams) -> tuple[Ids, NDArray[np.float32], float]:
    """Return enough of the best tokens for top-k and top-p, best first, their weights, and the weight of all.

    The weight of all tokens is only computed where top-p needs it: without top-k.
    """
    best = logits.max()
    total = _sum(_weights(logits, best, params.temperature)) if params.top_k == 0 else 0.0
    for window in _WINDOWS_NATS:
        ids = np.flatnonzero(logits > best - window * params.temperature)
        if params.top_k > 0:
            is_enough = len(ids) >= params.top_k
        else:
            weights = _weights(logits[ids], best, params.temperature)
            is_enough = _sum(weights) >= params.top_p * total
        if is_enough:
            break
    else:
        ids = np.flatnonzero(logits > -np.inf)
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    return ids, _weights(logits[ids], best, params.temperature), total


def _weights(logits: Row, best: np.float32, temperature: float) -> NDArray[np.float32]:
    """Return exp of the logits' distance to the best at a temperature: 1 for the best, 0 for the far."""
    with np.errstate(over="ignore", under="ignore"):
        distances = logits - best
        np.divide(distances, temperature, out=distances, dtype=np.float64, casting="same_kind")
        np.exp(distances, out=distances)
    return distances


def _draw_in_vocabulary_order(logits: Row, params: SamplingParams, uniform: float) -> int:
    weights = _weights(logits, logits.max(), params.temperature)
    if params.min_p > 0:
        weights[weights < params.min_p] = 0
    return _inverse_cdf(weights, uniform)


def _sum(weights: NDArray[np.float32]) -> float:
    return float(weights.sum(dtype=np.float64))


def _inverse_cdf(weights: NDArray[np.float32], uniform: float) -> int:
    """Return the place that a uniform number falls on; never one of weight 0."""
    cdf = np.cumsum(weights, dtype=np.float64)
    place = int(np.searchsorted(cdf, uniform * cdf[-1], side="right"))
    return min(place, int(np.searchsorted(cdf, cdf[-1])))


def logprob_of(logits: Row, token_id: int, *, num_candidates: int) -> TokenLogprob:
    """Return a token's log-probability by raw logits [vocab], and those of the best tokens at its place."""
    best = logits.max()
    log_total = float(best) + float(np.log(np.exp(logits - best).sum(dtype=np.float64)))
    ids = best_ids(logits, num_candidates)
    candidates = tuple((int(i), float(logits[i]) - log_total) for i in ids)
    return TokenLogprob(token_id, float(logits[token_id]) - log_total, candidates)


def best_ids(logits: Row, count: int) -> Ids:
    """Return the ids of the `count` highest logits, best first, equal ones by id."""
    if count == 0:
        return np.empty(0, np.int64)
    least = np.partition(logits, -count)[-count] if count < len(logits) else logits.min()
    ids = np.flatnonzero(logits >= least)
    return ids[np.argsort(-logits[ids], kind="stable")][:count]


class SamplingState:
    """What a sequence's choices depend on beside its logits: tokens seen, and its own random numbers.

    Number i depends on the seed and on i alone (Philox is stable across numpy versions). Owned by the engine
    thread.
    """

    def __init__(self, request: SequenceRequest) -> None:
        self._params = request.sampling
        self._min_new_tokens = request.min_new_tokens
        self._ending_ids = _sorted_ids(request.eos_token_ids | request.stop_token_ids)
        self._seen = SeenTokens(request.prompt_ids) if self._params.repetition_penalty != 1 else None
        self._generator = None if self._params.is_greedy else _generator(self._params.seed)
        self._plain = Choice(self._params)

    def choice(self, num_output: int) -> Choice:
        """Return how to choose the token after `num_output` others. Consumes one random number."""
        is_blocked = num_output < self._min_new_tokens and len(self._ending_ids) > 0
        if self._generator is None and self._seen is None and not is_blocked:
            return self._plain
        return Choice(
            self._params,
            seen_ids=self._seen.ids if self._seen else None,
            blocked_ids=self._ending_ids if is_blocked else None,
            uniform=self._generator.random() if self._generator else 0.0,
        )

    def accept(self, token_id: int) -> None:
        """Remember a token that was chosen."""
        if self._seen is not None:
            self._seen.add(token_id)


class SeenTokens:
    """A growing set of token ids that can be read as an array."""

    def __init__(self, token_ids: Ids) -> None:
        distinct = np.unique(token_ids)
        self._members = set(distinct.tolist())
        self._buffer = np.empty(2 * len(distinct) + 64, np.int64)
        self._buffer[: len(distinct)] = distinct

    @property
    def ids(self) -> Ids:
        """The distinct ids [n]: a view that holds until the next `add`."""
        return self._buffer[: len(self._members)]

    def add(self, token_id: int) -> None:
        """Add an id unless it is there."""
        if token_id in self._members:
            return
        if len(self._members) == len(self._buffer):
            self._buffer = np.concatenate([self._buffer, np.empty_like(self._buffer)])
        self._buffer[len(self._members)] = token_id
        self._members.add(token_id)


def _sorted_ids(token_ids: Iterable[int]) -> Ids:
    return np.array(sorted(token_ids), np.int64)


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))
