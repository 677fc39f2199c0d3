"""Speech synthesis in Python. Knows the RPCs and their messages, and nothing of connections."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

from aimass.channel import Connection, ConnectionOptions, ServiceClient
from aimass.recognition_client import Flush
from aimass.response_stream import CallStream, ResponseStream
from aimass.speech.v1 import synthesis_service_pb2 as pb
from aimass.speech.v1 import synthesis_service_pb2_grpc as pb_grpc
from aimass.spoken_audio import (
    SpeechChunk,
    SpeechEnd,
    SpeechInfo,
    SpokenAudio,
    Voice,
    chunk_of,
    end_of,
    info_of,
    voice_of,
)
from aimass.synthesis_options import SynthesisOptions
from aimass.wire import refusing

SpeechResponse = pb.SynthesizeResponse | pb.StreamingSynthesizeResponse


class SpeechStream(CallStream[SpeechResponse]):
    """The audio of one request as it comes. Use it in a `with` block; leaving it early cancels the call."""

    def __init__(self, responses: ResponseStream[SpeechResponse]) -> None:
        super().__init__(responses)
        self._info: SpeechInfo | None = None
        self._end: SpeechEnd | None = None

    @property
    def info(self) -> SpeechInfo:
        """How the audio is packed. Known once the first chunk was read."""
        if self._info is None:
            raise ValueError("nothing has been read yet")
        return self._info

    @property
    def end(self) -> SpeechEnd:
        """What is known when all is spoken. Known once the last chunk was read."""
        if self._end is None:
            raise ValueError("the audio has not been read to its end")
        return self._end

    def __iter__(self) -> Iterator[SpeechChunk]:
        return self

    def __next__(self) -> SpeechChunk:
        """Return the next chunk; raise `RpcError` when the call fails."""
        while True:
            response = next(self._responses)
            if response.HasField("info"):
                self._info = info_of(response.info)
            elif response.HasField("end"):
                self._end = end_of(response.end)
            elif response.HasField("audio"):
                return chunk_of(response.audio)

    def read_all(self) -> SpokenAudio:
        """Read to the end and return the whole audio."""
        chunks = list(self)
        timings = [timing for chunk in chunks for timing in chunk.timings]
        return SpokenAudio(b"".join(chunk.data for chunk in chunks), self.info, timings, self.end)


class SynthesisClient(ServiceClient):
    """Turns text into speech. Thread-safe; close it, or use it in a `with` block.

    Every method raises `aimass.errors.RpcError` or one of its kinds. `deadline_s` counts from the call, in
    seconds, and replaces the one of the connection's options. Leave the voice out when there is only one.
    """

    DEFAULT_ADDRESS: ClassVar[str] = "localhost:50053"

    def __init__(
        self, target: str | Connection | None = None, options: ConnectionOptions | None = None
    ) -> None:
        super().__init__(target, options)
        self._stub = pb_grpc.SpeechSynthesisServiceStub(self._connection.channel)

    def speak(
        self,
        text: str,
        *,
        voice: str = "",
        options: SynthesisOptions | None = None,
        request_id: str = "",
        deadline_s: float | None = None,
    ) -> SpeechStream:
        """Speak plain text."""
        return self._speak("text", text, voice, options, request_id, deadline_s)

    def speak_ssml(
        self,
        ssml: str,
        *,
        voice: str = "",
        options: SynthesisOptions | None = None,
        request_id: str = "",
        deadline_s: float | None = None,
    ) -> SpeechStream:
        """Speak an SSML document."""
        return self._speak("ssml", ssml, voice, options, request_id, deadline_s)

    def speak_phonemes(
        self,
        phonemes: str,
        *,
        voice: str = "",
        options: SynthesisOptions | None = None,
        request_id: str = "",
        deadline_s: float | None = None,
    ) -> SpeechStream:
        """Speak IPA."""
        return self._speak("phonemes", phonemes, voice, options, request_id, deadline_s)

    def speak_stream(
        self,
        text: Iterable[str | Flush],
        *,
        voice: str = "",
        options: SynthesisOptions | None = None,
        request_id: str = "",
        deadline_s: float | None = None,
    ) -> SpeechStream:
        """Speak text that comes piece by piece, such as a language model's; sentences as soon as they end.

        `text` is read by another thread, no faster than the server takes it. A `Flush` speaks what has come.
        """
        config = pb.StreamingSynthesisConfig(options=(options or SynthesisOptions()).message())
        with refusing("voice"):
            config.voice = voice
        with refusing("request_id"):
            config.request_id = request_id
        responses = self._connection.open_live_stream(
            self._stub.StreamingSynthesize, _stream_requests(config, text), deadline_s=deadline_s
        )
        return SpeechStream(responses)

    def voices(self, *, language: str = "", deadline_s: float | None = None) -> list[Voice]:
        """Return the voices of the service, or those of a language such as `en` or `en-US`."""
        request = pb.ListVoicesRequest()
        with refusing("language"):
            request.language = language
        answer = self._connection.call(self._stub.ListVoices, request, deadline_s=deadline_s)
        return [voice_of(voice) for voice in answer.voices]

    def _speak(
        self,
        field: str,
        content: str,
        voice: str,
        options: SynthesisOptions | None,
        request_id: str,
        deadline_s: float | None,
    ) -> SpeechStream:
        request = pb.SynthesizeRequest(options=(options or SynthesisOptions()).message())
        for name, value in ((field, content), ("voice", voice), ("request_id", request_id)):
            with refusing(name):
                setattr(request, name, value)
        return SpeechStream(
            self._connection.open_stream(self._stub.Synthesize, request, deadline_s=deadline_s)
        )


def _stream_requests(
    config: pb.StreamingSynthesisConfig, text: Iterable[str | Flush]
) -> Iterator[pb.StreamingSynthesizeRequest]:
    yield pb.StreamingSynthesizeRequest(config=config)
    for item in text:
        if isinstance(item, Flush):
            yield pb.StreamingSynthesizeRequest(flush=pb.SynthesisFlush())
        else:
            yield pb.StreamingSynthesizeRequest(text=item)
