"""`SpeechSynthesisService`: translates between the wire and the voices, and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from aimass.speech.v1 import audio_pb2
from aimass.speech.v1 import synthesis_service_pb2 as pb
from aimass.speech.v1.synthesis_service_pb2_grpc import SpeechSynthesisServiceServicer
from aimass_serving.errors import DeadlineExceeded, InvalidField
from aimass_serving.request_context import RequestContext, request_context
from aimass_serving.telemetry import annotate, emit_phase

from aimass_speech.audio import AudioEncoding
from aimass_speech.served import SpeechRegistry, engine_of, voice_named, voices
from aimass_speech.synthesis.audio_writer import AudioWriter, output_rate
from aimass_speech.synthesis.engine import SpokenStream, SynthesisEngine
from aimass_speech.synthesis.script import MAX_TEXT_CHARS, Spoken, SynthesisOptions
from aimass_speech.synthesis.sentences import SentenceCutter
from aimass_speech.synthesis_messages import (
    script_of,
    seed_of,
    speaks,
    synthesis_options,
    timing_pb,
    voice_pb,
)
from aimass_speech.wire import audio_encoding, duration_of_samples, first_request, later_requests

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["SpeechSynthesisService"].full_name

Response = TypeVar("Response", pb.SynthesizeResponse, pb.StreamingSynthesizeResponse)


class SpeechSynthesisServicer(SpeechSynthesisServiceServicer):
    """Answers with the voices in the registry."""

    def __init__(self, registry: SpeechRegistry) -> None:
        self._registry = registry

    async def Synthesize(  # noqa: N802
        self, request: pb.SynthesizeRequest, context: Any
    ) -> AsyncIterator[pb.SynthesizeResponse]:
        """Speak a text."""
        call = request_context(context, request.request_id)
        engine = voice_named(self._registry, request.voice)
        script = script_of(request, engine)
        order = _Order.of(request.options, engine, call, field="options")
        feeding = _feed_script(order.stream, script)
        async for response in _spoken(order, feeding, pb.SynthesizeResponse):
            yield response

    async def StreamingSynthesize(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.StreamingSynthesizeRequest], context: Any
    ) -> AsyncIterator[pb.StreamingSynthesizeResponse]:
        """Speak text while it arrives."""
        config = (await first_request(request_iterator)).config
        call = request_context(context, config.request_id)
        engine = voice_named(self._registry, config.voice, field="config.voice")
        order = _Order.of(config.options, engine, call, field="config.options")
        requests = later_requests(request_iterator, content="text or a flush")
        feeding = _feed_requests(order, requests, idle_s=engine.config.max_synthesis_idle_s)
        async for response in _spoken(order, feeding, pb.StreamingSynthesizeResponse):
            yield response

    async def ListVoices(self, request: pb.ListVoicesRequest, context: Any) -> pb.ListVoicesResponse:  # noqa: N802
        """Return the voices of this service."""
        request_context(context)
        ready = voices(self._registry)
        chosen = [each for each in ready if speaks(engine_of(each, SynthesisEngine), request.language)]
        return pb.ListVoicesResponse(voices=[voice_pb(served) for served in chosen])


@dataclass(slots=True, eq=False)
class _Order:
    """One request: its stream, how it is packed, and when its text came. Owned by the call."""

    call: RequestContext
    engine: SynthesisEngine
    stream: SpokenStream
    encoding: AudioEncoding
    encoding_pb: audio_pb2.AudioEncoding.ValueType
    rate_hz: int
    text_ns: int

    @classmethod
    def of(
        cls, options_pb: pb.SynthesisOptions, engine: SynthesisEngine, call: RequestContext, *, field: str
    ) -> _Order:
        """Check the options and take a place. Raises `InvalidField`, `Overloaded`, `Draining`."""
        options: SynthesisOptions = synthesis_options(options_pb, field=field)
        engine.check_options(options)
        encoding = audio_encoding(options_pb.encoding, field=f"{field}.encoding")
        rate_hz = output_rate(
            encoding,
            options.sample_rate_hz,
            engine.parts.voice.sample_rate_hz,
            field=f"{field}.sample_rate_hz",
        )
        stream = engine.open(options, seed=seed_of(options), deadline_s=call.deadline_s)
        packed = options_pb.encoding or audio_pb2.AUDIO_ENCODING_WAV
        return cls(call, engine, stream, encoding, packed, rate_hz, call.received_ns)

    def info(self) -> pb.SynthesisInfo:
        """Return how the audio is packed."""
        return pb.SynthesisInfo(
            request_id=self.call.request_id,
            encoding=self.encoding_pb,
            sample_rate_hz=self.rate_hz,
            seed=self.stream.seed,
        )


async def _spoken(order: _Order, feeding: Any, response: Callable[..., Response]) -> AsyncIterator[Response]:
    """Yield the events of a request, while `feeding` feeds it."""
    annotate({"gen_ai.operation.name": "speech"})
    voice_hz = order.engine.parts.voice.sample_rate_hz
    feeder, first_ns = asyncio.ensure_future(feeding), 0
    try:
        writer = AudioWriter(order.encoding, voice_hz=voice_hz, output_hz=order.rate_hz)
        yield response(info=order.info())
        async with aclosing(order.stream.chunks()) as chunks:
            async for chunk in chunks:
                content = await asyncio.to_thread(writer.write, chunk.samples)
                if len(chunk.samples) and not first_ns:
                    first_ns = time.time_ns()
                    emit_phase("first_audio", order.text_ns, first_ns)
                timings = [timing_pb(timing, rate_hz=voice_hz) for timing in chunk.timings]
                if content or timings:
                    yield response(audio=pb.AudioChunk(data=content, timings=timings))
        if rest := await asyncio.to_thread(writer.finish):
            yield response(audio=pb.AudioChunk(data=rest))
        yield response(end=_end(order, first_ns, voice_hz))
    finally:
        order.stream.close()
        feeder.cancel()
        await asyncio.gather(feeder, return_exceptions=True)


def _end(order: _Order, first_ns: int, voice_hz: int) -> pb.SynthesisEnd:
    now_ns = time.time_ns()
    emit_phase("synthesize", first_ns or order.text_ns, now_ns)
    return pb.SynthesisEnd(
        audio_duration=duration_of_samples(order.stream.num_samples, voice_hz),
        unpronounceable=order.stream.unpronounceable,
        first_audio_ms=(first_ns - order.text_ns) / 1e6 if first_ns else 0.0,
        total_ms=(now_ns - order.call.received_ns) / 1e6,
    )


async def _feed_script(stream: SpokenStream, script: list[Any]) -> None:
    await stream.feed(script)
    stream.complete()


async def _feed_requests(
    order: _Order, requests: AsyncIterator[pb.StreamingSynthesizeRequest], *, idle_s: float
) -> None:
    """Speak sentences as they end. What is wrong with the requests ends the stream."""
    cutter, has_text = SentenceCutter(), False
    try:
        while (request := await _next(requests, idle_s)) is not None:
            sentences = cutter.finish() if request.HasField("flush") else cutter.feed(_text_of(request))
            if request.text and not has_text:
                has_text, order.text_ns = True, time.time_ns()
            await order.stream.feed([Spoken(sentence) for sentence in sentences])
        await order.stream.feed([Spoken(sentence) for sentence in cutter.finish()])
        order.stream.complete()
    except Exception as error:
        order.stream.fail(error)  # whoever reads the audio raises it


async def _next(
    requests: AsyncIterator[pb.StreamingSynthesizeRequest], idle_s: float
) -> pb.StreamingSynthesizeRequest | None:
    """Return the next request, None at their end. Raises `DeadlineExceeded` when none comes for `idle_s`."""
    try:
        return await asyncio.wait_for(anext(requests, None), idle_s)
    except TimeoutError as error:
        raise DeadlineExceeded(phase=f"waiting for text, {idle_s:g} s") from error


def _text_of(request: pb.StreamingSynthesizeRequest) -> str:
    if len(request.text) > MAX_TEXT_CHARS:
        expected = f"at most {MAX_TEXT_CHARS} characters"
        raise InvalidField("text", expected=expected, got=f"{len(request.text)} characters")
    return request.text
