"""Chooses tokens from logits: penalties, bias, masks, temperature, top-k, top-p, min-p, typical-p, one draw.

Pure functions of their arguments: the random number is one of them. A row's choice depends on that row alone.
Sampled rows are treated one after the other on purpose: at the size of a vocabulary one row fills the inner
cache, and numpy's cost per call is small beside its work. Greedy rows take one argmax over all rows.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aimass_decoding.request import SamplingParams, SequenceRequest, TokenLogprob

_WINDOWS_NATS = (6.0, 12.0, 24.0)
"""How far below the best logit the highest ones are looked for, before all are ranked."""
_LIKELY_BOUND = 1e-3
"""Weights above this mostly hold what top-p asks for; where they do not, a safe bound is used."""
_BLOCK = 512
_MAX_LOGIT = float(np.finfo(np.float32).max)

Row = NDArray[np.float32]  # [vocab]
Weights = NDArray[np.float32]  # [n]
Ids = NDArray[np.int64]  # [n]


@dataclass(frozen=True, slots=True)
class Shift:
    """Amounts to add to the logits of some tokens, all different."""

    ids: Ids
    amounts: NDArray[np.float32]  # [n]


@dataclass(frozen=True, slots=True)
class Choice:
    """How to choose one token from one row of logits."""

    params: SamplingParams
    seen_ids: Ids | None = None
    """Distinct tokens the repetition penalty is for."""
    shifts: tuple[Shift, ...] = ()
    """Penalties by count, and biases."""
    allowed_ids: Ids | None = None
    """The only tokens that may be chosen."""
    mask: NDArray[np.uint32] | None = None
    """One bit a token that may be chosen, as `TokenMask.allowed` gives it."""
    blocked_ids: Ids | None = None
    """Tokens that must not be chosen."""
    uniform: float = 0.0
    """The random number, from 0 up to, not including, 1. Not used when greedy."""

    @property
    def is_argmax(self) -> bool:
        """Whether the best of the raw logits is the answer."""
        return self.params.is_greedy and self.changes_nothing

    @property
    def is_restricted(self) -> bool:
        """Whether only some tokens may be chosen."""
        return self.allowed_ids is not None or self.mask is not None

    @property
    def changes_nothing(self) -> bool:
        """Whether logits go as they are."""
        is_free = not self.is_restricted and self.blocked_ids is None
        return is_free and self.seen_ids is None and not self.shifts


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
    """Return logits [vocab] with penalties and biases applied, and what may not be chosen at minus infinity.

    The repetition penalty is the one of CTRL (Keskar et al. 2019), as transformers has it. Copies what it
    changes. Tokens that end the text too early are not blocked where nothing else may be chosen.
    """
    if choice.changes_nothing:
        return logits
    row = logits.copy()
    if choice.seen_ids is not None:
        row[choice.seen_ids] = _penalized(row[choice.seen_ids], choice.params.repetition_penalty)
    for shift in choice.shifts:
        row[shift.ids] += shift.amounts
    row = _masked(row, choice)
    if choice.blocked_ids is not None:
        kept = row[choice.blocked_ids]
        row[choice.blocked_ids] = -np.inf
        if choice.is_restricted and row.max() == -np.inf:
            row[choice.blocked_ids] = kept
    return row


def _masked(row: Row, choice: Choice) -> Row:
    """Return logits [vocab] with those at minus infinity that are not allowed."""
    if choice.allowed_ids is not None:
        only = np.full_like(row, -np.inf)
        only[choice.allowed_ids] = row[choice.allowed_ids]
        row = only
    if choice.mask is not None:
        bits = np.unpackbits(choice.mask.view(np.uint8), count=len(row), bitorder="little")
        row[bits == 0] = -np.inf
    return row


def _penalized(logits: NDArray[np.float32], penalty: float) -> NDArray[np.float64]:
    """Return logits [n] pushed down by a penalty; kept finite, for a penalty may be next to nothing."""
    wide = logits.astype(np.float64)
    with np.errstate(over="ignore"):
        pushed = np.where(wide > 0, wide / penalty, wide * penalty)
    return np.clip(pushed, -_MAX_LOGIT, _MAX_LOGIT)


def draw(logits: Row, params: SamplingParams, uniform: float) -> int:
    """Draw one token from logits [vocab] with temperature above 0 and filters applied.

    Tokens lie on the unit interval in the order of their ids, each as long as its probability.
    """
    ids, weights = nucleus(logits, params)
    place = _inverse_cdf(weights, uniform)
    return place if ids is None else int(ids[place])


def nucleus(logits: Row, params: SamplingParams) -> tuple[Ids | None, Weights]:
    """Return the tokens that pass all filters, by id, and their weights, in proportion to their probability.

    None stands for all tokens; some may weigh 0. Of equal logits the lower token ids are kept.
    """
    ids, weights = _probable(logits, params)
    if params.typical_p == 1:
        return ids, weights
    kept = _typical(weights, params.typical_p)
    return kept if ids is None else ids[kept], weights[kept]


def _typical(weights: Weights, mass: float) -> Ids:
    """Return the places of the weights [n] whose surprise is nearest to the mean, holding at least `mass`."""
    places = np.flatnonzero(weights)
    shares = weights[places] / weights.sum(dtype=np.float64)
    surprise = -np.log(shares)
    distance = np.abs(surprise - (shares * surprise).sum())
    order = np.argsort(distance, kind="stable")
    last = int(np.searchsorted(np.cumsum(shares[order]), mass))
    limit = distance[order[min(last, len(order) - 1)]]
    kept: Ids = places[distance <= limit]
    return kept


def _probable(logits: Row, params: SamplingParams) -> tuple[Ids | None, Weights]:
    """Return the tokens that pass top-k, top-p and min-p, by id, and their weights; the best weighs 1."""
    best = logits.max()
    if params.top_k > 0:
        ids = top_ids(logits, params.top_k)
        weights = _weights(logits[ids], best, params.temperature)
        total = float(weights.sum())
    else:
        weights = _weights(logits, best, params.temperature)
        if params.top_p == 1:
            weights[weights < params.min_p] = 0
            return None, weights
        total = float(weights.sum())
        ids = _ids_that_hold(params.top_p * total, weights, total)
        weights = weights[ids]
    if params.top_p < 1:
        kept = _smallest_set(weights, params.top_p * total)
        ids, weights = ids[kept], weights[kept]
    if params.min_p > 0:
        kept = np.flatnonzero(weights >= params.min_p)
        ids, weights = ids[kept], weights[kept]
    return ids, weights


def top_ids(logits: Row, count: int) -> Ids:
    """Return the ids of the `count` highest logits [vocab], in the order of the ids.

    Looks near the best first: a pass that compares is far cheaper than one that ranks a whole vocabulary.
    """
    best = logits.max()
    for window in _WINDOWS_NATS:
        ids = np.flatnonzero(logits > best - window)
        if len(ids) >= count:
            break
    else:
        ids = np.arange(len(logits))
    return ids[_highest(logits[ids], count)]


def _ids_that_hold(mass: float, weights: Weights, total: float) -> Ids:
    """Return the ids of all weights [vocab] above some bound that together hold at least `mass`."""
    ids = np.flatnonzero(weights > _LIKELY_BOUND)
    if float(weights[ids].sum()) > mass:
        return ids
    # All weights below this bound cannot add up to what may be missing.
    return np.flatnonzero(weights >= 0.5 * (total - mass) / len(weights))


def _smallest_set(weights: Weights, mass: float) -> Ids:
    """Return the places of the fewest weights [n] that add up to at least `mass`, in order; else all."""
    descending = np.sort(weights)[::-1]
    count = int(np.searchsorted(np.cumsum(descending, dtype=np.float64), mass)) + 1
    return _highest(weights, count)


def _highest(values: NDArray[np.float32], count: int) -> Ids:
    """Return the places of the `count` highest values [n], in order; of equal values the first."""
    if count >= len(values):
        return np.arange(len(values))
    least = np.partition(values, len(values) - count)[len(values) - count]
    places = np.flatnonzero(values >= least)
    num_surplus = len(places) - count
    if num_surplus == 0:
        return places
    equal = np.flatnonzero(values[places] == least)
    return np.delete(places, equal[len(equal) - num_surplus :])


def _weights(logits: Row, best: np.float32, temperature: float) -> Weights:
    """Return exp of the logits' distance to the best at a temperature: 1 for the best, 0 for the far."""
    with np.errstate(over="ignore", under="ignore"):
        distances = logits - best
        distances *= np.float32(min(1 / temperature, _MAX_LOGIT))
        np.exp(distances, out=distances)
    return distances


def _inverse_cdf(weights: Weights, uniform: float) -> int:
    """Return the place that a uniform number falls on; never one of weight 0.

    Many weights are added up in blocks first, which is several times faster than one running sum.
    """
    if len(weights) <= _BLOCK:
        cdf = np.cumsum(weights, dtype=np.float64)
        place = int(np.searchsorted(cdf, uniform * cdf[-1], side="right"))
        return min(place, int(np.searchsorted(cdf, cdf[-1])))
    sums = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK))
    cdf = np.cumsum(sums, dtype=np.float64)
    block = _inverse_cdf(sums, uniform)
    within = (uniform * cdf[-1] - (cdf[block] - sums[block])) / sums[block]
    start = block * _BLOCK
    return start + _inverse_cdf(weights[start : start + _BLOCK], min(max(within, 0.0), 1.0))


def logprob_of(logits: Row, token_id: int, *, num_candidates: int) -> TokenLogprob:
    """Return a token's log-probability by raw logits [vocab], and those of the best tokens at its place."""
    best = logits.max()
    log_total = float(best) + math.log(float(_weights(logits, best, 1.0).sum()))
    ids = best_ids(logits, num_candidates)
    candidates = tuple((int(i), float(logits[i]) - log_total) for i in ids)
    return TokenLogprob(token_id, float(logits[token_id]) - log_total, candidates)


def best_ids(logits: Row, count: int) -> Ids:
    """Return the ids of the `count` highest logits, best first, equal ones by id."""
    if count == 0:
        return np.empty(0, np.int64)
    ids = top_ids(logits, count)
    return ids[np.argsort(-logits[ids], kind="stable")]


class SamplingState:
    """What a sequence's choices depend on beside its logits: tokens seen, and its own random numbers.

    Number i depends on the seed, the sequence's `index` in its request and on i alone (Philox is stable
    across numpy versions). Owned by the engine thread.
    """

    def __init__(self, request: SequenceRequest, *, index: int = 0) -> None:
        self._params = request.sampling
        self._min_new_tokens = request.min_new_tokens
        self._ending_ids = _sorted_ids(request.eos_token_ids | request.stop_token_ids)
        self._seen = SeenTokens(request.prompt_ids) if self._params.repetition_penalty != 1 else None
        is_counted = self._params.frequency_penalty != 0 or self._params.presence_penalty != 0
        self._counts = TokenCounts(self._params) if is_counted else None
        self._generator = None if self._params.is_greedy else _generator(self._params.seed + index)
        self._bias = _bias(self._params)
        self._allowed_ids = self._allowed()
        self._plain = Choice(
            self._params,
            shifts=(self._bias,) if self._bias else (),
            allowed_ids=self._allowed_ids,
        )

    def choice(self, num_output: int, *, mask: NDArray[np.uint32] | None = None) -> Choice:
        """Return how to choose the token after `num_output` others. Consumes one random number."""
        is_blocked = num_output < self._min_new_tokens and len(self._ending_ids) > 0
        is_plain = self._seen is None and self._counts is None and mask is None and not is_blocked
        if is_plain and self._generator is None:
            return self._plain
        return Choice(
            self._params,
            seen_ids=self._seen.ids if self._seen else None,
            shifts=self._plain.shifts + ((self._counts.penalties,) if self._counts else ()),
            allowed_ids=self._allowed_ids,
            mask=mask,
            blocked_ids=self._ending_ids if is_blocked else None,
            uniform=self._generator.random() if self._generator else 0.0,
        )

    def copy(self) -> SamplingState:
        """Return a state that chooses what this one would, and leaves it as it is."""
        other = copy.copy(self)
        other._seen, other._counts = copy.deepcopy(self._seen), copy.deepcopy(self._counts)
        other._generator = copy.deepcopy(self._generator)
        return other

    def accept(self, token_id: int) -> None:
        """Remember a token that was chosen."""
        if self._seen is not None:
            self._seen.add(token_id)
        if self._counts is not None:
            self._counts.add(token_id)

    def _allowed(self) -> Ids | None:
        """Return the tokens that may be chosen, those that end the text included; None for all."""
        allowed = self._params.allowed_token_ids
        return _sorted_ids({*allowed, *self._ending_ids.tolist()}) if allowed else None


class TokenCounts:
    """How often each token was generated, as penalties on their logits."""

    def __init__(self, params: SamplingParams) -> None:
        self._each, self._once = params.frequency_penalty, params.presence_penalty
        self._places: dict[int, int] = {}
        self._ids = np.empty(64, np.int64)
        self._amounts = np.empty(64, np.float32)

    @property
    def penalties(self) -> Shift:
        """What to add to the logits: views that hold until the next `add`."""
        count = len(self._places)
        return Shift(self._ids[:count], self._amounts[:count])

    def add(self, token_id: int) -> None:
        """Count a token that was generated."""
        place = self._places.get(token_id)
        if place is not None:
            self._amounts[place] -= self._each
            return
        place = self._places[token_id] = len(self._places)
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._amounts = np.concatenate([self._amounts, np.empty_like(self._amounts)])
        self._ids[place], self._amounts[place] = token_id, -self._each - self._once


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


def _bias(params: SamplingParams) -> Shift | None:
    if not params.logit_bias:
        return None
    ids, amounts = zip(*params.logit_bias.items(), strict=True)
    return Shift(np.array(ids, np.int64), np.array(amounts, np.float32))


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed % 2**64))
