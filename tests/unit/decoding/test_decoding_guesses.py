"""Guesses by a draft graph: when they are worth it, and that they never change a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from aimass_decoding.config import EngineConfig
from aimass_decoding.drafts import DraftCosts, Guesses, best_count, gain
from aimass_decoding.request import FinishReason, SamplingParams, SequenceRequest, TokenDelta
from aimass_decoding.sequence import Stage
from aimass_decoding.testing import (
    FakeDecoder,
    LogitsOf,
    SteppedEngine,
    fake_engine,
    fake_geometry,
    hashed_logits,
)
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

MAIN = hashed_logits()
STEP_S, GUESS_S = 0.020, 0.006
MAX_POSITIONS = 256


class GuessingDecoder(FakeDecoder):
    """A draft graph whose keys and values are not those of the other: half a token apart."""

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        outputs = super().__call__(feeds)
        feeds["past.0.key"][0, 0, feeds["position_ids"][0], 0] += 0.5
        return outputs


class StrictDecoder(FakeDecoder):
    """A decoder that finds its own keys and values before every token it is given."""

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        for row, start in enumerate(feeds["position_ids"][:, 0]):
            held = feeds["past.0.key"][row, 0, :start, 0]
            assert (held % 1 == 0).all(), "what a draft graph wrote is behind what the slot holds"
        return super().__call__(feeds)


def often_wrong(percent: int, *, seed: int = 0) -> LogitsOf:
    """Return logits whose best token is another one than that of `MAIN` in so many of a hundred places."""

    def logits_of(tokens: tuple[int, ...]) -> NDArray[np.float32]:
        logits = MAIN(tokens)
        is_wrong = hash((seed, *tokens)) % 100 < percent
        return np.roll(logits, 1) if is_wrong else logits + np.float32(0.01)

    return logits_of


def request(max_new_tokens: int = 60, **settings: Any) -> SequenceRequest:
    return SequenceRequest("r", np.array([1, 2, 3]), max_new_tokens, **settings)


def engine_of(draft: LogitsOf | None, *, guess_s: float = GUESS_S, **settings: Any) -> SteppedEngine:
    return SteppedEngine(
        StrictDecoder(MAIN, gives_every_position=draft is not None),
        EngineConfig(**settings),
        decode_s=STEP_S,
        prefill_token_s=0.002,
        geometry=fake_geometry(max_positions=MAX_POSITIONS),
        draft=GuessingDecoder(draft) if draft else None,
        guess_s=guess_s,
    )


def run(
    asked: SequenceRequest, draft: LogitsOf | None, **settings: Any
) -> tuple[SteppedEngine, list[TokenDelta]]:
    engine = engine_of(draft, **settings)
    sequence = engine.submit(asked)
    engine.run()
    return engine, [event for event in engine.events[sequence] if isinstance(event, TokenDelta)]


def num_guessed(engine: SteppedEngine) -> int:
    """Return how many runs of the draft graph there were."""
    assert engine.draft_runner is not None
    return len(engine.draft_runner.calls)


# How many.


@given(trust=st.floats(0, 0.99), cost=st.floats(0.02, 2), most=st.integers(0, 10))
def test_as_many_are_guessed_as_give_the_most_tokens_in_a_time(trust: float, cost: float, most: int) -> None:
    count = best_count(trust, most=most, cost=cost)
    assert 0 <= count <= most
    tokens = [(1 - trust ** (k + 1)) / (1 - trust) / (1 + k * cost) for k in range(most + 1)]
    assert tokens[count] == pytest.approx(max(tokens))
    assert gain(trust, count, cost=cost) == pytest.approx(max(tokens))


def test_nothing_is_guessed_where_no_number_of_guesses_pays() -> None:
    assert best_count(0.4, most=8, cost=0.5) == 0
    assert best_count(0.99, most=8, cost=1.0) == 0
    assert best_count(0.98, most=8, cost=0.4) > best_count(0.8, most=8, cost=0.4) > 0


def test_trust_follows_what_came_true_and_recovers_while_nothing_is_guessed() -> None:
    guesses = Guesses()
    first = guesses.trust
    guesses.learn(3, has_missed=False)
    high = guesses.trust
    for _ in range(40):
        guesses.learn(0, has_missed=True)
    low = guesses.trust
    for _ in range(40):
        guesses.rest()
    assert low < first < high
    assert low < guesses.trust < first
    for _ in range(500):
        guesses.learn(8, has_missed=False)
    assert guesses.trust < 1


def test_a_guess_costs_the_draft_graphs_time_and_its_place_in_the_run_that_confirms_it() -> None:
    costs = DraftCosts()
    assert not costs.is_step_known
    costs.observe_step(0.020)
    costs.observe_guess(0.006)
    costs.observe_draft(4, 0.028)
    assert costs.share_of_guess == pytest.approx(0.3 + 0.1)
    assert costs.is_step_known
    for _ in range(16):
        costs.observe_draft(4, 0.028)
    assert not costs.is_step_known, "the machine may have changed"
    costs.observe_step(0.030)
    assert costs.is_step_known


def test_one_disturbed_run_does_not_change_what_a_guess_costs() -> None:
    costs = DraftCosts()
    for _ in range(4):
        costs.observe_step(0.020)
        costs.observe_guess(0.006)
        costs.observe_draft(4, 0.028)
    before = costs.share_of_guess
    costs.observe_step(0.200)
    costs.observe_guess(0.200)
    costs.observe_draft(4, 0.200)
    assert costs.share_of_guess == pytest.approx(before)


def test_a_cost_that_keeps_all_guesses_away_is_measured_again_in_time() -> None:
    costs = DraftCosts()
    costs.observe_step(0.020)
    costs.observe_guess(0.100)
    assert costs.share_of_guess > 5
    for _ in range(64):
        costs.observe_step(0.020)
    assert costs.share_of_guess == pytest.approx(0.5), "assumed"


# In the engine.


@given(
    percent=st.integers(0, 100),
    max_new_tokens=st.integers(1, 60),
    temperature=st.sampled_from([0.0, 0.5, 1.5]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    max_draft_tokens=st.integers(1, 8),
    seed=st.integers(0, 9),
)
def test_tokens_log_probabilities_and_ends_are_those_without_a_draft_graph(
    percent: int,
    max_new_tokens: int,
    temperature: float,
    repetition_penalty: float,
    frequency_penalty: float,
    max_draft_tokens: int,
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
        min_new_tokens=min(20, max_new_tokens),
        wants_logprobs=True,
        num_top_logprobs=2,
    )
    draft = often_wrong(percent, seed=seed)
    engine, with_guesses = run(asked, draft, max_draft_tokens=max_draft_tokens)
    _, without = run(asked, None)
    assert [(d.token_ids, d.logprobs) for d in with_guesses] == [(d.token_ids, d.logprobs) for d in without]
    got, expected = with_guesses[-1].finish, without[-1].finish
    assert got is not None
    assert expected is not None
    assert (got.reason, got.stop_token_id) == (expected.reason, expected.stop_token_id)
    longest = max((tokens for _, tokens in engine.decoder.runs[1:]), default=0)
    assert longest <= max_draft_tokens + 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_graph_that_is_right_saves_most_runs_of_the_other(temperature: float) -> None:
    asked = request(60, sampling=SamplingParams(temperature=temperature, seed=1))
    engine, _ = run(asked, often_wrong(0))
    counters = engine.stepper.counters
    assert counters.num_decode_steps <= 14
    assert counters.num_confirmed_tokens == 59 - counters.num_decode_steps
    assert counters.num_drafted_tokens == counters.num_confirmed_tokens == num_guessed(engine)


def test_a_draft_graph_that_is_wrong_is_hardly_asked_any_more() -> None:
    engine, _ = run(request(200), often_wrong(100))
    assert num_guessed(engine) < 70
    counters = engine.stepper.counters
    assert counters.num_decode_steps > 190


def test_a_draft_graph_that_is_no_cheaper_is_hardly_asked_any_more() -> None:
    engine, _ = run(request(200), often_wrong(0), guess_s=STEP_S)
    assert num_guessed(engine) <= 8


def test_a_step_is_left_as_it_is_now_and_then_to_be_measured() -> None:
    engine, _ = run(request(200), often_wrong(0), max_draft_tokens=2)
    one_token_runs = [rows for rows, tokens in engine.decoder.runs if tokens == 1]
    assert 4 <= len(one_token_runs) <= 7


@pytest.mark.parametrize("max_len", range(6, 24))
def test_a_full_context_ends_at_exactly_max_len(max_len: int) -> None:
    engine, deltas = run(request(100), often_wrong(10), max_len=max_len)
    assert sum(len(delta.token_ids) for delta in deltas) == max_len - 3
    assert deltas[-1].finish is not None
    assert deltas[-1].finish.reason is FinishReason.CONTEXT_FULL
    assert not engine.scheduler.has_work


def test_nothing_is_guessed_behind_a_guess_that_ends_the_text() -> None:
    _, deltas = run(request(60), None)
    tokens = [token for delta in deltas for token in delta.token_ids]
    place = next(n for n in range(14, 60) if tokens[n] not in tokens[:n])
    engine, _ = run(request(60, eos_token_ids=frozenset([tokens[place]])), often_wrong(0))
    counters = engine.stepper.counters
    assert num_guessed(engine) == counters.num_drafted_tokens == place - counters.num_decode_steps + 1


def guessing(engine: SteppedEngine) -> None:
    """Step until the only sequence has guesses that are not confirmed yet."""
    while not any(s.guesses is not None and len(s.guesses.token_ids) == 2 for s in engine.scheduler.active):
        engine.stepper.step()


def test_a_sequence_cancelled_among_guesses_leaves_at_once_and_spoils_nothing() -> None:
    engine = engine_of(often_wrong(0))
    first = engine.submit(request())
    guessing(engine)
    engine.stepper.abort(first, engine.clock())
    assert first.stage is Stage.DONE
    assert engine.scheduler.num_active == 0
    second = engine.submit(request())
    engine.run()
    reference = engine_of(None)
    alone = reference.submit(request())
    reference.run()
    assert engine.tokens_of(second) == reference.tokens_of(alone)


def test_a_sequence_that_arrives_among_guesses_does_not_wait_for_them() -> None:
    engine = engine_of(often_wrong(0))
    first = engine.submit(request())
    guessing(engine)
    num_before = num_guessed(engine)
    second = engine.submit(SequenceRequest("s", np.array([4, 5, 6, 7]), 20))
    engine.stepper.step()
    assert second.num_output == 1
    while second.stage is not Stage.DONE:
        engine.stepper.step()
    assert num_guessed(engine) == num_before, "nothing is guessed beside others"
    engine.run()
    assert num_guessed(engine) > num_before, "the first is alone again"
    reference = engine_of(None)
    alone = [reference.submit(sequence.request) for sequence in (first, second)]
    reference.run()
    assert [engine.tokens_of(s) for s in (first, second)] == [reference.tokens_of(s) for s in alone]


class AnyToken:
    """A mask that allows everything."""

    def allowed(self) -> None:
        return None

    def accept(self, token_id: int) -> None:
        return


def test_a_guided_sequence_is_not_guessed_for() -> None:
    engine, _ = run(request(new_mask=AnyToken), often_wrong(0))
    assert num_guessed(engine) == 0


def test_a_draft_graph_that_fails_fails_the_sequence_only() -> None:
    def broken(tokens: tuple[int, ...]) -> NDArray[np.float32]:
        raise ValueError("broken")

    engine = engine_of(broken)
    sequence = engine.submit(request())
    engine.run()
    assert not isinstance(engine.end_of(sequence), TokenDelta)
    assert engine.stepper.counters.num_failed == 1
    assert engine.scheduler.num_active == 0


def test_guesses_are_made_with_the_adapter_of_the_sequence() -> None:
    geometry = fake_geometry(max_positions=MAX_POSITIONS, num_adapters=1)
    engine = SteppedEngine(
        FakeDecoder(MAIN, gives_every_position=True),
        EngineConfig(),
        decode_s=STEP_S,
        geometry=geometry,
        draft=FakeDecoder(MAIN),
        guess_s=GUESS_S,
    )
    engine.submit(request(adapter=1))
    engine.run()
    counters = engine.stepper.counters
    assert counters.num_drafted_tokens == counters.num_confirmed_tokens > 30


@pytest.mark.parametrize("max_draft_tokens", [0, 8])
async def test_an_engine_asks_its_draft_graph_unless_drafts_are_turned_off(max_draft_tokens: int) -> None:
    decoder, draft = FakeDecoder(MAIN, gives_every_position=True), FakeDecoder(MAIN)
    config = EngineConfig(max_draft_tokens=max_draft_tokens)
    with fake_engine(decoder, config, draft=draft) as engine:
        tokens = [t async for delta in engine.generate(request(40)) for t in delta.token_ids]
        stats = engine.stats()
    assert len(tokens) == 40
    assert (len(draft.runs) > 0) == (max_draft_tokens > 0)
    assert stats.num_confirmed_tokens <= stats.num_drafted_tokens
