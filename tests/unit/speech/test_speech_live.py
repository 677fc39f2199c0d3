"""A live stream with a detector and a recogniser of the test's own: no model, no clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from aimass_serving.errors import InvalidField
from aimass_speech.audio import AudioEncoding, AudioFormat, StreamDecoder
from aimass_speech.endpointer import Endpointer, EndpointRules
from aimass_speech.live_recognizer import (
    FinalRead,
    FlushAsked,
    FlushDone,
    InterimRead,
    LiveOptions,
    LiveRecognizer,
    SpeechChanged,
)
from aimass_speech.recognition import PhaseTimes, RecognitionOptions, Segment, Transcript
from aimass_speech.vocabulary import Vocabulary
from aimass_speech.window import Priority
from numpy.typing import NDArray

RATE, FRAME = 16_000, 512
PIECE = 640
"""Samples of a message: 40 ms."""


class LoudnessDetector:
    """Takes loud frames for speech, and some behind. Its first answer waits until the test lets it go."""

    def __init__(self, *, num_lingering: int = 0) -> None:
        self.is_free = asyncio.Event()
        self.num_calls = 0
        self._num_lingering = num_lingering
        self._rest = np.zeros(0, np.float32)
        self._num_quiet = num_lingering
        """Frames since the last loud one."""

    async def feed(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        self.num_calls += 1
        await self.is_free.wait()
        joined = np.concatenate([self._rest, samples])
        num_frames = len(joined) // FRAME
        self._rest = joined[num_frames * FRAME :]
        frames = joined[: num_frames * FRAME].reshape(num_frames, FRAME)
        return np.array([self._hear(frame) for frame in frames], np.float32)

    def _hear(self, frame: NDArray[np.float32]) -> float:
        self._num_quiet = 0 if np.abs(frame).max() > 0.1 else self._num_quiet + 1
        return float(self._num_quiet <= self._num_lingering)

    def restart(self) -> None:
        self._rest = np.zeros_like(self._rest)
        self._num_quiet = self._num_lingering


class LengthRecognizer:
    """Writes down how long an utterance is, and how urgent each reading was."""

    def __init__(self) -> None:
        self.priorities: list[Priority] = []
        self.drafts: list[tuple[int, ...]] = []

    def vocabulary(self, options: RecognitionOptions) -> Vocabulary:
        return Vocabulary()

    def is_busy(self, priority: object) -> bool:
        return False

    async def recognize_utterance(
        self,
        samples: NDArray[np.float32],
        *_: object,
        priority: Priority,
        draft_ids: tuple[int, ...],
        **__: object,
    ) -> Transcript:
        self.priorities.append(priority)
        self.drafts.append(draft_ids)
        segment = Segment(0, len(samples), f"{len(samples) / RATE:.1f} s", -0.1, 0.0, 0.0)
        heard = (len(self.priorities),)
        return Transcript([segment], "en", 1.0, len(samples), PhaseTimes(), token_ids=heard)


def recognizer(
    detector: LoudnessDetector,
    live: LiveOptions = LiveOptions(),  # noqa: B008 - frozen
    recognizes: LengthRecognizer | None = None,
    rules: EndpointRules = EndpointRules(),  # noqa: B008 - frozen
) -> LiveRecognizer:
    engine: Any = recognizes or LengthRecognizer()
    listening: Any = detector
    return LiveRecognizer(
        engine,
        listening,
        StreamDecoder(AudioFormat(AudioEncoding.PCM_S16LE, RATE)),
        Endpointer(rules, frame_samples=FRAME, sample_rate_hz=RATE),
        RecognitionOptions(),
        live,
    )


def messages(loudness: float, seconds: float) -> list[bytes | FlushAsked]:
    samples = np.full(int(seconds * RATE), int(loudness * 32767), "<i2")
    return [samples[place : place + PIECE].tobytes() for place in range(0, len(samples), PIECE)]


async def test_audio_that_waits_is_looked_at_in_one_go_and_nothing_of_it_is_lost() -> None:
    detector = LoudnessDetector()
    sent = [*messages(0, 0.5), *messages(0.5, 2.0), FlushAsked("a"), *messages(0, 1.0)]

    async def requests() -> AsyncIterator[bytes | FlushAsked]:
        for request in sent:
            yield request
        detector.is_free.set()  # everything was sent before the first frame was looked at

    events = [event async for event in recognizer(detector).events(requests())]
    (final,) = [event for event in events if isinstance(event, FinalRead)]
    assert (final.start / RATE, final.end / RATE) == pytest.approx((0.2, 2.5), abs=0.04)
    assert events.index(final) < events.index(FlushDone("a"))
    assert detector.num_calls < 12 < len(sent)


async def test_a_stream_asks_for_no_more_audio_than_it_can_hold() -> None:
    detector, num_sent = LoudnessDetector(), 0

    async def requests() -> AsyncIterator[bytes | FlushAsked]:
        nonlocal num_sent
        for request in messages(0.0, 60.0):
            yield request
            num_sent += 1

    events = recognizer(detector).events(requests())
    reading = asyncio.ensure_future(anext(events, None))
    for _ in range(5000):
        await asyncio.sleep(0)
    assert 50 < num_sent < 300
    detector.is_free.set()
    assert await reading is None
    assert num_sent == 1500


async def test_what_is_wrong_with_a_request_is_told_after_the_audio_before_it() -> None:
    detector = LoudnessDetector()
    detector.is_free.set()

    async def requests() -> AsyncIterator[bytes | FlushAsked]:
        for request in [*messages(0.5, 1.0), *messages(0, 1.0)]:
            yield request
        raise InvalidField("request", expected="audio", got="config")

    events = recognizer(detector).events(requests())
    begin = await anext(events)
    assert isinstance(begin, SpeechChanged)
    assert begin.is_begin

    async def read_on() -> None:
        async for _ in events:
            pass

    with pytest.raises(InvalidField, match="got 'config'"):
        await read_on()


async def test_a_pause_is_read_once_as_a_final_that_is_told_as_an_interim_meanwhile() -> None:
    detector, engine = LoudnessDetector(), LengthRecognizer()
    detector.is_free.set()
    stream = recognizer(detector, LiveOptions(has_interims=True, min_interim_s=1.1), engine)

    async def paced() -> AsyncIterator[bytes | FlushAsked]:
        for message in (*messages(0.5, 1.0), *messages(0.0, 0.4)):
            yield message
            await asyncio.sleep(0)

    events = [event async for event in stream.events(paced())]
    told = [event for event in events if isinstance(event, InterimRead | FinalRead)]
    # An interim would have been due 1.1 s after the beginning, when speech had fallen silent.
    assert engine.priorities == [Priority.FINAL]
    assert [type(event) for event in told] == [InterimRead, FinalRead]
    assert told[0].transcript is told[1].transcript
    assert told[0].transcript.num_speech_samples == pytest.approx(1.1 * RATE, abs=2 * PIECE)


async def test_what_a_reading_heard_is_the_draft_of_the_next_of_the_same_utterance() -> None:
    detector, engine = LoudnessDetector(), LengthRecognizer()
    detector.is_free.set()
    stream = recognizer(detector, LiveOptions(has_interims=True, min_interim_s=0.2), engine)

    async def paced() -> AsyncIterator[bytes | FlushAsked]:
        for message in (*messages(0.5, 1.0), FlushAsked("one"), *messages(0.5, 0.3), FlushAsked("two")):
            yield message
            await asyncio.sleep(0.001)

    finals = [event async for event in stream.events(paced()) if isinstance(event, FinalRead)]
    first_of_second = engine.priorities.index(Priority.FINAL) + 1
    assert len(finals) == 2
    assert engine.drafts[:first_of_second] == [(), *((read,) for read in range(1, first_of_second))]
    assert engine.drafts[first_of_second] == ()


async def test_what_a_detector_still_hears_behind_a_flush_begins_no_utterance() -> None:
    detector = LoudnessDetector(num_lingering=3)
    detector.is_free.set()
    stream = recognizer(detector, rules=EndpointRules(end_silence_s=5.0))
    said = [*messages(0.5, 1.0), FlushAsked("a"), *messages(0, 1.0)]

    async def requests() -> AsyncIterator[bytes | FlushAsked]:
        for request in (*said, *said):
            yield request

    finals = [event async for event in stream.events(requests()) if isinstance(event, FinalRead)]
    # A stretch that lingers is shorter than an utterance, but is one with speech behind it.
    assert [(final.start / RATE, final.end / RATE) for final in finals] == [
        pytest.approx((0.0, 1.0), abs=0.04),
        pytest.approx((1.7, 3.0), abs=0.04),
    ]
