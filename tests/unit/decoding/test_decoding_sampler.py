"""Choosing tokens, held against plain scalar definitions of each filter."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from aimass_decoding.request import SamplingParams, SequenceRequest
from aimass_decoding.sampler import (
    Choice,
    SamplingState,
    SeenTokens,
    adjust,
    best_ids,
    choose,
    draw,
    logprob_of,
    nucleus,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

VOCAB = 40
GREEDY = Choice(SamplingParams())

rows_of_logits = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).normal(0, 4, VOCAB).astype(np.float32)
)
params = st.builds(
    SamplingParams,
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, VOCAB + 5),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 0.9),
)


def kept_by_definition(logits: NDArray[np.float32], how: SamplingParams) -> set[int]:
    """The filters as one would explain them, one token after the other."""
    probability = {
        i: math.exp((float(x) - float(max(logits))) / how.temperature) for i, x in enumerate(logits)
    }
    ranked = sorted(probability, key=lambda i: (-probability[i], i))
    if how.top_k:
        ranked = ranked[: how.top_k]
    total = sum(probability[i] for i in ranked)
    kept, mass = set[int](), 0.0
    for token in ranked:
        if how.top_p < 1 and mass >= how.top_p * total:  # 1 keeps all, also what rounding adds nothing for
            break
        kept.add(token)
        mass += probability[token]
    return {i for i in kept if probability[i] >= how.min_p * probability[ranked[0]]}


def weights_of_all(logits: NDArray[np.float32], how: SamplingParams) -> NDArray[np.float64]:
    """Probabilities before any filter, as shares of the best one; below about 1e-38 a float32 has none."""
    return np.exp((logits.astype(np.float64) - float(logits.max())) / how.temperature)


def is_on_an_edge(logits: NDArray[np.float32], how: SamplingParams) -> bool:
    """Whether rounding may decide about a token: a slightly different p keeps other tokens."""

    def kept(change: float) -> set[int]:
        nudged = SamplingParams(
            temperature=how.temperature,
            top_k=how.top_k,
            top_p=min(1.0, how.top_p * (1 + change)),
            min_p=min(0.999, how.min_p * (1 + change)),
        )
        return kept_by_definition(logits, nudged)

    return kept(1e-5) != kept(-1e-5)


def kept_tokens(logits: NDArray[np.float32], how: SamplingParams) -> tuple[list[int], NDArray[np.float32]]:
    ids, weights = nucleus(logits, how)
    ids = np.arange(len(logits)) if ids is None else ids
    return ids[weights > 0].tolist(), weights


@given(rows_of_logits, params)
@example(  # the sum of the best tokens rounds to the whole, and yet a p of 1 drops none
    np.random.default_rng(1).normal(0, 4, VOCAB).astype(np.float32), SamplingParams(temperature=0.0625)
)
@settings(deadline=None, max_examples=200)
def test_the_nucleus_holds_the_tokens_its_definition_keeps(
    logits: NDArray[np.float32], how: SamplingParams
) -> None:
    kept, weights = kept_tokens(logits, how)
    differing = set(kept) ^ kept_by_definition(logits, how)
    can_matter = {i for i in differing if weights_of_all(logits, how)[i] > 1e-30}
    assert not can_matter or is_on_an_edge(logits, how)
    assert kept == sorted(kept)
    assert weights.max() == 1


@given(rows_of_logits, params, st.floats(0, 1, exclude_max=True))
@settings(deadline=None, max_examples=200)
def test_a_drawn_token_always_passed_the_filters(
    logits: NDArray[np.float32], how: SamplingParams, uniform: float
) -> None:
    token = draw(logits, how, uniform)
    assert token in kept_by_definition(logits, how) or is_on_an_edge(logits, how)


@pytest.mark.parametrize(
    "how",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.7, top_k=5),
        SamplingParams(temperature=1.3, top_p=0.8),
        SamplingParams(temperature=1.0, min_p=0.1),
    ],
)
def test_draws_follow_the_filtered_distribution(how: SamplingParams) -> None:
    logits = np.random.default_rng(1).normal(0, 2, 12).astype(np.float32)
    num_draws = 4000
    drawn = Counter(draw(logits, how, (i + 0.5) / num_draws) for i in range(num_draws))
    kept = kept_by_definition(logits, how)
    weights = {i: math.exp(float(logits[i]) / how.temperature) for i in kept}
    for token in range(len(logits)):
        expected = weights.get(token, 0) / sum(weights.values())
        assert drawn[token] / num_draws == pytest.approx(expected, abs=1.5 / num_draws)


def test_of_equal_logits_the_lower_ids_are_kept() -> None:
    logits = np.zeros(VOCAB, np.float32)
    assert kept_tokens(logits, SamplingParams(temperature=1, top_k=3))[0] == [0, 1, 2]
    assert kept_tokens(logits, SamplingParams(temperature=1, top_p=0.1))[0] == [0, 1, 2, 3]


def test_a_nearly_flat_distribution_keeps_as_many_tokens_as_top_p_needs() -> None:
    logits = np.zeros(1000, np.float32)
    assert len(kept_tokens(logits, SamplingParams(temperature=1, top_p=0.5))[0]) == 500


def test_a_large_vocabulary_is_drawn_from_like_a_small_one() -> None:
    logits = np.random.default_rng(2).normal(0, 1, 300_000).astype(np.float32)
    logits[200_000:] = -np.inf
    weights = np.exp(logits.astype(np.float64))
    cdf = np.cumsum(weights) / weights.sum()
    for uniform in np.linspace(0, 0.999999, 101):
        token = draw(logits, SamplingParams(temperature=1), float(uniform))
        # 1e-6: the sums are of single precision.
        assert cdf[token - 1] * (token > 0) - 1e-6 <= uniform <= cdf[token] + 1e-6


def test_a_very_low_temperature_takes_the_best_token_without_a_warning() -> None:
    logits = np.array([1, 3, 2], np.float32)
    for how in (SamplingParams(temperature=1e-300), SamplingParams(temperature=1e-300, top_p=0.9)):
        assert draw(logits, how, 0.999) == 1


def test_the_largest_random_number_never_falls_behind_the_last_kept_token() -> None:
    logits = np.array([0, 0, -np.inf, -200], np.float32)
    assert draw(logits, SamplingParams(temperature=1), np.nextafter(1, 0)) == 1


def test_repetition_penalty_pushes_down_seen_tokens_of_either_sign() -> None:
    logits = np.array([2, -2, 0, 5], np.float32)
    choice = Choice(SamplingParams(repetition_penalty=2), seen_ids=np.array([0, 1, 2]))
    assert adjust(logits, choice).tolist() == [1, -4, 0, 5]
    assert logits.tolist() == [2, -2, 0, 5], "the raw logits are still needed for log-probabilities"


def test_a_tiny_repetition_penalty_gives_numbers_all_the_same() -> None:
    logits = np.array([2, -2, -np.inf, 0], np.float32)
    choice = Choice(SamplingParams(repetition_penalty=1e-308), seen_ids=np.arange(4))
    assert np.isfinite(adjust(logits, choice)).all()


def test_blocked_tokens_are_never_chosen() -> None:
    logits = np.array([[9, 1, 8]], np.float32)
    blocked = np.array([0, 2])
    for how in (SamplingParams(), SamplingParams(temperature=1), SamplingParams(temperature=1, top_p=0.9)):
        assert choose(logits, [0], [Choice(how, blocked_ids=blocked)]).token_ids.tolist() == [1]


def test_rows_choose_by_their_own_logits_and_choice_in_a_mixed_batch() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (6, VOCAB)).astype(np.float32)
    choices = [
        GREEDY,
        Choice(SamplingParams(temperature=1), uniform=0.3),
        Choice(SamplingParams(temperature=0.8, top_k=4), uniform=0.9),
        Choice(SamplingParams(repetition_penalty=3), seen_ids=np.array([logits[4].argmax()])),
    ]
    rows = [0, 2, 5, 4]
    together = choose(logits, rows, choices).token_ids.tolist()
    alone = [
        int(choose(logits[r : r + 1], [0], [c]).token_ids[0]) for r, c in zip(rows, choices, strict=True)
    ]
    assert together == alone
    assert together[0] == logits[0].argmax()
    assert together[3] != logits[4].argmax()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_numbers_is_reported_and_its_neighbours_are_not(bad: float) -> None:
    logits = np.zeros((3, VOCAB), np.float32)
    logits[:, 7] = 1
    logits[1, 3] = bad
    for how in (GREEDY, Choice(SamplingParams(temperature=1, top_p=0.5), uniform=0.1)):
        chosen = choose(logits, [0, 1, 2], [how] * 3)
        assert chosen.is_finite.tolist() == [True, False, True]


def test_a_row_in_which_everything_is_blocked_is_reported() -> None:
    choice = Choice(SamplingParams(temperature=1), blocked_ids=np.arange(VOCAB))
    assert choose(np.zeros((1, VOCAB), np.float32), [0], [choice]).is_finite.tolist() == [False]


@given(rows_of_logits, st.integers(0, VOCAB - 1), st.integers(0, 20))
@settings(deadline=None)
def test_logprobs_are_the_logarithm_of_the_softmax(
    logits: NDArray[np.float32], token: int, num_candidates: int
) -> None:
    expected = logits.astype(np.float64) - math.log(sum(math.exp(float(x)) for x in logits))
    got = logprob_of(logits, token, num_candidates=num_candidates)
    assert got.logprob == pytest.approx(expected[token], abs=1e-5)
    best = sorted(range(VOCAB), key=lambda i: (-logits[i], i))[:num_candidates]
    assert [token_id for token_id, _ in got.candidates] == best
    assert [p for _, p in got.candidates] == pytest.approx([expected[i] for i in best], abs=1e-5)


def test_more_candidates_than_tokens_are_all_tokens() -> None:
    assert best_ids(np.array([1, 3, 2], np.float32), 20).tolist() == [1, 2, 0]


def request(**settings: object) -> SequenceRequest:
    return SequenceRequest("r", np.array([5, 6, 5]), max_new_tokens=10, **settings)  # type: ignore[arg-type]


def test_draw_i_depends_only_on_the_seed_and_on_i() -> None:
    def numbers(seed: int) -> list[float]:
        state = SamplingState(request(sampling=SamplingParams(temperature=1, seed=seed)))
        return [state.choice(i).uniform for i in range(5)]

    assert numbers(1) == numbers(1)
    assert numbers(1) != numbers(2)
    assert len(set(numbers(2**64 - 1))) == 5


def test_greedy_sequences_draw_nothing_and_share_one_choice() -> None:
    state = SamplingState(request())
    assert state.choice(0) is state.choice(1)
    assert state.choice(0).is_argmax


def test_ending_tokens_are_blocked_until_enough_tokens_came() -> None:
    state = SamplingState(
        request(min_new_tokens=2, eos_token_ids=frozenset([3]), stop_token_ids=frozenset([1]))
    )
    blocked = [state.choice(i).blocked_ids for i in range(3)]
    assert [None if ids is None else ids.tolist() for ids in blocked] == [[1, 3], [1, 3], None]


def test_the_penalty_is_for_tokens_of_prompt_and_output() -> None:
    state = SamplingState(request(sampling=SamplingParams(repetition_penalty=1.5)))
    for token in (9, 5, 8):
        state.accept(token)
    seen = state.choice(3).seen_ids
    assert seen is not None
    assert sorted(seen.tolist()) == [5, 6, 8, 9]


def test_seen_tokens_grow_beyond_their_first_memory() -> None:
    seen = SeenTokens(np.array([1]))
    for token in range(500):
        seen.add(token)
    assert sorted(seen.ids.tolist()) == list(range(500))


def test_frequency_and_presence_penalties_count_what_was_generated_and_not_the_prompt() -> None:
    how = SamplingParams(frequency_penalty=0.5, presence_penalty=0.25)
    state = SamplingState(SequenceRequest("r", np.array([1, 2]), 9, sampling=how))
    for token_id in (3, 4, 3, 3):
        state.accept(token_id)
    logits = np.zeros(6, np.float32)
    assert adjust(logits, state.choice(4)).tolist() == [0, 0, 0, -1.75, -0.75, 0]


def test_counts_grow_beyond_their_first_memory() -> None:
    how = SamplingParams(frequency_penalty=1)
    state = SamplingState(SequenceRequest("r", np.array([1]), 999, sampling=how))
    for token_id in [*range(200), *range(100)]:
        state.accept(token_id)
    row = adjust(np.zeros(300, np.float32), state.choice(300))
    assert row.tolist() == [-2] * 100 + [-1] * 100 + [0] * 100


def test_a_bias_is_added_after_the_penalties() -> None:
    how = SamplingParams(repetition_penalty=2, logit_bias={0: 1.5, 2: -100})
    state = SamplingState(SequenceRequest("r", np.array([0]), 9, sampling=how))
    assert adjust(np.array([4, 1, 3], np.float32), state.choice(0)).tolist() == [3.5, 1, -97]


def test_only_allowed_tokens_and_those_that_end_the_text_may_be_chosen() -> None:
    how = SamplingParams(allowed_token_ids=(4, 2))
    asked = SequenceRequest("r", np.array([0]), 9, sampling=how, eos_token_ids=frozenset([1]))
    row = adjust(np.ones(6, np.float32), SamplingState(asked).choice(0))
    assert np.flatnonzero(np.isfinite(row)).tolist() == [1, 2, 4]


@given(st.sets(st.integers(0, 99)), st.integers(60, 100))
def test_a_mask_keeps_the_tokens_of_its_bits(allowed: set[int], vocab_size: int) -> None:
    mask = np.zeros(4, np.uint32)
    for token_id in allowed:
        mask[token_id // 32] |= np.uint32(1 << (token_id % 32))
    row = adjust(np.ones(vocab_size, np.float32), Choice(SamplingParams(), mask=mask))
    assert set(np.flatnonzero(np.isfinite(row)).tolist()) == {i for i in allowed if i < vocab_size}


def test_tokens_beyond_the_end_of_a_mask_are_not_allowed() -> None:
    row = adjust(np.ones(70, np.float32), Choice(SamplingParams(), mask=np.full(2, 2**32 - 1, np.uint32)))
    assert np.flatnonzero(np.isfinite(row)).tolist() == list(range(64))


def test_sequences_of_a_request_draw_other_numbers() -> None:
    asked = SequenceRequest("r", np.array([1]), 9, sampling=SamplingParams(temperature=1, seed=2**64 - 1))
    wrapped = SequenceRequest("r", np.array([1]), 9, sampling=SamplingParams(temperature=1, seed=0))
    draws = [SamplingState(asked, index=index).choice(0).uniform for index in range(3)]
    assert len(set(draws)) == 3
    assert draws[1] == SamplingState(wrapped).choice(0).uniform, "the seed is a number of 64 bits"
