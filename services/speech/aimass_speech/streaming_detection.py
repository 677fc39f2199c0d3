"""A stream of raw audio to the beginnings and ends of speech. Must not know the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aimass_speech.audio import StreamDecoder
from aimass_speech.detector import DetectorStream
from aimass_speech.speech_spans import SpeechEvent, SpeechSpan, SpeechStarted, SpeechTracker


async def detect_events(
    audio: AsyncIterator[bytes],
    decoder: StreamDecoder,
    detector: DetectorStream,
    tracker: SpeechTracker,
    *,
    padding: int,
) -> AsyncIterator[SpeechEvent]:
    """Yield each beginning and each end of speech, widened by `padding` samples, as soon as it is certain."""
    widener, num_samples = _Widener(padding), 0
    async for piece in audio:
        samples = decoder.feed(piece)
        num_samples += len(samples)
        for probability in await detector.feed(samples):
            for event in tracker.feed(float(probability)):
                yield widener.widened(event, num_samples)
    rest = decoder.finish()
    num_samples += len(rest)
    probabilities = [*await detector.feed(rest), *await detector.finish()]
    events = [event for probability in probabilities for event in tracker.feed(float(probability))]
    for event in (*events, *tracker.finish(num_samples)):
        yield widener.widened(event, num_samples)


class _Widener:
    """Widens stretches of speech that are told one after another, so that they never overlap."""

    def __init__(self, padding: int) -> None:
        self._padding = padding
        self._last_end = 0
        self._start = 0

    def widened(self, event: SpeechEvent, num_samples: int) -> SpeechEvent:
        if isinstance(event, SpeechStarted):
            self._start = max(self._last_end, event.at - self._padding)
            return SpeechStarted(self._start)
        self._last_end = min(num_samples, event.end + self._padding)
        return SpeechSpan(self._start, self._last_end)
