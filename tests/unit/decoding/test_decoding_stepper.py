"""What each step makes of its sequences: ends, failures, cancels, deadlines. No thread, no event loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from aimass_decoding.config import EngineConfig
from aimass_decoding.request import FinishReason, SamplingParams, SequenceFinish, SequenceRequest, TokenDelta
from aimass_decoding.sequence import Sequence, Stage
from aimass_decoding.testing import FakeDecoder, LogitsOf, SteppedEngine, hashed_logits, scripted_logits
from aimass_serving.errors import DeadlineExceeded, InputTooLong, ModelFailed, Overloaded
from numpy.typing import NDArray

EOS = 31


def request(*prompt: int, max_new_tokens: int = 5, **settings: Any) -> SequenceRequest:
    return SequenceRequest("r", np.array(prompt or (1, 2, 3)), max_new_tokens, **settings)


def engine(
    logits_of: LogitsOf | None = None, *, decode_s: float = 0, prefill_token_s: float = 0, **settings: Any
) -> SteppedEngine:
    decoder = FakeDecoder(logits_of or hashed_logits())
    config = EngineConfig(**settings)
    return SteppedEngine(decoder, config, decode_s=decode_s, prefill_token_s=prefill_token_s)


def finish_of(sut: SteppedEngine, sequence: Sequence) -> SequenceFinish:
    end = sut.end_of(sequence)
    assert isinstance(end, TokenDelta), f"expected a finish, got {end!r}"
    assert end.finish is not None
    return end.finish


def greedy(prompt: tuple[int, ...], count: int, logits_of: LogitsOf) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits_of(tuple(tokens)).argmax()))
    return tokens[len(prompt) :]


def test_tokens_are_the_greedy_ones_of_each_sequence_alone() -> None:
    sut = engine()
    prompts = [(1,), (2, 3, 4), (5, 6, 7, 8, 9)]
    sequences = [sut.submit(request(*prompt, max_new_tokens=6)) for prompt in prompts]
    sut.run()
    for prompt, sequence in zip(prompts, sequences, strict=True):
        assert sut.tokens_of(sequence) == greedy(prompt, 6, hashed_logits())


def test_two_sequences_advance_in_one_run_of_the_graph() -> None:
    sut = engine()
    for first in range(2):
        sut.submit(request(first, 2, 3))
    sut.run()
    assert sut.decoder.runs == [(1, 3), (1, 3)] + [(2, 1)] * 4


def test_a_prompt_in_chunks_gives_the_tokens_of_the_whole_prompt() -> None:
    prompt = tuple(range(1, 21))
    outputs = []
    for chunk in (3, 7, 100):
        sut = engine(max_prefill_tokens_per_step=chunk)
        other = sut.submit(request(9, max_new_tokens=40))
        sequence = sut.submit(request(*prompt))
        sut.run()
        outputs.append((sut.tokens_of(sequence), sut.tokens_of(other)))
    assert outputs[0] == outputs[1] == outputs[2]


def test_the_last_allowed_token_is_emitted_with_its_finish() -> None:
    sut = engine()
    sequence = sut.submit(request(max_new_tokens=3))
    sut.run()
    assert finish_of(sut, sequence).reason is FinishReason.MAX_NEW_TOKENS
    assert len(sut.tokens_of(sequence)) == finish_of(sut, sequence).num_output_tokens == 3


@pytest.mark.parametrize(
    ("field", "reason"),
    [("eos_token_ids", FinishReason.EOS), ("stop_token_ids", FinishReason.STOP_TOKEN)],
)
def test_a_token_that_ends_the_sequence_is_counted_but_not_emitted(field: str, reason: FinishReason) -> None:
    sut = engine(scripted_logits({(1,): [4, 5]}, vocab_size=32, otherwise=EOS))
    settings: dict[str, Any] = {field: frozenset([EOS])}
    sequence = sut.submit(request(1, **settings))
    sut.run()
    finish = finish_of(sut, sequence)
    assert sut.tokens_of(sequence) == [4, 5]
    assert (finish.reason, finish.stop_token_id, finish.num_output_tokens) == (reason, EOS, 3)


def test_an_ending_token_is_not_chosen_before_min_new_tokens() -> None:
    sut = engine(scripted_logits({}, vocab_size=32, otherwise=EOS))
    sequence = sut.submit(request(min_new_tokens=2, eos_token_ids=frozenset([EOS])))
    sut.run()
    assert len(sut.tokens_of(sequence)) == 2
    assert finish_of(sut, sequence).reason is FinishReason.EOS


def test_a_full_context_ends_the_sequence_at_exactly_max_len() -> None:
    sut = engine(max_len=8)
    sequence = sut.submit(request(1, 2, 3, max_new_tokens=100))
    sut.run()
    assert finish_of(sut, sequence).reason is FinishReason.CONTEXT_FULL
    assert len(sut.tokens_of(sequence)) == 5


def test_the_longest_prompt_that_fits_gives_one_token() -> None:
    sut = engine(max_len=8)
    fits, does_not = sut.submit(request(*range(7))), sut.submit(request(*range(8)))
    sut.run()
    assert len(sut.tokens_of(fits)) == 1
    assert isinstance(sut.end_of(does_not), InputTooLong)


def test_a_cancelled_sequence_frees_its_slot_by_the_next_step() -> None:
    sut = engine(max_slots=1, decode_s=0.01)
    cancelled, waiting = sut.submit(request(max_new_tokens=50)), sut.submit(request())
    for _ in range(3):
        sut.stepper.step()
    sut.stepper.abort(cancelled, sut.clock())
    sut.stepper.step()
    assert waiting.stage is Stage.DECODING
    assert sut.end_of(cancelled) is None, "nobody listens any more"
    assert sut.stepper.counters.num_cancelled == 1
    sut.run()
    assert sut.tokens_of(waiting) == greedy((1, 2, 3), 5, hashed_logits())


def test_a_sequence_cancelled_in_the_queue_costs_no_run() -> None:
    sut = engine(max_slots=1)
    first, second = sut.submit(request(max_new_tokens=2)), sut.submit(request(7, 8))
    sut.stepper.abort(second, sut.clock())
    sut.run()
    assert sut.decoder.runs == [(1, 3), (1, 1)]
    assert finish_of(sut, first)
    assert sut.scheduler.queue_tokens == 0


def test_cancelling_what_has_ended_changes_nothing() -> None:
    sut = engine()
    sequence = sut.submit(request())
    sut.run()
    sut.stepper.abort(sequence, sut.clock())
    assert sut.stepper.counters.num_cancelled == 0


def test_milliseconds_from_cancel_to_release_are_recorded() -> None:
    sut = engine(decode_s=0.05)
    sequence = sut.submit(request(max_new_tokens=50))
    sut.stepper.step()
    cancelled_at_s = sut.clock()
    sut.stepper.step()
    sut.stepper.abort(sequence, cancelled_at_s)
    assert sut.stepper.counters.release_ms.summary()["max"] == pytest.approx(50)


def test_seconds_in_the_graph_are_those_of_prompts_and_of_steps() -> None:
    sut = engine(decode_s=0.05, prefill_token_s=0.01)
    sut.submit(request(1, 2, 3, max_new_tokens=5))
    sut.run()
    assert sut.stepper.counters.graph_s == pytest.approx(3 * 0.01 + 4 * 0.05)


def test_a_passed_deadline_fails_the_sequence_and_says_in_which_phase() -> None:
    sut = engine(max_slots=1, decode_s=1.0)
    now_s = sut.clock()
    running = sut.submit(request(max_new_tokens=50, deadline_s=now_s + 2.5))
    sut.stepper.step()
    waiting = sut.submit(request(deadline_s=now_s + 1.5))
    sut.run()
    assert str(sut.end_of(running)) == str(DeadlineExceeded(phase="decode"))
    assert str(sut.end_of(waiting)) == str(DeadlineExceeded(phase="queue"))
    assert len(sut.tokens_of(running)) == 4, "the prompt's and those of three decode steps"
    assert sut.stepper.counters.num_expired == 2


def test_a_time_limit_keeps_what_was_generated() -> None:
    sut = engine(decode_s=1.0)
    sequence = sut.submit(request(max_new_tokens=50, time_limit_at_s=sut.clock() + 2.5))
    sut.run()
    assert finish_of(sut, sequence).reason is FinishReason.TIME_LIMIT
    assert len(sut.tokens_of(sequence)) == finish_of(sut, sequence).num_output_tokens == 4


def test_a_time_limit_in_the_queue_ends_without_a_token_and_without_a_run() -> None:
    sut = engine()
    sequence = sut.submit(request(time_limit_at_s=sut.clock()))
    sut.run()
    assert finish_of(sut, sequence).num_output_tokens == 0
    assert sut.decoder.runs == []


def test_a_full_queue_refuses_and_the_refusal_costs_no_slot() -> None:
    sut = engine(max_queue_tokens=4)
    taken, refused = sut.submit(request()), sut.submit(request())
    sut.run()
    assert finish_of(sut, taken)
    assert isinstance(sut.end_of(refused), Overloaded)
    assert sut.stepper.counters.num_refused == 1


def test_logits_that_are_not_numbers_fail_their_own_sequence_only() -> None:
    def logits_of(tokens: tuple[int, ...]) -> NDArray[np.float32]:
        is_broken = tokens[0] == 7 and len(tokens) > 3
        return np.full(32, np.nan, np.float32) if is_broken else hashed_logits()(tokens)

    sut = engine(logits_of)
    broken, whole = sut.submit(request(7, 7)), sut.submit(request(1, 2))
    sut.run()
    assert isinstance(sut.end_of(broken), ModelFailed)
    assert len(sut.tokens_of(broken)) == 2, "what came before is not taken back"
    assert sut.tokens_of(whole) == greedy((1, 2), 5, hashed_logits())


def test_a_run_that_raises_fails_its_own_sequences_and_the_engine_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse_the_prompt(input_ids: NDArray[np.int64]) -> None:
        if 13 in input_ids:
            raise RuntimeError("secret detail")

    sut = engine()
    sut.decoder.before_run = refuse_the_prompt
    running = sut.submit(request(1, 2, max_new_tokens=20))
    sut.stepper.step()
    failing = sut.submit(request(13))
    sut.run()
    later = sut.submit(request(1, 2))
    sut.run()
    error = sut.end_of(failing)
    assert isinstance(error, ModelFailed)
    assert "secret" not in str(error)
    assert finish_of(sut, running).num_output_tokens == 20
    assert finish_of(sut, later)
    assert sut.stepper.counters.num_failed == 1
    assert "secret detail" in caplog.text


def test_a_decode_that_raises_fails_every_row_of_it_but_not_the_queue(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sut = engine(max_slots=2)
    runs: list[int] = []

    def fail_third_run(input_ids: NDArray[np.int64]) -> None:
        runs.append(len(input_ids))
        if len(runs) == 3:
            raise RuntimeError

    sut.decoder.before_run = fail_third_run
    rows, waiting = [sut.submit(request()) for _ in range(2)], sut.submit(request())
    sut.run()
    assert all(isinstance(sut.end_of(row), ModelFailed) for row in rows)
    assert finish_of(sut, waiting)
    assert len(caplog.records) == 1, "a failure is logged once"


def test_sampled_tokens_are_the_same_alone_and_among_others() -> None:
    def run(num_others: int) -> list[int]:
        sut = engine()
        for seed in range(num_others):
            sut.submit(request(seed, 9, sampling=SamplingParams(temperature=2, seed=seed + 100)))
        how = SamplingParams(temperature=1.5, top_p=0.9, repetition_penalty=1.3, seed=7)
        sequence = sut.submit(request(sampling=how, max_new_tokens=12))
        sut.run()
        return sut.tokens_of(sequence)

    assert run(0) == run(3) == run(9)
    assert len(set(run(0))) > 3


def test_logprobs_are_given_for_emitted_tokens_only_when_asked_for() -> None:
    sut = engine(scripted_logits({(1,): [4]}, vocab_size=32, otherwise=EOS))
    asked = sut.submit(request(1, eos_token_ids=frozenset([EOS]), wants_logprobs=True, num_top_logprobs=2))
    silent = sut.submit(request(1))
    sut.run()
    logprobs = [lp for event in sut.events[asked] if isinstance(event, TokenDelta) for lp in event.logprobs]
    assert [(lp.token_id, len(lp.candidates)) for lp in logprobs] == [(4, 2)]
    assert all(event.logprobs == () for event in sut.events[silent] if isinstance(event, TokenDelta))


def test_timings_follow_one_another_and_count_the_steps() -> None:
    sut = engine(decode_s=1, prefill_token_s=0.5)
    sut.clock.advance(1)
    sequence = sut.submit(request(max_new_tokens=4))
    sut.clock.advance(2)
    sut.run()
    timings = finish_of(sut, sequence).timings
    phases_s = [
        (timings.prefill_ns - timings.submitted_ns) / 1e9,
        (timings.first_token_ns - timings.prefill_ns) / 1e9,
        (timings.finished_ns - timings.first_token_ns) / 1e9,
    ]
    assert phases_s == pytest.approx([2, 1.5, 3])
    assert timings.num_steps == 3


def test_a_sequence_moved_to_another_slot_goes_on_as_if_it_had_stayed() -> None:
    sut = engine(max_slots=8)
    short = [sut.submit(request(number, max_new_tokens=2)) for number in range(5)]
    long = sut.submit(request(9, 8, 7, max_new_tokens=30))
    sut.run()
    assert all(finish_of(sut, sequence) for sequence in short)
    assert sut.tokens_of(long) == greedy((9, 8, 7), 30, hashed_logits())
    assert sut.decoder.runs[-1] == (1, 1), "no holes are computed for long"


def test_what_a_slot_held_before_does_not_show() -> None:
    sut = engine(max_slots=1)
    sut.submit(request(*range(20, 30), max_new_tokens=20))
    second = sut.submit(request(1, 2))
    sut.run()
    assert sut.tokens_of(second) == greedy((1, 2), 5, hashed_logits())
