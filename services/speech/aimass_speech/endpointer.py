"""Where utterances of a live stream begin and end. Pure: its only clock is the audio itself.

Silence, speech, perhaps over after a short silence, over after a longer one; or on, when speech goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

from aimass_serving.errors import InvalidField

from aimass_speech.speech_spans import DetectionOptions, SpeechSpan, SpeechStarted, SpeechTracker

MIN_END_SILENCE_S, MAX_END_SILENCE_S = 0.1, 5.0
_DIP_S = 0.06
"""Silence that is common within words."""


@dataclass(frozen=True, slots=True)
class EndpointRules:
    """When an utterance begins and ends."""

    end_silence_s: float = 0.5
    """Silence that ends an utterance."""
    pause_s: float = 0.1
    """Silence after which an utterance may be over: its text is decoded in advance."""
    lead_s: float = 0.3
    """Audio before the beginning of speech that belongs to the utterance."""
    max_utterance_s: float = 28.0
    """A longer one is cut where speech was least probable of late."""
    cut_window_s: float = 6.0
    """How far back such a cut may lie."""
    min_speech_s: float = 0.1
    """Shorter speech is no utterance."""
    threshold: float = 0.5

    def __post_init__(self) -> None:
        """Refuse values outside their range, naming the field as the wire names it."""
        if not MIN_END_SILENCE_S <= self.end_silence_s <= MAX_END_SILENCE_S:
            raise InvalidField(
                "config.end_silence",
                expected=f"{MIN_END_SILENCE_S:g} to {MAX_END_SILENCE_S:g} seconds",
                got=self.end_silence_s,
            )


@dataclass(frozen=True, slots=True)
class Began:
    """An utterance began: its audio starts at `start`, the speech in it at `speech`."""

    start: int
    speech: int


@dataclass(frozen=True, slots=True)
class Paused:
    """Nothing was said for a while: the utterance may be over."""

    at: int


@dataclass(frozen=True, slots=True)
class WentOn:
    """Speech went on after a pause."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The utterance is over: its audio ends at `end`, the speech in it at `speech`."""

    end: int
    speech: int


EndpointEvent = Began | Paused | WentOn | Ended


class Endpointer:
    """Follows one stream of probabilities of speech, frame by frame."""

    def __init__(self, rules: EndpointRules, *, frame_samples: int, sample_rate_hz: int) -> None:
        self._rules = rules
        self._frame = frame_samples
        self._rate = sample_rate_hz
        options = DetectionOptions(
            threshold=rules.threshold,
            min_speech_s=rules.min_speech_s,
            min_silence_s=rules.end_silence_s,
            padding_s=0,
        )
        self._tracker = SpeechTracker(options, frame_samples=frame_samples, sample_rate_hz=sample_rate_hz)
        self._now = 0
        self._start: int | None = None
        self._last_end = 0
        self._is_paused = False
        self._recent: list[float] = []

    @property
    def is_open(self) -> bool:
        """Whether an utterance has begun and not ended."""
        return self._start is not None

    @property
    def is_falling_silent(self) -> bool:
        """Whether speech has been silent for longer than within a word: perhaps it is over."""
        return self._tracker.silent_for > _DIP_S * self._rate

    @property
    def needed_from(self) -> int:
        """First sample that may still belong to an utterance: audio before it can be forgotten."""
        if self._start is not None:
            return self._start
        speech = self._tracker.open_since
        return max(self._last_end, (self._now if speech is None else speech) - self._lead)

    def feed(self, probability: float) -> list[EndpointEvent]:
        """Take the next frame's probability; return what it decided, in order."""
        self._now += self._frame
        events: list[EndpointEvent] = []
        for event in self._tracker.feed(probability):
            events += self._on(event)
        self._recent.append(probability)
        del self._recent[: -int(self._rules.cut_window_s * self._rate / self._frame)]
        if self._start is not None:
            events += self._pauses()
            events += self._cut()
        return events

    def finish(self, num_samples: int) -> list[EndpointEvent]:
        """End an open utterance at sample `num_samples`, now."""
        return [out for event in self._tracker.finish(num_samples) for out in self._on(event)]

    @property
    def _lead(self) -> int:
        return int(self._rules.lead_s * self._rate)

    def _on(self, event: SpeechStarted | SpeechSpan) -> list[EndpointEvent]:
        if isinstance(event, SpeechStarted):
            if self._start is not None:
                return []
            self._start = max(self._last_end, event.at - self._lead)
            self._is_paused = False
            # A frame that an ended utterance shares may be the first of the next.
            return [Began(self._start, max(self._start, event.at))]
        if self._start is None:
            return []
        end = min(max(self._now, event.end), event.end + self._lead)
        return [self._ended(end, event.end)]

    def _ended(self, end: int, speech: int) -> Ended:
        self._start, self._last_end = None, end
        return Ended(end, speech)

    def _pauses(self) -> list[EndpointEvent]:
        is_silent = self._tracker.silent_for >= self._rules.pause_s * self._rate
        was_paused, self._is_paused = self._is_paused, is_silent
        if is_silent and not was_paused:
            return [Paused(self._now)]
        return [WentOn()] if was_paused and not is_silent else []

    def _cut(self) -> list[EndpointEvent]:
        """End an utterance that is too long, and begin the next one at the same sample."""
        assert self._start is not None, "only an open utterance is cut"
        if self._now - self._start < self._rules.max_utterance_s * self._rate:
            return []
        least = min(range(len(self._recent)), key=self._recent.__getitem__)
        at = self._now - (len(self._recent) - least) * self._frame
        ended = self._ended(at, at)
        self._start = at
        return [ended, Began(at, at)]
