"""A sequence chooses only what its mask allows, and a mask's faults stay its own."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from aimass_decoding.config import EngineConfig
from aimass_decoding.request import FinishReason, SamplingParams, SequenceRequest, TokenDelta, TokenMask
from aimass_decoding.testing import FakeDecoder, SteppedEngine, fake_engine, hashed_logits
from aimass_serving.errors import InvalidField, ModelFailed
from numpy.typing import NDArray

VOCAB = 32


class Alternating:
    """Allows even tokens, then odd ones, in turn; notes what it is told and on which thread."""

    def __init__(self) -> None:
        self.accepted: list[int] = []
        self.threads: set[str] = set()

    def allowed(self) -> NDArray[np.uint32]:
        self.threads.add(threading.current_thread().name)
        return np.array([0x55555555 << (len(self.accepted) % 2)], np.uint32)

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)


def request(new_mask: Callable[[], TokenMask] | None, **settings: object) -> SequenceRequest:
    return SequenceRequest("r", np.array([1, 2, 3]), 6, new_mask=new_mask, **settings)  # type: ignore[arg-type]


def stepped() -> SteppedEngine:
    return SteppedEngine(FakeDecoder(hashed_logits()), EngineConfig(max_len=40))


def test_every_token_is_one_that_the_mask_allows() -> None:
    sut, mask = stepped(), Alternating()
    sequence = sut.submit(request(lambda: mask))
    free = sut.submit(request(None))
    sut.run()
    tokens = sut.tokens_of(sequence)
    assert [token % 2 for token in tokens] == [0, 1, 0, 1, 0, 1]
    assert mask.accepted == tokens[:-1], "the last one needs no mask after it"
    alone = stepped()
    expected = alone.submit(request(None))
    alone.run()
    assert sut.tokens_of(free) == alone.tokens_of(expected)


async def test_masks_are_computed_beside_the_engine_thread() -> None:
    mask = Alternating()
    with fake_engine(hashed_logits()) as engine:
        deltas = [delta async for delta in engine.generate(request(lambda: mask))]
        stats = engine.stats()
    assert sum(len(delta.token_ids) for delta in deltas) == 6
    assert all(name.startswith("masks") for name in mask.threads)
    assert stats.mask_wait_ms["count"] == 6


class Failing(Alternating):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def accept(self, token_id: int) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(RuntimeError("secret"), ModelFailed), (InvalidField("guide", expected="x", got="y"), InvalidField)],
)
def test_a_mask_that_fails_ends_its_own_sequence_only(raised: Exception, expected: type[Exception]) -> None:
    sut = stepped()
    broken = sut.submit(request(lambda: Failing(raised)))
    other = sut.submit(request(Alternating))
    sut.run()
    end = sut.end_of(broken)
    assert isinstance(end, expected)
    assert "secret" not in str(end)
    assert len(sut.tokens_of(other)) == 6
    assert sut.stepper.counters.num_failed == 1


def test_a_mask_that_cannot_be_made_ends_the_sequence() -> None:
    def refuse() -> TokenMask:
        raise InvalidField("guide", expected="a grammar", got="nonsense")

    sut = stepped()
    sequence = sut.submit(request(refuse))
    sut.run()
    assert isinstance(sut.end_of(sequence), InvalidField)


async def test_a_mask_that_takes_too_long_ends_the_sequence() -> None:
    is_over = threading.Event()

    class Endless(Alternating):
        def allowed(self) -> NDArray[np.uint32]:
            is_over.wait(10)
            return super().allowed()

    with fake_engine(hashed_logits(), EngineConfig(max_mask_wait_s=0.01)) as engine:
        with pytest.raises(ModelFailed):
            async for _ in engine.generate(request(Endless)):
                pass
        is_over.set()
        deltas = [delta async for delta in engine.generate(request(Alternating))]
    assert deltas[-1].finish is not None


def test_a_mask_that_allows_nothing_ends_the_sequence() -> None:
    class Nothing(Alternating):
        def allowed(self) -> NDArray[np.uint32]:
            return np.zeros(1, np.uint32)

    sut = stepped()
    sequence = sut.submit(request(Nothing))
    sut.run()
    assert isinstance(sut.end_of(sequence), ModelFailed)


def test_a_mask_may_end_the_text_before_the_least_number_of_tokens() -> None:
    class Only(Alternating):
        def allowed(self) -> NDArray[np.uint32]:
            return np.array([1 << 7], np.uint32)

    sut = stepped()
    sequence = sut.submit(request(Only, eos_token_ids=frozenset([7]), min_new_tokens=3))
    sut.run()
    end = sut.end_of(sequence)
    assert isinstance(end, TokenDelta)
    assert end.finish is not None
    assert end.finish.reason is FinishReason.EOS


def test_each_sequence_of_a_request_has_a_mask_of_its_own() -> None:
    made: list[Alternating] = []

    def new_mask() -> Alternating:
        made.append(Alternating())
        return made[-1]

    sut = stepped()
    sut.submit_all(request(new_mask, num_sequences=3, sampling=SamplingParams(temperature=1.0)))
    sut.run()
    assert len(made) == 3
    assert all(len(mask.accepted) == 5 for mask in made)
