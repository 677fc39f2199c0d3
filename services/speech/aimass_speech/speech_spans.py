"""Probabilities of speech, frame by frame, to stretches of speech. Pure; knows no model and no clock.

Source: `get_speech_timestamps` of silero-vad 6.2.3, whose rules these are, one frame at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aimass_serving.errors import InvalidField

_EXIT_MARGIN = 0.15
_MIN_EXIT_THRESHOLD = 0.01


@dataclass(frozen=True, slots=True)
class DetectionOptions:
    """What counts as speech."""

    threshold: float = 0.5
    """Probability from which a frame is speech."""
    min_speech_s: float = 0.25
    """Shorter speech is dropped."""
    min_silence_s: float = 0.1
    """Shorter silence does not end speech."""
    padding_s: float = 0.03
    """Added on both sides of each stretch, where it does not meet the next."""

    def __post_init__(self) -> None:
        """Refuse values outside their range, naming the field as the wire names it."""
        if not 0 < self.threshold < 1:
            raise InvalidField("options.threshold", expected="above 0 and below 1", got=self.threshold)
        for name in ("min_speech", "min_silence", "padding"):
            seconds = getattr(self, f"{name}_s")
            if not 0 <= seconds <= 60:
                raise InvalidField(f"options.{name}", expected="0 to 60 seconds", got=seconds)

    @property
    def exit_threshold(self) -> float:
        """Probability below which speech may end. Lower than `threshold`, so that speech does not flicker."""
        return max(self.threshold - _EXIT_MARGIN, _MIN_EXIT_THRESHOLD)


@dataclass(frozen=True, slots=True)
class SpeechSpan:
    """A stretch of speech, in samples from the start of the audio."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """Speech that is long enough to count began at sample `at`."""

    at: int


SpeechEvent = SpeechStarted | SpeechSpan
"""What a tracker tells: speech began, or a stretch of it is complete."""


class SpeechTracker:
    """Follows one stream of probabilities. A start is told once the speech is long enough to count."""

    def __init__(self, options: DetectionOptions, *, frame_samples: int, sample_rate_hz: int) -> None:
        self._options = options
        self._frame_samples = frame_samples
        self._min_speech = options.min_speech_s * sample_rate_hz
        self._min_silence = options.min_silence_s * sample_rate_hz
        self._now = 0
        self._start: int | None = None
        self._silent_since: int | None = None
        self._is_told = False

    @property
    def open_since(self) -> int | None:
        """Sample where speech that has not ended began, long enough or not; None in silence."""
        return self._start

    @property
    def silent_for(self) -> int:
        """Samples since open speech fell silent; 0 while it goes on."""
        return 0 if self._silent_since is None else self._now - self._silent_since

    def feed(self, probability: float) -> list[SpeechEvent]:
        """Take the next frame's probability; return what it decided, in order of time."""
        frame, self._now = self._now, self._now + self._frame_samples
        if probability >= self._options.threshold:
            self._silent_since = None
            if self._start is None:
                self._start = frame
                return []
        return self._silence(frame, probability) if self._start is not None else []

    def finish(self, num_samples: int) -> list[SpeechEvent]:
        """Take the end of the audio, or a cut of it, at sample `num_samples`; start anew after it."""
        return self._close(num_samples) if self._start is not None else []

    def _silence(self, frame: int, probability: float) -> list[SpeechEvent]:
        if probability < self._options.exit_threshold:
            if self._silent_since is None:
                self._silent_since = frame
            if frame - self._silent_since >= self._min_silence:
                return self._close(self._silent_since)
        assert self._start is not None, "only open speech falls silent"
        if self._silent_since is None and not self._is_told and frame - self._start > self._min_speech:
            self._is_told = True
            return [SpeechStarted(self._start)]
        return []

    def _close(self, end: int) -> list[SpeechEvent]:
        assert self._start is not None, "only open speech ends"
        span, was_told = SpeechSpan(self._start, end), self._is_told
        self._start = self._silent_since = None
        self._is_told = False
        if was_told:
            return [span]
        return [SpeechStarted(span.start), span] if span.end - span.start > self._min_speech else []


def speech_spans(
    probabilities: Iterable[float],
    options: DetectionOptions,
    *,
    num_samples: int,
    frame_samples: int,
    sample_rate_hz: int,
) -> list[SpeechSpan]:
    """Return the padded stretches of speech of a whole recording, in order."""
    tracker = SpeechTracker(options, frame_samples=frame_samples, sample_rate_hz=sample_rate_hz)
    events = [event for probability in probabilities for event in tracker.feed(probability)]
    events += tracker.finish(num_samples)
    spans = [event for event in events if isinstance(event, SpeechSpan)]
    return padded(spans, int(options.padding_s * sample_rate_hz), num_samples=num_samples)


def padded(spans: list[SpeechSpan], padding: int, *, num_samples: int) -> list[SpeechSpan]:
    """Widen each span by `padding` samples on both sides; neighbours closer than that share the gap."""
    grown = []
    for index, span in enumerate(spans):
        before = span.start - (spans[index - 1].end if index else -2 * padding)
        after = spans[index + 1].start - span.end if index + 1 < len(spans) else 2 * padding
        start = span.start - (padding if before >= 2 * padding else before // 2)
        end = span.end + (padding if after >= 2 * padding else after // 2)
        grown.append(SpeechSpan(max(0, start), min(num_samples, end)))
    return grown
