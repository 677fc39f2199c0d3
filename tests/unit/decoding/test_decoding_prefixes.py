"""Prompts that start alike are computed once: what is shared, what is kept, what is counted."""

from __future__ import annotations

import numpy as np
import pytest
from aimass_decoding.config import EngineConfig
from aimass_decoding.prefixes import Match, Prefix, Prefixes
from aimass_decoding.request import SamplingParams, SequenceRequest, TokenDelta
from aimass_decoding.sequence import Sequence
from aimass_decoding.testing import FakeDecoder, SteppedEngine, hashed_logits
from numpy.typing import NDArray

CHUNK = 4
LOGITS = hashed_logits()


def engine(**settings: int) -> SteppedEngine:
    config = EngineConfig(**{"max_slots": 3, "max_len": 48, "max_prefill_tokens_per_step": CHUNK} | settings)
    return SteppedEngine(FakeDecoder(LOGITS), config)


def request(prompt: list[int], *, max_new_tokens: int = 4, cache_salt: str = "") -> SequenceRequest:
    return SequenceRequest("r", np.array(prompt), max_new_tokens, cache_salt=cache_salt)


def run(sut: SteppedEngine, prompt: list[int], *, cache_salt: str = "") -> Sequence:
    """Run one request to its end; its tokens are those of a model that computes everything."""
    sequence = sut.submit(request(prompt, cache_salt=cache_salt))
    sut.run()
    assert sut.tokens_of(sequence) == greedy(prompt, 4)
    return sequence


def greedy(prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(LOGITS(tuple(tokens)).argmax()))
    return tokens[len(prompt) :]


def prompt_tokens_computed(sut: SteppedEngine) -> int:
    return sum(count for kind, count in sut.runner.calls if kind == "prefill")


SYSTEM = list(range(1, 11))


def test_a_prompt_that_starts_like_the_last_one_computes_only_the_rest() -> None:
    sut = engine()
    run(sut, [*SYSTEM, 20])
    before = prompt_tokens_computed(sut)
    sequence = run(sut, [*SYSTEM, 21, 22])
    assert sequence.num_reused == 8, "the whole chunks of what both have in common"
    assert prompt_tokens_computed(sut) - before == 4
    end = sut.end_of(sequence)
    assert isinstance(end, TokenDelta)
    assert end.finish is not None
    assert end.finish.timings.num_reused_prompt_tokens == 8


def test_a_prompt_that_is_there_whole_runs_no_prompt_at_all() -> None:
    sut = engine()
    run(sut, SYSTEM)
    before = prompt_tokens_computed(sut)
    sequence = run(sut, SYSTEM)
    assert prompt_tokens_computed(sut) == before
    assert sequence.num_reused == len(SYSTEM)


def test_a_prompt_that_is_the_start_of_an_earlier_one_still_computes_its_last_chunk() -> None:
    sut = engine()
    run(sut, list(range(12)))
    sequence = run(sut, list(range(8)))
    assert sequence.num_reused == 4, "the logits after its last token are known to nobody"


def test_a_running_sequence_shares_its_prompt_too() -> None:
    sut = engine()
    first = sut.submit(request([*SYSTEM, 20], max_new_tokens=20))
    while not sut.tokens_of(first):
        sut.stepper.step()
    second = sut.submit(request([*SYSTEM, 21]))
    sut.run()
    assert second.num_reused == 8
    assert sut.tokens_of(first) == greedy([*SYSTEM, 20], 20)
    assert sut.tokens_of(second) == greedy([*SYSTEM, 21], 4)


def test_conversations_in_turn_keep_their_histories_in_the_free_slots() -> None:
    sut = engine(max_slots=4)
    histories = {name: [name] * 9 for name in (1, 2, 3)}
    for num_reused in (0, 8, 12):
        for name, history in histories.items():
            sequence = run(sut, history)
            assert sequence.slot == 0, "decode steps stay one row high"
            assert sequence.num_reused == num_reused
            histories[name] = [*history, 30, 31, name, name, name]
    assert sut.scheduler.num_kept_prefixes == 3, "one for each conversation, without its earlier turns"


def test_the_prompt_used_least_recently_gives_way() -> None:
    sut = engine(max_slots=2)
    for name in (1, 2, 3):
        run(sut, [name] * 9)
    assert run(sut, [3] * 10).num_reused == 8
    assert run(sut, [2] * 10).num_reused == 8
    assert run(sut, [1] * 10).num_reused == 0


def test_no_more_prompts_are_kept_than_configured() -> None:
    sut = engine(max_slots=3, max_kept_prefixes=1)
    for name in (1, 2, 3):
        run(sut, [name] * 9)
        assert sut.scheduler.num_kept_prefixes == 1
    assert run(sut, [2] * 10).num_reused == 0


def test_nothing_is_shared_when_it_is_turned_off() -> None:
    sut = engine(max_kept_prefixes=0)
    run(sut, SYSTEM)
    assert run(sut, SYSTEM).num_reused == 0
    assert sut.scheduler.num_kept_prefixes == 0


def test_prompts_of_another_salt_are_not_shared() -> None:
    sut = engine()
    run(sut, SYSTEM, cache_salt="tenant a")
    assert run(sut, SYSTEM, cache_salt="tenant b").num_reused == 0
    assert run(sut, SYSTEM).num_reused == 0
    assert run(sut, SYSTEM, cache_salt="tenant a").num_reused == len(SYSTEM)


def test_what_a_broken_run_left_behind_is_not_shared() -> None:
    def break_in_decoding(input_ids: NDArray[np.int64]) -> None:
        if is_broken and input_ids.shape[1] == 1:
            raise RuntimeError("broken")

    sut = SteppedEngine(
        FakeDecoder(LOGITS, before_run=break_in_decoding), EngineConfig(max_slots=2, max_len=48)
    )
    is_broken = True
    sut.submit(request(SYSTEM))
    sut.run()
    is_broken = False
    assert run(sut, SYSTEM).num_reused == 0


def test_decoding_over_a_kept_prompt_does_not_spoil_it() -> None:
    sut = engine()
    low = sut.submit(request([*SYSTEM, 20], max_new_tokens=12))
    others = [sut.submit(request([number] * 6, max_new_tokens=25)) for number in (5, 6)]
    while sut.end_of(low) is None:
        sut.stepper.step()
    for _ in range(3):
        sut.stepper.step()
    assert [other.slot for other in others] == [1, 2], "slot 0 is a hole that decode steps run through"
    again = sut.submit(request([*SYSTEM, 21]))
    sut.run()
    assert again.num_reused == 8
    assert sut.tokens_of(again) == greedy([*SYSTEM, 21], 4)
    for number, other in zip((5, 6), others, strict=True):
        assert sut.tokens_of(other) == greedy([number] * 6, 25)


def test_a_deadline_counts_only_what_is_left_to_compute() -> None:
    config = EngineConfig(max_slots=2, max_len=48, max_prefill_tokens_per_step=CHUNK)
    sut = SteppedEngine(FakeDecoder(LOGITS), config, prefill_token_s=0.1)
    run(sut, [1] * 12)
    sut.submit(request([7], max_new_tokens=30))
    sut.stepper.step()
    soon_s = sut.clock() + 0.5
    known = sut.submit(SequenceRequest("r", np.array([1] * 13), 1, deadline_s=soon_s))
    unknown = sut.submit(SequenceRequest("r", np.array([2] * 13), 1, deadline_s=soon_s))
    sut.run()
    assert isinstance(sut.end_of(known), TokenDelta)
    assert not isinstance(sut.end_of(unknown), TokenDelta)


@pytest.mark.parametrize("max_kept_prefixes", [0, 8])
def test_several_sequences_of_a_prompt_compute_it_once(max_kept_prefixes: int) -> None:
    sut = engine(max_kept_prefixes=max_kept_prefixes)
    asked = SequenceRequest(
        "r", np.array(SYSTEM), 6, sampling=SamplingParams(temperature=1.0, seed=3), num_sequences=3
    )
    sequences = sut.submit_all(asked)
    sut.run()
    assert prompt_tokens_computed(sut) == len(SYSTEM)
    for index, sequence in enumerate(sequences):
        alone = engine()
        single = alone.submit(
            SequenceRequest(
                "r", np.array(SYSTEM), 6, sampling=SamplingParams(temperature=1.0, seed=3 + index)
            )
        )
        alone.run()
        assert sut.tokens_of(sequence) == alone.tokens_of(single)
    assert len({tuple(sut.tokens_of(sequence)) for sequence in sequences}) == 3


def test_more_sequences_than_slots_come_one_after_the_other() -> None:
    sut = engine(max_slots=2)
    asked = SequenceRequest(
        "r", np.array(SYSTEM), 6, sampling=SamplingParams(temperature=1.0, seed=3), num_sequences=5
    )
    sequences = sut.submit_all(asked)
    assert sut.scheduler.queue_tokens == len(SYSTEM), "the prompt counts once"
    sut.run()
    assert all(isinstance(sut.end_of(sequence), TokenDelta) for sequence in sequences)
    assert prompt_tokens_computed(sut) == len(SYSTEM)


def test_sequences_outlive_the_first_of_their_request() -> None:
    sut = engine()
    asked = SequenceRequest(
        "r", np.array(SYSTEM), 3, sampling=SamplingParams(temperature=1.0, seed=3), num_sequences=2
    )
    first, second = sut.submit_all(asked)
    sut.stepper.step()
    sut.stepper.abort(first, sut.clock())
    sut.run()
    assert len(sut.tokens_of(second)) == 3


def test_a_device_that_cannot_copy_computes_every_prompt() -> None:
    sut = engine()
    scheduler = type(sut.scheduler)(
        EngineConfig(max_prefill_tokens_per_step=CHUNK), num_slots=2, max_len=48, can_copy_slots=False
    )
    sut.scheduler = sut.stepper._scheduler = scheduler
    run(sut, SYSTEM)
    assert run(sut, SYSTEM).num_reused == 0


def test_the_longest_match_is_found_and_needs_a_whole_chunk() -> None:
    sut = Prefixes(chunk_tokens=CHUNK)
    sut.put(0, Prefix(np.arange(6), 6, "a"))
    sut.put(1, Prefix(np.arange(20), 14, "a"))
    sut.put(2, Prefix(np.arange(20), 20, "b"))
    assert sut.longest_match(np.arange(30), "a") == Match(1, 12)
    assert sut.longest_match(np.arange(8), "a") == Match(0, 4)
    assert sut.longest_match(np.arange(3), "a") is None
    assert sut.longest_match(np.arange(1, 30), "a") is None
    assert sut.longest_match(np.arange(30), None) is None
