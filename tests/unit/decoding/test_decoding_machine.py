"""Any order of joins, steps, cancels and passing time keeps the engine's promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from aimass_decoding.config import EngineConfig
from aimass_decoding.request import SamplingParams, SequenceRequest
from aimass_decoding.sequence import Sequence, Stage
from aimass_decoding.testing import FakeDecoder, SteppedEngine, hashed_logits
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

NUM_SLOTS = 3
CHUNK = 4
LOGITS = hashed_logits()


def expected_tokens(request: SequenceRequest) -> list[int]:
    """What a sequence gives when it runs alone."""
    alone = SteppedEngine(FakeDecoder(LOGITS), EngineConfig(max_slots=1, max_len=24))
    sequence = alone.submit(request)
    alone.run()
    return alone.tokens_of(sequence)


class EngineMachine(RuleBasedStateMachine):
    """Drives a stepped engine, and remembers what it must not forget."""

    live = Bundle("live")

    def __init__(self) -> None:
        super().__init__()
        config = EngineConfig(
            max_slots=NUM_SLOTS, max_len=24, max_prefill_tokens_per_step=CHUNK, max_queue_tokens=30
        )
        decoder = FakeDecoder(LOGITS, gives_every_position=True)
        self.engine = SteppedEngine(decoder, config, decode_s=0.1, prefill_token_s=0.05)
        self.submitted: list[Sequence] = []
        self.cancelled: set[Sequence] = set()

    @rule(
        target=live,
        num_prompt_tokens=st.integers(1, 26),
        max_new_tokens=st.integers(1, 12),
        priority=st.integers(-1, 1),
        deadline_in_s=st.none() | st.floats(0, 5),
        limit_in_s=st.none() | st.floats(0, 5),
        temperature=st.sampled_from([0.0, 1.0]),
        family=st.integers(0, 2),
        cache_salt=st.sampled_from(["", "other"]),
    )
    def join(
        self,
        num_prompt_tokens: int,
        max_new_tokens: int,
        priority: int,
        deadline_in_s: float | None,
        limit_in_s: float | None,
        temperature: float,
        family: int,
        cache_salt: str,
    ) -> Sequence:
        now_s, number = self.engine.clock(), len(self.submitted)
        request = SequenceRequest(
            f"r{number}",
            (np.arange(num_prompt_tokens) * 7 + family) % 32,
            max_new_tokens,
            cache_salt=cache_salt,
            sampling=SamplingParams(temperature=temperature, seed=number),
            priority=priority,
            deadline_s=None if deadline_in_s is None else now_s + deadline_in_s,
            time_limit_at_s=None if limit_in_s is None else now_s + limit_in_s,
        )
        sequence = self.engine.submit(request)
        self.submitted.append(sequence)
        return sequence

    @rule(num_sequences=st.integers(2, 4), num_prompt_tokens=st.integers(1, 12), family=st.integers(0, 2))
    def join_together(self, num_sequences: int, num_prompt_tokens: int, family: int) -> None:
        request = SequenceRequest(
            f"r{len(self.submitted)}",
            (np.arange(num_prompt_tokens) * 7 + family) % 32,
            6,
            sampling=SamplingParams(temperature=1.0, seed=9),
            num_sequences=num_sequences,
        )
        self.submitted.extend(self.engine.submit_all(request))

    @rule(sequence=consumes(live))
    def cancel(self, sequence: Sequence) -> None:
        if sequence.stage is not Stage.DONE:
            self.cancelled.add(sequence)
        self.engine.stepper.abort(sequence, self.engine.clock())

    @rule(num_steps=st.integers(1, 5))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.engine.stepper.step()

    @rule(seconds=st.floats(0, 2))
    def wait(self, seconds: float) -> None:
        self.engine.clock.advance(seconds)

    @invariant()
    def each_slot_has_one_owner(self) -> None:
        holders = [s.slot for s in self.submitted if s.stage in (Stage.PREFILLING, Stage.DECODING)]
        assert len(holders) == len(set(holders)) == self.engine.scheduler.num_active <= NUM_SLOTS

    @invariant()
    def kept_prompts_lie_in_free_slots(self) -> None:
        assert self.engine.scheduler.num_kept_prefixes <= NUM_SLOTS - self.engine.scheduler.num_active

    @invariant()
    def the_queue_counts_its_tokens(self) -> None:
        waiting = [s for s in self.submitted if s.stage is Stage.WAITING]
        assert self.engine.scheduler.num_waiting == len(waiting)
        assert self.engine.scheduler.queue_tokens == sum(s.num_queue_tokens for s in waiting)

    def teardown(self) -> None:
        self.engine.run()
        self.engine.stepper.step()
        for sequence in self.submitted:
            ended = self.engine.end_of(sequence) is not None
            assert ended != (sequence in self.cancelled), "every request has exactly one outcome"
            assert sequence.stage is Stage.DONE
            tokens = self.engine.tokens_of(sequence)
            assert tokens == expected_tokens(alone_as(sequence))[: len(tokens)]
        self.the_counters_add_up()

    def the_counters_add_up(self) -> None:
        counters = self.engine.stepper.counters
        outcomes = sum(counters.num_finished.values()) + counters.num_refused + counters.num_cancelled
        outcomes += counters.num_expired + counters.num_failed
        assert counters.num_submitted == outcomes == len(self.submitted)
        assert counters.num_failed == 0


def alone_as(sequence: Sequence) -> SequenceRequest:
    """Return what this sequence is when nobody hurries it, and its request asked for it only."""
    request = sequence.request
    sampling = replace(request.sampling, seed=request.sampling.seed + sequence.index)
    return SequenceRequest(request.request_id, request.prompt_ids, request.max_new_tokens, sampling=sampling)


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_prompts_start_in_order_and_no_stream_waits_for_two_chunks() -> None:
    config = EngineConfig(
        max_slots=NUM_SLOTS, max_len=24, max_prefill_tokens_per_step=CHUNK, max_queue_tokens=10_000
    )
    engine = SteppedEngine(FakeDecoder(LOGITS), config, decode_s=0.1, prefill_token_s=0.05)
    sequences = []
    for number in range(30):
        sequences.append(engine.submit(SequenceRequest(f"r{number}", np.arange(1 + number % 16), 8)))
        engine.stepper.step()
    engine.run()
    assert all(engine.end_of(sequence) for sequence in sequences)
    started = sorted(sequences, key=lambda sequence: sequence.prefill_ns)
    assert [sequence.number for sequence in started] == list(range(30))
    assert max(prompt_tokens_between_decodes(engine.runner.calls)) == CHUNK


def prompt_tokens_between_decodes(calls: list[tuple[str, int]]) -> list[int]:
    """Add up the prompt tokens between each decode step and the next."""
    sums = [0]
    for kind, count in calls:
        if kind == "decode":
            sums.append(0)
        else:
            sums[-1] += count
    return sums
