"""`SpeechRecognitionService`: translates between the wire and the recognisers, and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import numpy as np
from aimass.speech.v1 import audio_pb2, keywords_pb2
from aimass.speech.v1 import recognition_service_pb2 as pb
from aimass.speech.v1.recognition_service_pb2_grpc import SpeechRecognitionServiceServicer
from aimass_serving.request_context import request_context
from aimass_serving.telemetry import annotate, emit_phase
from numpy.typing import NDArray

from aimass_speech.audio import StreamDecoder, decode_audio
from aimass_speech.endpointer import Endpointer, EndpointRules
from aimass_speech.keyword_spotter import KeywordSpotter, hot_phrases
from aimass_speech.live_recognizer import LiveOptions, LiveRecognizer
from aimass_speech.phrase_match import PhraseMatch
from aimass_speech.recognition import RecognitionOptions, Transcript
from aimass_speech.recognition_messages import (
    endpoint_rules,
    keywords,
    live_event_pb,
    live_input,
    phrase_scores_pb,
    recognition_options,
    segment_pb,
    spotted_pb,
)
from aimass_speech.recognizer import RecognitionEngine
from aimass_speech.served import SpeechRegistry, detector_for, recognizer_named
from aimass_speech.speech_spans import DetectionOptions, SpeechSpan, speech_spans
from aimass_speech.wire import audio_format, duration_of_samples, first_request, later_requests

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["SpeechRecognitionService"].full_name

CUTTING = DetectionOptions(min_speech_s=0.1, min_silence_s=0.3, padding_s=0.25)
"""What is cut away before recognition: little, as a lost word costs more than a second of silence."""


class SpeechRecognitionServicer(SpeechRecognitionServiceServicer):
    """Answers with the recognisers in the registry."""

    def __init__(self, registry: SpeechRegistry) -> None:
        self._registry = registry

    async def Recognize(self, request: pb.RecognizeRequest, context: Any) -> pb.RecognizeResponse:  # noqa: N802
        """Return what is said in a whole recording."""
        call = request_context(context, request.request_id)
        options = recognition_options(request.options, field="options")
        packed = audio_format(request.format, field="format")
        engine = recognizer_named(self._registry, request.model)
        engine.check_options(options)
        clock = _PhaseClock(call.received_ns)
        samples = await asyncio.to_thread(
            decode_audio, request.audio, packed, max_audio_s=engine.config.max_audio_s
        )
        audio_ms = clock.lap("audio")
        spans = await self._spans(samples, options)
        detection_ms = clock.lap("voice_activity")
        transcript = await engine.recognize(samples, options, spans=spans, deadline_s=call.deadline_s)
        clock.lap("recognize")
        annotate({"gen_ai.operation.name": "transcription", "gen_ai.request.model": request.model})
        response = _response(transcript, num_samples=len(samples))
        response.timings.audio_ms, response.timings.voice_activity_ms = audio_ms, detection_ms
        response.timings.total_ms = clock.total_ms
        return response

    async def StreamingRecognize(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.StreamingRecognizeRequest], context: Any
    ) -> AsyncIterator[pb.StreamingRecognizeResponse]:
        """Write down speech while it is spoken."""
        config = (await first_request(request_iterator)).config
        request_context(context, config.request_id)
        engine = recognizer_named(self._registry, config.model)
        annotate({"gen_ai.operation.name": "transcription", "gen_ai.request.model": config.model})
        with engine.live_stream():
            live = self._open(config, engine)
            inputs = (live_input(request) async for request in later_requests(request_iterator))
            async with aclosing(live.events(inputs)) as events:
                async for event in events:
                    yield live_event_pb(event)

    async def SpotKeywords(  # noqa: N802
        self, request_iterator: AsyncIterator[keywords_pb2.SpotKeywordsRequest], context: Any
    ) -> AsyncIterator[keywords_pb2.SpotKeywordsResponse]:
        """Tell when one of a few words was said."""
        config = (await first_request(request_iterator)).config
        request_context(context, config.request_id)
        engine = recognizer_named(self._registry, config.model)
        annotate({"gen_ai.operation.name": "keyword_spotting", "gen_ai.request.model": config.model})
        wanted = keywords(config)
        spotter = KeywordSpotter(wanted)
        options = RecognitionOptions(
            language=config.language, has_words=True, hot_phrases=hot_phrases(wanted), field="config"
        )
        with engine.live_stream():
            live = self._live(
                config.format,
                engine,
                options,
                EndpointRules(),
                LiveOptions(has_interims=True, has_interim_words=True),
            )
            audio = (request.audio async for request in later_requests(request_iterator))
            async with aclosing(live.events(audio)) as events:
                async for event in events:
                    for spotted in spotter.take(event):
                        yield spotted_pb(spotted)

    def _open(self, config: pb.StreamingRecognitionConfig, engine: RecognitionEngine) -> LiveRecognizer:
        """Check the configuration of a stream; its fields are named from the stream's first message."""
        options = recognition_options(config.options, field="config.options")
        live = LiveOptions(has_interims=config.interim_results)
        return self._live(config.format, engine, options, endpoint_rules(config), live)

    def _live(
        self,
        packed: audio_pb2.AudioFormat,
        engine: RecognitionEngine,
        options: RecognitionOptions,
        rules: EndpointRules,
        live: LiveOptions,
    ) -> LiveRecognizer:
        engine.check_options(options)
        decoder = StreamDecoder(audio_format(packed, field="config.format"))
        detector = detector_for(self._registry, is_wanted=True)
        assert detector is not None, "one that is wanted is found, or missed by name"
        shape = detector.runner.shape
        return LiveRecognizer(
            engine,
            detector.open_stream(),
            decoder,
            Endpointer(rules, frame_samples=shape.frame_samples, sample_rate_hz=shape.sample_rate_hz),
            options,
            live,
        )

    async def _spans(
        self, samples: NDArray[np.float32], options: RecognitionOptions
    ) -> list[SpeechSpan] | None:
        """Return where the speech is, or None when the caller, or the store, does without."""
        detector = detector_for(self._registry, is_wanted=options.skips_silence)
        if detector is None:
            return None
        shape = detector.runner.shape
        return speech_spans(
            (await detector.probabilities(samples)).tolist(),
            CUTTING,
            num_samples=len(samples),
            frame_samples=shape.frame_samples,
            sample_rate_hz=shape.sample_rate_hz,
        )


class _PhaseClock:
    """Measures the phases of a call, and records each as a span."""

    def __init__(self, start_ns: int) -> None:
        self._start_ns = self._lap_ns = start_ns

    def lap(self, name: str) -> float:
        """End a phase; return its length in milliseconds."""
        before_ns, self._lap_ns = self._lap_ns, time.time_ns()
        emit_phase(name, before_ns, self._lap_ns)
        return (self._lap_ns - before_ns) / 1e6

    @property
    def total_ms(self) -> float:
        """Milliseconds from the start to the last lap."""
        return (self._lap_ns - self._start_ns) / 1e6


def _response(transcript: Transcript, *, num_samples: int) -> pb.RecognizeResponse:
    times, match = transcript.times, transcript.match or PhraseMatch()
    return pb.RecognizeResponse(
        text=transcript.text,
        segments=[segment_pb(segment) for segment in transcript.segments],
        language=transcript.language,
        language_probability=transcript.language_probability,
        audio_duration=duration_of_samples(num_samples),
        speech_duration=duration_of_samples(transcript.num_speech_samples),
        phrase=match.phrase,
        phrase_scores=phrase_scores_pb(match),
        timings=pb.RecognitionTimings(
            queue_ms=times.queue_ms, encode_ms=times.encode_ms, decode_ms=times.decode_ms
        ),
    )
