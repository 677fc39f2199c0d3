"""The engine that speaks for many: who is next, what waits, and what is freed."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import numpy as np
import pytest
from aimass.model.v1.synthesis_spec_pb2 import SpeechSynthesisSpec
from aimass_serving.compute import ComputePermit
from aimass_serving.errors import DeadlineExceeded, Draining, InvalidField, ModelFailed, Overloaded
from aimass_speech.config import SpeechConfig
from aimass_speech.synthesis.engine import SpokenStream, SynthesisEngine
from aimass_speech.synthesis.script import Mark, Pause, Spoken, SynthesisOptions
from aimass_speech.synthesis.speaking import MAX_CHUNK_FRAMES, Chunk, TimingKind
from aimass_speech.synthesis.testing import FRAMES_PER_SYMBOL, FakeVoice, Gate, letter_parts

LONG = Spoken("abcdefghij " * 80)


@asynccontextmanager
async def running(
    voice: FakeVoice, *, clock: Callable[[], float] = time.monotonic, **settings: Any
) -> AsyncIterator[SynthesisEngine]:
    engine = SynthesisEngine(
        letter_parts(voice),
        SpeechSynthesisSpec(),
        model="fake",
        config=SpeechConfig(**settings),
        permit=ComputePermit(),
        clock=clock,
    )
    engine.start()
    try:
        yield engine
    finally:
        await asyncio.to_thread(engine.close)


def opened(engine: SynthesisEngine, **settings: Any) -> SpokenStream:
    deadline_s = settings.pop("deadline_s", None)
    return engine.open(SynthesisOptions(**settings), seed=7, deadline_s=deadline_s)


async def spoken(engine: SynthesisEngine, *pieces: Any, **settings: Any) -> list[Chunk]:
    stream = opened(engine, **settings)
    await stream.feed(pieces)
    stream.complete()
    async with aclosing(stream.chunks()) as chunks:
        return [chunk async for chunk in chunks]


def joined(chunks: list[Chunk]) -> np.ndarray[Any, Any]:
    return np.concatenate([chunk.samples for chunk in chunks])


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110 - other tasks of this loop make it so
        await asyncio.sleep(0)


async def test_chunks_grow_and_the_same_seed_gives_the_same_audio() -> None:
    async with running(FakeVoice()) as engine:
        chunks = await spoken(engine, LONG)
        sizes = [len(chunk.samples) // FakeVoice.hop_samples for chunk in chunks]
        assert sizes[:5] == [12, 24, 48, 96, MAX_CHUNK_FRAMES]
        assert max(sizes) == MAX_CHUNK_FRAMES
        assert np.array_equal(joined(chunks), joined(await spoken(engine, LONG)))
        assert engine.num_open == 0


async def test_words_marks_and_pauses_have_their_times() -> None:
    async with running(FakeVoice()) as engine:
        chunks = await spoken(engine, Spoken("ab c"), Pause(2.5), Mark("here"), Spoken("d"), has_words=True)
    timings = [timing for chunk in chunks for timing in chunk.timings]
    symbol = FRAMES_PER_SYMBOL * FakeVoice.hop_samples
    pause = 2.5 * FakeVoice.sample_rate_hz
    assert [(t.kind, t.text, t.start, t.end) for t in timings] == [
        (TimingKind.WORD, "ab", 0, 2 * symbol),
        (TimingKind.WORD, "c", 3 * symbol, 4 * symbol),
        (TimingKind.MARK, "here", 4 * symbol + pause, 4 * symbol + pause),
        (TimingKind.WORD, "d", 4 * symbol + pause, 5 * symbol + pause),
    ]
    assert len(joined(chunks)) == 5 * symbol + pause


async def order_of_three(clock: Callable[[], float]) -> str:
    """Return whose chunks were computed one after the other, when b and c join a, which has begun."""
    gate = Gate()
    voice = FakeVoice(gate)
    async with running(voice, clock=clock) as engine:
        first = asyncio.ensure_future(spoken(engine, Spoken("aaaaaaaaa")))
        await asyncio.to_thread(gate.reached.wait, 10)
        others = [asyncio.ensure_future(spoken(engine, Spoken(9 * letter))) for letter in "bc"]
        await until(lambda: engine.num_open == 3)
        gate.open()
        await asyncio.gather(first, *others)
    return "".join(" abc"[number] for number in voice.rendered)


async def test_a_new_request_is_heard_before_an_old_one_goes_on() -> None:
    assert await order_of_three(clock=lambda: 0.0) == "abcabc"  # steps take no time: nobody can run dry


async def test_nobody_is_begun_while_a_listener_would_run_dry() -> None:
    seconds = itertools.count()  # a step takes longer than its audio lasts
    assert await order_of_three(clock=lambda: float(next(seconds))) == "aabbcc"


async def test_a_cancelled_request_costs_no_more_than_its_chunk() -> None:
    gate = Gate()
    voice = FakeVoice(gate)
    async with running(voice) as engine:
        task = asyncio.ensure_future(spoken(engine, LONG))
        await asyncio.to_thread(gate.reached.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.num_open == 0
        gate.open()
        await spoken(engine, Spoken("a"))
        assert voice.num_renders == 2


async def test_a_slow_reader_holds_a_bounded_number_of_chunks() -> None:
    voice = FakeVoice()
    async with running(voice, max_synthesis_ahead=3) as engine:
        slow = opened(engine)
        await slow.feed([LONG, LONG])
        slow.complete()
        others = await spoken(engine, LONG)  # who reads is served meanwhile
        assert voice.num_renders <= len(others) + 3
        async with aclosing(slow.chunks()) as chunks:
            assert len([chunk async for chunk in chunks]) > 20


async def test_more_requests_than_places_are_refused_with_a_time_to_come_back() -> None:
    async with running(FakeVoice(), max_synthesis_streams=2) as engine:
        held = [opened(engine), opened(engine)]
        with pytest.raises(Overloaded, match=r"2 requests are spoken; retry in 2\.0 s"):
            opened(engine)
        held[0].close()
        assert await spoken(engine, Spoken("a"))


async def test_a_deadline_ends_a_request_also_while_it_waits_for_text() -> None:
    async with running(FakeVoice()) as engine:
        with pytest.raises(DeadlineExceeded):
            opened(engine, deadline_s=time.monotonic() - 1)
        stream = opened(engine, deadline_s=time.monotonic() + 0.05)
        with pytest.raises(DeadlineExceeded):
            await anext(stream.chunks())


async def test_draining_ends_what_is_begun_and_takes_nothing_new() -> None:
    async with running(FakeVoice()) as engine:
        task = asyncio.ensure_future(spoken(engine, LONG))
        await until(lambda: engine.num_open == 1)
        draining = asyncio.ensure_future(engine.drain())
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            opened(engine)
        assert len(joined(await task)) > 0
        await draining


async def test_a_voice_that_fails_fails_its_request_alone() -> None:
    def fail() -> None:
        raise RuntimeError("broken")

    voice = FakeVoice(fail)
    async with running(voice) as engine:
        with pytest.raises(ModelFailed, match="RuntimeError"):
            await spoken(engine, Spoken("a"))
        voice.before_render = lambda: None
        assert await spoken(engine, Spoken("a"))


async def test_what_the_voice_lacks_is_reported_once_and_in_order() -> None:
    async with running(FakeVoice()) as engine:
        stream = opened(engine)
        await stream.feed([Spoken("a ☃ b 世 ☃, c!")])
        stream.complete()
        async with aclosing(stream.chunks()) as chunks:
            assert [chunk async for chunk in chunks]
        assert stream.unpronounceable == ["☃", "世"]
        with pytest.raises(InvalidField, match="this voice reads letters"):
            engine.check_options(SynthesisOptions(pronunciations={"a": "b"}))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"rate": 0.2}, "rate"),
        ({"volume_db": 17}, "volume_db"),
        ({"sample_rate_hz": 7_999}, "sample_rate_hz"),
        ({"pronunciations": {"": "a"}}, "pronunciations[0].word"),
        ({"pronunciations": {"two words": "a"}}, "pronunciations[0].word"),
        ({"pronunciations": {"a": " "}}, "pronunciations[0].ipa"),
        ({"pronunciations": {f"w{n}": "a" for n in range(201)}}, "pronunciations"),
    ],
)
def test_options_outside_their_range_are_refused_by_name(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        SynthesisOptions(**settings)
    assert caught.value.violations[0].field == f"options.{field}"
