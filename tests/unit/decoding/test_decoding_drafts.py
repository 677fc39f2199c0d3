"""Guesses from the text itself: what they are, when they are worth it, and that they never change a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from aimass_decoding.config import EngineConfig
from aimass_decoding.drafts import DraftCosts, Drafter
from aimass_decoding.request import FinishReason, SamplingParams, SequenceRequest, TokenDelta
from aimass_decoding.testing import FakeDecoder, LogitsOf, SteppedEngine, fake_engine
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

VOCAB = 32
TOKENS = st.lists(st.integers(0, 5), min_size=1, max_size=60)


def drafter_of(tokens: list[int]) -> Drafter:
    """Return a drafter that has read a prompt of one token and then the others."""
    drafter = Drafter(np.array(tokens[:1]))
    for token in tokens[1:]:
        drafter.add(token)
    return drafter


def test_what_followed_the_last_two_tokens_is_what_is_guessed() -> None:
    drafter = drafter_of([7, 8, 1, 2, 3, 4, 9, 1, 2])
    assert drafter.draft(most=3, cost=0.1) == (3, 4, 9)


def test_a_text_that_repeats_itself_is_expected_to_go_on_so() -> None:
    drafter = drafter_of([9, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2])
    assert drafter.draft(most=7, cost=0.05) == (3, 1, 2, 3, 1, 2, 3)


def test_a_text_without_repetition_gives_no_guess() -> None:
    assert drafter_of(list(range(20))).draft(most=8, cost=0.01) == ()


@given(tokens=TOKENS, most=st.integers(1, 10), cost=st.floats(0.02, 1))
def test_a_draft_is_no_longer_than_asked_for_and_made_of_tokens_of_the_text(
    tokens: list[int], most: int, cost: float
) -> None:
    draft = drafter_of([0, *tokens]).draft(most=most, cost=cost)
    assert len(draft) <= most
    assert set(draft) <= set(tokens) | {0}


def test_the_dearer_a_guess_the_fewer_there_are() -> None:
    drafter = drafter_of([1, 2, 3, 4, 5, 1, 2])
    lengths = [len(drafter.draft(most=8, cost=cost)) for cost in (0.02, 0.1, 0.3, 0.6)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1] == 0


def test_guesses_that_come_true_are_trusted_and_others_are_not() -> None:
    loyal = drafter_of([1, 2, 3] * 20)
    fickle = drafter_of([token for n in range(20) for token in (1, 2, 10 + n)])
    assert len(loyal.draft(most=8, cost=0.2)) == 8
    assert fickle.draft(most=8, cost=0.2) == ()
    for token in [4, 5, 6] * 20:
        fickle.add(token)
    assert len(fickle.draft(most=8, cost=0.2)) == 8, "it learns without a draft too"


def test_the_cost_of_a_guess_is_its_part_of_a_step() -> None:
    costs = DraftCosts()
    assert costs.share == 0.25, "assumed"
    costs.observe_step(0.020)
    costs.observe_draft(4, 0.028)
    assert costs.share == pytest.approx(0.1)
    costs = DraftCosts()
    costs.observe_step(0.020)
    costs.observe_draft(4, 0.015)
    assert 0 < costs.share < 0.05, "a measurement that is off does not make guesses free"


# In the engine.


def periodic_logits(period: int, *, breaks_at: int = 10_000) -> LogitsOf:
    """Return logits of a text that repeats itself, but for each token at a multiple of `breaks_at`."""

    def logits_of(tokens: tuple[int, ...]) -> NDArray[np.float32]:
        place = len(tokens)
        best = 20 + place % 7 if place % breaks_at == 0 else place % period
        logits = np.sin(np.arange(VOCAB) + place).astype(np.float32)
        logits[best] += 4
        return logits

    return logits_of


def request(max_new_tokens: int = 40, **settings: Any) -> SequenceRequest:
    return SequenceRequest("r", np.array([1, 2, 3]), max_new_tokens, **settings)


def run(
    asked: SequenceRequest, logits_of: LogitsOf, *, has_drafts: bool, **settings: Any
) -> tuple[SteppedEngine, list[TokenDelta]]:
    decoder = FakeDecoder(logits_of, gives_every_position=has_drafts)
    engine = SteppedEngine(decoder, EngineConfig(**settings), decode_s=0.020, prefill_token_s=0.002)
    sequence = engine.submit(asked)
    engine.run()
    return engine, [event for event in engine.events[sequence] if isinstance(event, TokenDelta)]


@given(
    period=st.integers(1, 9),
    breaks_at=st.integers(2, 20),
    max_new_tokens=st.integers(1, 50),
    temperature=st.sampled_from([0.0, 0.5, 1.5]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 9),
)
def test_tokens_log_probabilities_and_ends_are_those_without_drafts(
    period: int,
    breaks_at: int,
    max_new_tokens: int,
    temperature: float,
    repetition_penalty: float,
    frequency_penalty: float,
    seed: int,
) -> None:
    sampling = SamplingParams(
        temperature=temperature,
        repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
    )
    asked = request(
        max_new_tokens,
        sampling=sampling,
        eos_token_ids=frozenset([25]),
        min_new_tokens=min(5, max_new_tokens),
        wants_logprobs=True,
        num_top_logprobs=2,
    )
    logits_of = periodic_logits(period, breaks_at=breaks_at)
    _, with_drafts = run(asked, logits_of, has_drafts=True)
    _, without = run(asked, logits_of, has_drafts=False)
    assert [(d.token_ids, d.logprobs) for d in with_drafts] == [(d.token_ids, d.logprobs) for d in without]
    got, expected = with_drafts[-1].finish, without[-1].finish
    assert got is not None
    assert expected is not None
    assert (got.reason, got.stop_token_id, got.num_output_tokens) == (
        expected.reason,
        expected.stop_token_id,
        expected.num_output_tokens,
    )


def test_a_text_that_repeats_itself_takes_fewer_runs() -> None:
    engine, _ = run(request(), periodic_logits(5), has_drafts=True)
    counters = engine.stepper.counters
    assert counters.num_decode_steps < 15
    assert counters.num_confirmed_tokens == 39 - counters.num_decode_steps
    assert all(rows == 1 for rows, _ in engine.decoder.runs)


def test_guesses_that_are_often_wrong_are_given_up() -> None:
    engine, _ = run(request(200), periodic_logits(9, breaks_at=2), has_drafts=True, max_len=64)
    counters = engine.stepper.counters
    assert counters.num_drafted_tokens - counters.num_confirmed_tokens <= 12


@pytest.mark.parametrize("max_len", range(6, 24))
def test_a_full_context_ends_at_exactly_max_len(max_len: int) -> None:
    engine, deltas = run(request(100), periodic_logits(3), has_drafts=True, max_len=max_len)
    assert sum(len(delta.token_ids) for delta in deltas) == max_len - 3
    assert deltas[-1].finish is not None
    assert deltas[-1].finish.reason is FinishReason.CONTEXT_FULL
    assert not engine.scheduler.has_work


def test_nothing_is_guessed_while_others_run_too_or_wait() -> None:
    decoder = FakeDecoder(periodic_logits(3), gives_every_position=True)
    engine = SteppedEngine(decoder, EngineConfig(max_slots=1))
    for _ in range(2):
        engine.submit(request(20))
    while engine.scheduler.num_waiting:
        engine.stepper.step()
    assert engine.stepper.counters.num_drafted_tokens == 0
    engine.run()
    assert engine.stepper.counters.num_drafted_tokens > 0, "the last one is alone"


class AnyToken:
    """A mask that allows everything."""

    def allowed(self) -> None:
        return None

    def accept(self, token_id: int) -> None:
        return


@pytest.mark.parametrize(
    ("asked", "settings"),
    [
        pytest.param(request(max_new_tokens=40), {"max_draft_tokens": 0}, id="turned off"),
        pytest.param(request(new_mask=AnyToken), {}, id="guided: each mask waits for the token before"),
    ],
)
def test_nothing_is_guessed_where_nothing_should(asked: SequenceRequest, settings: dict[str, int]) -> None:
    engine, _ = run(asked, periodic_logits(3), has_drafts=True, **settings)
    assert engine.stepper.counters.num_drafted_tokens == 0


def test_a_graph_that_fails_on_a_draft_fails_the_sequence_only() -> None:
    def fail_on_drafts(input_ids: NDArray[np.int64]) -> None:
        if input_ids.shape[1] > 1 and len(decoder.runs) > 1:
            raise ValueError("broken")

    decoder = FakeDecoder(periodic_logits(3), before_run=fail_on_drafts, gives_every_position=True)
    engine = SteppedEngine(decoder, EngineConfig())
    sequence = engine.submit(request())
    engine.run()
    assert not isinstance(engine.end_of(sequence), TokenDelta)
    assert engine.stepper.counters.num_failed == 1
    assert engine.scheduler.num_active == 0


class LengthAwareDecoder(FakeDecoder):
    """A decoder whose numbers differ a little between runs of one token and of several, as in 8 bits."""

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        logits = super().__call__(feeds)["logits"]
        return {"logits": logits + np.float32(0.01 * (feeds["input_ids"].shape[1] > 1))}


async def test_an_engine_for_very_short_texts_opens_and_guesses_nothing() -> None:
    decoder = FakeDecoder(periodic_logits(1), gives_every_position=True)
    with fake_engine(decoder, EngineConfig(max_len=6)) as engine:
        tokens = [t async for delta in engine.generate(request()) for t in delta.token_ids]
        assert engine.stats().num_drafted_tokens == 0
    assert len(tokens) == 3


@pytest.mark.parametrize(("decoder_class", "has_drafts"), [(FakeDecoder, True), (LengthAwareDecoder, False)])
async def test_only_graphs_whose_chunks_are_like_steps_are_drafted_for(
    decoder_class: type[FakeDecoder], has_drafts: bool
) -> None:
    decoder = decoder_class(periodic_logits(3), gives_every_position=True)
    with fake_engine(decoder) as engine:
        tokens = [t async for delta in engine.generate(request()) for t in delta.token_ids]
        stats = engine.stats()
    assert len(tokens) == 40
    assert (stats.num_confirmed_tokens > 0) == has_drafts
    assert stats.num_drafted_tokens >= stats.num_confirmed_tokens
