"""Beam search without a model: against the search of every continuation, and on slots. The parity with
transformers is in tests/parity.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from aimass_decoding.beam_batch import BeamBatch, reordered
from aimass_decoding.beam_search import BeamOptions, BeamSearch
from aimass_decoding.runner import DecoderRunner
from aimass_decoding.testing import FakeDecoder, LogitsOf, fake_geometry, hashed_logits
from aimass_serving.errors import InvalidField
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

VOCAB, EOS, PROMPT = 6, 5, np.array([1, 2])


def batch(logits_of: LogitsOf | None = None, *, max_slots: int = 8, max_len: int = 32) -> BeamBatch:
    decoder = FakeDecoder(logits_of or hashed_logits(VOCAB))
    geometry = fake_geometry(vocab_size=VOCAB)
    runner = DecoderRunner(decoder.session(), geometry, max_slots=max_slots, max_len=max_len)
    return BeamBatch(runner, max_slots=max_slots, max_len=max_len)


def options(num_beams: int, *, max_new_tokens: int = 4, length_penalty: float = 1.0) -> BeamOptions:
    return BeamOptions(num_beams, max_new_tokens, frozenset({EOS}), length_penalty=length_penalty)


def log_probs(tokens: tuple[int, ...]) -> NDArray[np.float64]:
    logits = hashed_logits(VOCAB)(tokens).astype(np.float64)
    scores: NDArray[np.float64] = logits - np.log(np.exp(logits).sum())
    return scores


def best_of_all(max_new_tokens: int, length_penalty: float) -> float:
    """Return the best score of every text there is."""
    best = -math.inf
    for length in range(1, max_new_tokens + 1):
        for text in itertools.product(range(VOCAB), repeat=length):
            if EOS in text[:-1] or (length < max_new_tokens and text[-1] != EOS):
                continue
            steps = (log_probs((1, 2, *text[:i]))[text[i]] for i in range(length))
            best = max(best, sum(steps) / length**length_penalty)
    return best


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_as_many_beams_as_texts_find_the_best_of_all(length_penalty: float) -> None:
    beams = batch(max_slots=VOCAB**2)
    search = beams.join(PROMPT, options(VOCAB**2, max_new_tokens=3, length_penalty=length_penalty))
    beams.run()
    assert search.hypotheses[0].score == pytest.approx(best_of_all(3, length_penalty), abs=1e-5)


def test_one_beam_is_greedy() -> None:
    beams = batch()
    search = beams.join(PROMPT, options(1, max_new_tokens=6))
    beams.run()
    tokens: tuple[int, ...] = (1, 2)
    for _ in range(6):
        tokens = (*tokens, int(log_probs(tokens).argmax()))
    (hypothesis,) = search.hypotheses
    assert hypothesis.token_ids == tokens[2:][: len(hypothesis.token_ids)]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), min_size=1, max_size=6))
def test_a_search_gives_the_same_whoever_runs_beside_it(wanted: list[tuple[int, int]]) -> None:
    together, waiting, searches = batch(), list(wanted), []
    while waiting or together.num_running:
        while waiting and waiting[0][0] <= together.num_free_slots:
            num_beams, count = waiting.pop(0)
            prompt = np.array([num_beams, count % VOCAB])
            searches.append(together.join(prompt, options(num_beams, max_new_tokens=count)))
        together.step()
    for (num_beams, count), search in zip(wanted, searches, strict=True):
        alone = batch()
        expected = alone.join(np.array([num_beams, count % VOCAB]), options(num_beams, max_new_tokens=count))
        alone.run()
        assert search.hypotheses == expected.hypotheses
    assert together.num_free_slots == 8


def test_hypotheses_are_scored_by_their_own_log_probability() -> None:
    beams = batch()
    search = beams.join(PROMPT, options(3, length_penalty=2.0))
    beams.run()
    for hypothesis in search.hypotheses:
        text = (*hypothesis.token_ids, EOS) if hypothesis.is_complete else hypothesis.token_ids
        logprob = sum(log_probs((1, 2, *text[:i]))[text[i]] for i in range(len(text)))
        assert hypothesis.logprob == pytest.approx(logprob, abs=1e-4)
        assert hypothesis.score == pytest.approx(logprob / len(text) ** 2.0, abs=1e-4)


def test_a_rule_sees_what_each_beam_has_written_and_forbids_tokens() -> None:
    seen: list[int] = []

    def rule(texts: object, scores: NDArray[np.float32]) -> None:
        seen.append(len(scores))
        scores[:, [0, 1, EOS]] = -np.inf

    beams = batch()
    chosen = BeamOptions(2, 4, frozenset({EOS}), rule=rule)
    search = beams.join(PROMPT, chosen)
    beams.run()
    assert seen == [2, 2, 2, 2]
    assert all(not {0, 1, EOS} & set(h.token_ids) for h in search.hypotheses)
    assert [len(h.token_ids) for h in search.hypotheses] == [4, 4]


def test_a_search_that_is_given_up_frees_its_slots() -> None:
    beams = batch()
    search = beams.join(PROMPT, options(3))
    beams.leave(search)
    beams.leave(search)
    assert (beams.num_running, beams.num_free_slots) == (0, 8)


def test_more_beams_than_slots_are_refused() -> None:
    beams = batch(max_slots=2)
    with pytest.raises(ValueError, match="3 beams need as many slots, 2 are free"):
        beams.join(PROMPT, options(3))
    with pytest.raises(ValueError, match="more than the 32 tokens"):
        beams.join(PROMPT, options(1, max_new_tokens=40))
    assert beams.num_free_slots == 2


@pytest.mark.parametrize(("num_beams", "max_new_tokens"), [(0, 3), (2, 0)])
def test_options_out_of_range_are_refused(num_beams: int, max_new_tokens: int) -> None:
    with pytest.raises(InvalidField, match="at least 1"):
        BeamOptions(num_beams, max_new_tokens, frozenset())


def test_a_search_that_is_done_takes_no_more() -> None:
    search = BeamSearch(options(1, max_new_tokens=1))
    assert search.advance(np.zeros((1, VOCAB), np.float32)) is None
    assert search.is_done
    with pytest.raises(AssertionError):
        search.advance(np.zeros((1, VOCAB), np.float32))


@given(st.lists(st.integers(0, 5), min_size=6, max_size=6), st.permutations(range(10, 16)))
def test_copies_give_every_child_its_parents_content(parents: list[int], slots: list[int]) -> None:
    content = {slot: f"beam {beam}" for beam, slot in enumerate(slots)}
    children, copies = reordered(slots, parents)
    for source, target in copies:
        content[target] = content[source]
    assert sorted(children) == sorted(slots)
    assert [content[slot] for slot in children] == [f"beam {parent}" for parent in parents]
    assert len(copies) == len(parents) - len(set(parents))
