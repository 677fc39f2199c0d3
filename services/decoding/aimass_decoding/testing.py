"""A decoder without a model, for tests: its cache holds the tokens, its logits are a function of them.

So a test sees at once when a token lands in the wrong slot or place. Runs through the real runner and engine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
from aimass_serving.compute import ComputePermit
from aimass_serving.session import TensorInfo
from aimass_serving.testing import FakeSession
from numpy.typing import NDArray

from aimass_decoding.config import EngineConfig
from aimass_decoding.cross_attention import SourceMemory
from aimass_decoding.engine import DecodingEngine
from aimass_decoding.outlet import Event
from aimass_decoding.request import SequenceRequest, TokenDelta
from aimass_decoding.runner import LAST_IDX, DecoderGeometry, DecoderRunner, Runner
from aimass_decoding.sampler import SamplingState
from aimass_decoding.scheduler import Scheduler
from aimass_decoding.sequence import Sequence as EngineSequence
from aimass_decoding.stepper import Stepper

LogitsOf = Callable[[tuple[int, ...]], NDArray[np.float32]]
"""Gives the logits [vocab] that follow a sequence of tokens."""


ADAPTER_STRIDE = 1000
"""A fake decoder remembers a token as itself plus this times the number of the adapter it ran with."""


def fake_geometry(*, vocab_size: int = 32, max_positions: int = 64, num_adapters: int = 0) -> DecoderGeometry:
    """Return the sizes of a decoder whose cache has room for one number a token."""
    return DecoderGeometry(
        num_layers=1,
        num_kv_heads=1,
        head_dim=1,
        vocab_size=vocab_size,
        max_positions=max_positions,
        num_adapters=num_adapters,
    )


def hashed_logits(vocab_size: int = 32) -> LogitsOf:
    """Return logits that depend on every token of the sequence and on its order, but on nothing else."""

    def logits_of(tokens: tuple[int, ...]) -> NDArray[np.float32]:
        mixed = 1
        for token in tokens:
            mixed = (mixed * 31 + token + 1) % 1_000_003
        return np.sin(np.arange(vocab_size) * (1 + mixed % 97) + mixed).astype(np.float32)

    return logits_of


def scripted_logits(
    script: Mapping[tuple[int, ...], Sequence[int]], *, vocab_size: int, otherwise: int
) -> LogitsOf:
    """Return logits that continue each prompt of the script with its tokens, then with `otherwise`."""

    def next_token(tokens: tuple[int, ...]) -> int:
        for prompt, continuation in script.items():
            place = len(tokens) - len(prompt)
            if tokens[: len(prompt)] == prompt and tokens[len(prompt) :] == tuple(continuation[:place]):
                return continuation[place] if place < len(continuation) else otherwise
        return otherwise

    def logits_of(tokens: tuple[int, ...]) -> NDArray[np.float32]:
        logits = np.zeros(vocab_size, np.float32)
        logits[next_token(tokens)] = 10
        return logits

    return logits_of


class FakeDecoder:
    """A decoder graph in Python, with the inputs and outputs of the graph contract.

    It checks its inputs as the real graph relies on them. `before_run` is called on the engine thread before
    each run with the `input_ids` [batch, seq]: a test may wait in it, or raise. The numbers of rows and of
    tokens of each run are in `runs`. With `gives_every_position` it takes drafts.
    """

    def __init__(
        self,
        logits_of: LogitsOf,
        *,
        before_run: Callable[[NDArray[np.int64]], None] | None = None,
        gives_every_position: bool = False,
    ) -> None:
        self.logits_of = logits_of
        self._inputs = [TensorInfo(LAST_IDX, np.dtype(np.int64), ("batch", "asked"))][:gives_every_position]
        self.before_run = before_run
        self.runs: list[tuple[int, int]] = []

    def session(self) -> FakeSession:
        """Return a session that runs this decoder."""
        return FakeSession(self, inputs=self._inputs)

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Write the tokens into the cache, in place, and return the logits."""
        input_ids, cache = feeds["input_ids"], feeds["past.0.key"]
        self.runs.append((input_ids.shape[0], input_ids.shape[1]))
        if self.before_run is not None:
            self.before_run(input_ids)
        _check(feeds)
        rows = [self._run_row(feeds, row, cache[row, 0, :, 0]) for row in range(len(input_ids))]
        return {"logits": np.concatenate(rows)}

    def _run_row(
        self, feeds: Mapping[str, NDArray[Any]], row: int, memory: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        positions = feeds["position_ids"][row]
        adapter = feeds["adapter"][row] if "adapter" in feeds else 0
        memory[positions] = feeds["input_ids"][row] + ADAPTER_STRIDE * adapter
        lengths = positions[feeds["last_idx"][row]] + 1
        return np.stack([self.logits_of(tuple(int(t) for t in memory[:length])) for length in lengths])


def _check(feeds: Mapping[str, NDArray[Any]]) -> None:
    position_ids, lengths = feeds["position_ids"], feeds["seqlens_k"] + 1
    batch, seq = position_ids.shape
    assert np.array_equal(position_ids[:, -1] + 1, lengths), "seqlens_k is the length after the step minus 1"
    assert feeds["total_len"][0] == lengths.max(), "total_len is the largest length after the step"
    assert (np.diff(position_ids, axis=1) == 1).all(), "the tokens of a chunk follow one another"
    asked = feeds["last_idx"]
    assert (asked == np.arange(seq - asked.shape[1], seq)).all(), (
        "the last positions of a chunk are asked for"
    )
    assert batch == 1 or seq == 1, "several tokens at once only at batch 1"


@contextmanager
def fake_engine(
    decoder: FakeDecoder | LogitsOf,
    config: EngineConfig | None = None,
    *,
    vocab_size: int = 32,
    max_positions: int = 64,
    num_adapters: int = 0,
    is_started: bool = True,
    draft: FakeDecoder | None = None,
) -> Iterator[DecodingEngine]:
    """Run an engine on a fake decoder, and close it at the end."""
    fake = decoder if isinstance(decoder, FakeDecoder) else FakeDecoder(decoder)
    geometry = fake_geometry(vocab_size=vocab_size, max_positions=max_positions, num_adapters=num_adapters)
    engine = DecodingEngine(
        fake.session(),
        geometry,
        config or EngineConfig(),
        model="fake",
        permit=ComputePermit(),
        draft_session=draft.session() if draft else None,
    )
    if is_started:
        engine.start()
    try:
        yield engine
    finally:
        engine.close()


class FakeClock:
    """A clock in seconds that only moves when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds


class InlineExecutor(Executor):
    """Does at once, in the caller's thread, what it is given."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class SteppedEngine:
    """The engine without its thread: a test submits, aborts and steps, and moves the clock.

    A run of the fake decoder takes `decode_s` seconds of the fake clock, or `prefill_token_s` for each prompt
    token; one of the `draft`, a graph that guesses, `guess_s`.
    """

    def __init__(
        self,
        decoder: FakeDecoder,
        config: EngineConfig,
        *,
        decode_s: float = 0.0,
        prefill_token_s: float = 0.0,
        geometry: DecoderGeometry | None = None,
        draft: FakeDecoder | None = None,
        guess_s: float = 0.0,
    ) -> None:
        geometry = geometry or fake_geometry()
        slots, max_len = config.num_slots_of(geometry), config.max_len_of(geometry)
        self.clock = FakeClock()
        self.decoder = decoder
        inner = DecoderRunner(decoder.session(), geometry, max_slots=slots, max_len=max_len)
        self.runner = TimedRunner(inner, self.clock, decode_s=decode_s, prefill_token_s=prefill_token_s)
        self.draft_runner: TimedRunner | None = None
        if draft is not None:
            guessing = DecoderRunner(
                draft.session(), geometry, max_slots=slots, max_len=max_len, slots_of=inner
            )
            self.draft_runner = TimedRunner(guessing, self.clock, decode_s=guess_s, prefill_token_s=guess_s)
        self.scheduler = Scheduler(
            config,
            num_slots=slots,
            max_len=max_len,
            max_draft_tokens=config.max_draft_tokens if inner.gives_every_position else 0,
        )
        self.events: dict[EngineSequence, list[Event]] = defaultdict(list)
        self.stepper = Stepper(
            self.runner,
            self.scheduler,
            model="fake",
            permit=nullcontext(),
            mask_executor=InlineExecutor(),
            draft_runner=self.draft_runner,
            publish=self._publish,
            clock=self.clock,
            wall_clock_ns=lambda: int(self.clock() * 1e9),
        )
        self._num_submitted = 0

    def submit(self, request: SequenceRequest) -> EngineSequence:
        """Hand in a request, as the engine thread would find it in its inbox."""
        return self.submit_all(request)[0]

    def submit_all(self, request: SequenceRequest) -> list[EngineSequence]:
        """Hand in a request; return all of its sequences."""
        first = self._num_submitted
        self._num_submitted += request.num_sequences
        group = first if request.num_sequences > 1 else None
        sequences = [
            fake_sequence(request, number=first + index, now_s=self.clock(), group=group, index=index)
            for index in range(request.num_sequences)
        ]
        for sequence in sequences:
            self.stepper.submit(sequence)
        return sequences

    def run(self) -> None:
        """Step until nothing is left to do."""
        while self.scheduler.has_work:
            self.stepper.step()

    def tokens_of(self, sequence: EngineSequence) -> list[int]:
        """Return every token that was published for a sequence."""
        deltas = [event for event in self.events[sequence] if isinstance(event, TokenDelta)]
        return [token_id for delta in deltas for token_id in delta.token_ids]

    def end_of(self, sequence: EngineSequence) -> Event | None:
        """Return the error or the delta with a finish that ended a sequence; None while it runs."""
        ends = [e for e in self.events[sequence] if not isinstance(e, TokenDelta) or e.finish is not None]
        assert len(ends) <= 1, "a sequence ends once"
        return ends[0] if ends else None

    def _publish(self, events: list[tuple[EngineSequence, Event]]) -> None:
        for sequence, event in events:
            assert self.end_of(sequence) is None, "nothing is published after the end"
            self.events[sequence].append(event)


class TimedRunner:
    """A runner that lets a fake clock pass: `decode_s` a decode step, `prefill_token_s` a prompt token.

    `calls` holds `("prefill", tokens)` and `("decode", rows)` in order.
    """

    def __init__(self, inner: Runner, clock: FakeClock, *, decode_s: float, prefill_token_s: float) -> None:
        self._inner = inner
        self._clock = clock
        self._decode_s = decode_s
        self._prefill_token_s = prefill_token_s
        self.calls: list[tuple[str, int]] = []

    @property
    def can_copy_slots(self) -> bool:
        return self._inner.can_copy_slots

    @property
    def gives_every_position(self) -> bool:
        return self._inner.gives_every_position

    def prefill(self, slot: int, token_ids: NDArray[np.int64], *, start: int) -> NDArray[np.float32]:
        self.calls.append(("prefill", len(token_ids)))
        self._clock.advance(len(token_ids) * self._prefill_token_s)
        return self._inner.prefill(slot, token_ids, start=start)

    def prefill_all(
        self, slot: int, token_ids: NDArray[np.int64], *, start: int, first: int = 0
    ) -> NDArray[np.float32]:
        self.calls.append(("prefill", len(token_ids)))
        self._clock.advance(len(token_ids) * self._prefill_token_s)
        return self._inner.prefill_all(slot, token_ids, start=start, first=first)

    def decode(self, token_ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        self.calls.append(("decode", len(token_ids)))
        self._clock.advance(self._decode_s)
        return self._inner.decode(token_ids, lengths)

    def copy_slot(self, source: int, target: int, *, num_tokens: int) -> None:
        self._inner.copy_slot(source, target, num_tokens=num_tokens)

    def set_adapter(self, slot: int, adapter: int) -> None:
        self._inner.set_adapter(slot, adapter)

    def set_memory(self, slot: int, memory: SourceMemory | None) -> None:
        self._inner.set_memory(slot, memory)

    def copy_memory(self, source: int, target: int) -> None:
        self._inner.copy_memory(source, target)


def fake_sequence(
    request: SequenceRequest,
    *,
    number: int = 0,
    now_s: float = 0.0,
    group: int | None = None,
    index: int = 0,
) -> EngineSequence:
    """Return a sequence as it enters the scheduler."""
    return EngineSequence(
        request,
        number=number,
        arrival_s=now_s,
        submitted_ns=int(now_s * 1e9),
        sampling=SamplingState(request, index=index),
        group=group,
        index=index,
        last_progress_s=now_s,
    )
