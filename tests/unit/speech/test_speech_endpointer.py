"""Where utterances begin and end. The only clock is the audio: a frame is 32 ms."""

from __future__ import annotations

import pytest
from aimass_serving.errors import InvalidField
from aimass_speech.agreement import LocalAgreement
from aimass_speech.endpointer import Began, Ended, Endpointer, EndpointEvent, EndpointRules, Paused, WentOn
from hypothesis import given
from hypothesis import strategies as st

FRAME, RATE = 512, 16_000


def endpointer(**rules: float) -> Endpointer:
    return Endpointer(EndpointRules(**rules), frame_samples=FRAME, sample_rate_hz=RATE)


def frames(seconds: float) -> int:
    return round(seconds * RATE / FRAME)


def followed(subject: Endpointer, *stretches: tuple[float, float]) -> list[EndpointEvent]:
    """Feed stretches of `(probability, seconds)`."""
    return [
        event
        for probability, seconds in stretches
        for _ in range(frames(seconds))
        for event in subject.feed(probability)
    ]


def test_utterance_begins_with_its_lead_and_ends_after_the_silence() -> None:
    events = followed(endpointer(), (0.0, 1.0), (0.9, 1.0), (0.0, 1.0))
    began, paused, ended = events
    assert isinstance(began, Began)
    assert isinstance(paused, Paused)
    assert isinstance(ended, Ended)
    assert began.speech == frames(1.0) * FRAME
    assert began.start == began.speech - int(0.3 * RATE)
    assert ended.speech == frames(1.0) * FRAME * 2
    assert paused.at - ended.speech == pytest.approx(0.1 * RATE, abs=FRAME)


def test_short_pause_is_told_and_taken_back() -> None:
    events = followed(endpointer(), (0.9, 1.0), (0.0, 0.3), (0.9, 1.0), (0.0, 1.0))
    assert [type(event) for event in events] == [Began, Paused, WentOn, Paused, Ended]


def test_a_click_is_no_utterance() -> None:
    assert followed(endpointer(), (0.0, 1.0), (0.9, 0.06), (0.0, 2.0)) == []


def test_flush_ends_what_is_open_at_once_and_nothing_when_nothing_is() -> None:
    subject = endpointer()
    followed(subject, (0.9, 1.0))
    (ended,) = subject.finish(20_000)
    assert ended == Ended(20_000, 20_000)
    assert not subject.is_open
    assert subject.finish(30_000) == []


def test_speech_that_goes_on_behind_a_flush_begins_no_earlier_than_the_flush() -> None:
    subject = endpointer()
    followed(subject, (0.9, 1.0))
    flushed_at = frames(1.0) * FRAME + FRAME // 2  # within a frame, which is speech to its end
    subject.finish(flushed_at)
    assert followed(subject, (0.9, 1.0)) == [Began(flushed_at, flushed_at)]


def test_long_speech_is_cut_where_it_was_least_probable_and_goes_on_there() -> None:
    subject = endpointer()
    events = followed(subject, (0.9, 25.0), (0.6, 0.1), (0.9, 10.0))
    began, ended, again = events
    assert isinstance(ended, Ended)
    assert isinstance(again, Began)
    assert again.start == ended.end
    assert ended.end == pytest.approx(25 * RATE, abs=0.2 * RATE)
    assert subject.needed_from == again.start
    assert isinstance(began, Began)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 4)), max_size=30), st.floats(0.1, 5))
def test_utterances_never_overlap_and_audio_in_need_is_bounded(
    stretches: list[tuple[float, float]], end_silence_s: float
) -> None:
    subject, last_end, start, now = endpointer(end_silence_s=end_silence_s), 0, None, 0
    for probability, seconds in stretches:
        for _ in range(frames(seconds)):
            now += FRAME
            for event in subject.feed(probability):
                if isinstance(event, Began):
                    assert start is None
                    assert event.start >= last_end
                    start = event.start
                elif isinstance(event, Ended):
                    assert start is not None
                    assert event.end >= start
                    last_end, start = event.end, None
            assert now - subject.needed_from <= 29 * RATE
    assert subject.is_open == (start is not None)


def test_end_silence_outside_its_range_is_refused() -> None:
    with pytest.raises(InvalidField, match=r"config\.end_silence"):
        EndpointRules(end_silence_s=0.05)


def test_words_are_committed_when_two_readings_agree() -> None:
    agreement = LocalAgreement()
    assert agreement.take("ever tried").committed == ""
    second = agreement.take("ever tried ever fail")
    assert (second.committed, second.tentative) == ("ever tried", " ever fail")
    third = agreement.take("ever tried ever failed no")
    assert (third.committed, third.tentative) == ("ever tried ever", " failed no")
    assert third.stability == pytest.approx(15 / 25)


@given(st.lists(st.lists(st.sampled_from(["a", "b", "c"]), max_size=6), max_size=8))
def test_committed_words_never_change(readings: list[list[str]]) -> None:
    agreement, committed = LocalAgreement(), ""
    for reading in readings:
        interim = agreement.take(" ".join(reading))
        assert interim.committed.startswith(committed)
        committed = interim.committed
