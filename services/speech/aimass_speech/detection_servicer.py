"""`SpeechDetectionService`: translates between the wire and the detectors, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from aimass.speech.v1 import detection_service_pb2 as pb
from aimass.speech.v1.detection_service_pb2_grpc import SpeechDetectionServiceServicer
from aimass_serving.request_context import request_context

from aimass_speech.audio import StreamDecoder, decode_audio
from aimass_speech.served import SpeechRegistry, detector_named
from aimass_speech.speech_spans import (
    DetectionOptions,
    SpeechSpan,
    SpeechStarted,
    SpeechTracker,
    speech_spans,
)
from aimass_speech.streaming_detection import detect_events
from aimass_speech.wire import (
    audio_format,
    duration_of_samples,
    first_request,
    later_requests,
    seconds_of,
)

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["SpeechDetectionService"].full_name


class SpeechDetectionServicer(SpeechDetectionServiceServicer):
    """Answers with the detectors in the registry."""

    def __init__(self, registry: SpeechRegistry) -> None:
        self._registry = registry

    async def DetectSpeech(self, request: pb.DetectSpeechRequest, context: Any) -> pb.DetectSpeechResponse:  # noqa: N802
        """Return where the speech is in a whole recording."""
        request_context(context)
        options, audio = detection_options(request.options), audio_format(request.format, field="format")
        engine = detector_named(self._registry, request.model)
        samples = await asyncio.to_thread(
            decode_audio, request.audio, audio, max_audio_s=engine.config.max_audio_s
        )
        probabilities = await engine.probabilities(samples)
        shape = engine.runner.shape
        spans = speech_spans(
            probabilities.tolist(),
            options,
            num_samples=len(samples),
            frame_samples=shape.frame_samples,
            sample_rate_hz=shape.sample_rate_hz,
        )
        return pb.DetectSpeechResponse(
            spans=[span_pb(span) for span in spans],
            audio_duration=duration_of_samples(len(samples)),
            frame_probabilities=probabilities.tolist() if request.frame_probabilities else (),
        )

    async def StreamingDetectSpeech(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.StreamingDetectSpeechRequest], context: Any
    ) -> AsyncIterator[pb.StreamingDetectSpeechResponse]:
        """Report speech as it begins and ends."""
        config = (await first_request(request_iterator)).config
        request_context(context)
        decoder = StreamDecoder(audio_format(config.format, field="config.format"))
        engine = detector_named(self._registry, config.model, field="config.model")
        options, shape = detection_options(config.options), engine.runner.shape
        tracker = SpeechTracker(
            options, frame_samples=shape.frame_samples, sample_rate_hz=shape.sample_rate_hz
        )
        padding = int(options.padding_s * shape.sample_rate_hz)
        audio = (request.audio async for request in later_requests(request_iterator))
        async for event in detect_events(audio, decoder, engine.open_stream(), tracker, padding=padding):
            yield _event_pb(event)


def detection_options(options: pb.DetectionOptions) -> DetectionOptions:
    """Return what counts as speech. Raises `InvalidField`."""
    default = DetectionOptions()

    def seconds(name: str) -> float:
        return seconds_of(getattr(options, name)) if options.HasField(name) else getattr(default, f"{name}_s")  # type: ignore[arg-type] # a field by name

    return DetectionOptions(
        threshold=options.threshold if options.HasField("threshold") else default.threshold,
        min_speech_s=seconds("min_speech"),
        min_silence_s=seconds("min_silence"),
        padding_s=seconds("padding"),
    )


def span_pb(span: SpeechSpan) -> pb.SpeechSpan:
    """Return a stretch of speech as it travels."""
    return pb.SpeechSpan(start=duration_of_samples(span.start), end=duration_of_samples(span.end))


def _event_pb(event: SpeechStarted | SpeechSpan) -> pb.StreamingDetectSpeechResponse:
    if isinstance(event, SpeechStarted):
        return pb.StreamingDetectSpeechResponse(speech_started=duration_of_samples(event.at))
    return pb.StreamingDetectSpeechResponse(speech_ended=span_pb(event))
