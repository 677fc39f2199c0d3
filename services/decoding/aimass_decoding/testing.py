"""A decoder without a model, for tests: its cache holds the tokens, its logits are a function of them.

So a test sees at once when a token lands in the wrong slot or place. Runs through the real runner and engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from aimass_serving.compute import ComputePermit
from aimass_serving.testing import FakeSession
from numpy.typing import NDArray

from aimass_decoding.config import EngineConfig
from aimass_decoding.engine import DecodingEngine
from aimass_decoding.runner import DecoderGeometry

LogitsOf = Callable[[tuple[int, ...]], NDArray[np.float32]]
"""Gives the logits [vocab] that follow a sequence of tokens."""


def fake_geometry(*, vocab_size: int = 32, max_positions: int = 64) -> DecoderGeometry:
    """Return the sizes of a decoder whose cache has room for one number a token."""
    return DecoderGeometry(
        num_layers=1, num_kv_heads=1, head_dim=1, vocab_size=vocab_size, max_positions=max_positions
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
    tokens of each run are in `runs`.
    """

    def __init__(
        self, logits_of: LogitsOf, *, before_run: Callable[[NDArray[np.int64]], None] | None = None
    ) -> None:
        self.logits_of = logits_of
        self.before_run = before_run
        self.runs: list[tuple[int, int]] = []

    def session(self) -> FakeSession:
        """Return a session that runs this decoder."""
        return FakeSession(self)

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Write the tokens into the cache, in place, and return the logits."""
        input_ids, cache = feeds["input_ids"], feeds["past.0.key"]
        self.runs.append((input_ids.shape[0], input_ids.shape[1]))
        if self.before_run is not None:
            self.before_run(input_ids)
        _check(feeds)
        rows = [self._run_row(feeds, row, cache[row, 0, :, 0]) for row in range(len(input_ids))]
        return {"logits": np.stack(rows)}

    def _run_row(
        self, feeds: Mapping[str, NDArray[Any]], row: int, memory: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        length = int(feeds["seqlens_k"][row]) + 1
        memory[feeds["position_ids"][row]] = feeds["input_ids"][row]
        return self.logits_of(tuple(int(token) for token in memory[:length]))


def _check(feeds: Mapping[str, NDArray[Any]]) -> None:
    position_ids, lengths = feeds["position_ids"], feeds["seqlens_k"] + 1
    batch, seq = position_ids.shape
    assert np.array_equal(position_ids[:, -1] + 1, lengths), "seqlens_k is the length after the step minus 1"
    assert feeds["total_len"][0] == lengths.max(), "total_len is the largest length after the step"
    assert (np.diff(position_ids, axis=1) == 1).all(), "the tokens of a chunk follow one another"
    assert (feeds["last_idx"] == seq - 1).all(), "last_idx is the last token of the chunk"
    assert batch == 1 or seq == 1, "several tokens at once only at batch 1"


@contextmanager
def fake_engine(
    decoder: FakeDecoder | LogitsOf,
    config: EngineConfig | None = None,
    *,
    vocab_size: int = 32,
    max_positions: int = 64,
    model: str = "fake",
) -> Iterator[DecodingEngine]:
    """Run an engine on a fake decoder, and close it at the end."""
    fake = decoder if isinstance(decoder, FakeDecoder) else FakeDecoder(decoder)
    geometry = fake_geometry(vocab_size=vocab_size, max_positions=max_positions)
    engine = DecodingEngine(
        fake.session(), geometry, config or EngineConfig(), model=model, permit=ComputePermit()
    )
    engine.start()
    try:
        yield engine
    finally:
        engine.close()
