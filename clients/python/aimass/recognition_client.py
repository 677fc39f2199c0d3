"""Speech recognition in Python. Knows the RPCs and their messages, and nothing of connections."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from aimass.channel import Connection, ConnectionOptions, ServiceClient
from aimass.keyword_stream import Keyword, KeywordStream, keyword_requests
from aimass.recognition_options import AudioFormat, RecognitionOptions
from aimass.response_stream import CallStream
from aimass.speech.v1 import recognition_service_pb2 as pb
from aimass.speech.v1 import recognition_service_pb2_grpc as pb_grpc
from aimass.transcripts import RecognitionEvent, Transcript, event_of, transcript_of
from aimass.wire import refusing


@dataclass(frozen=True, slots=True)
class Flush:
    """Among the audio of a stream: finish the open utterance now."""

    id: str = ""


class RecognitionStream(CallStream[pb.StreamingRecognizeResponse]):
    """The events of one live stream. Use it in a `with` block; leaving it early cancels the call."""

    def __iter__(self) -> Iterator[RecognitionEvent]:
        return self

    def __next__(self) -> RecognitionEvent:
        """Return the next event; raise `RpcError` when the call fails."""
        while (event := event_of(next(self._responses))) is None:
            pass
        return event


class RecognitionClient(ServiceClient):
    """Turns speech into text. Thread-safe; close it, or use it in a `with` block.

    Every method raises `aimass.errors.RpcError` or one of its kinds. `deadline_s` counts from the call, in
    seconds, and replaces the one of the connection's options.
    """

    DEFAULT_ADDRESS: ClassVar[str] = "localhost:50053"

    def __init__(
        self, target: str | Connection | None = None, options: ConnectionOptions | None = None
    ) -> None:
        super().__init__(target, options)
        self._stub = pb_grpc.SpeechRecognitionServiceStub(self._connection.channel)

    def recognize(
        self,
        audio: bytes,
        *,
        model: str,
        audio_format: AudioFormat | None = None,
        options: RecognitionOptions | None = None,
        request_id: str = "",
        deadline_s: float | None = None,
    ) -> Transcript:
        """Return what is said in a whole recording, such as the content of a WAV, FLAC, Ogg or MP3 file."""
        request = pb.RecognizeRequest(
            audio=audio,
            format=(audio_format or AudioFormat()).message(),
            options=(options or RecognitionOptions()).message(),
        )
        with refusing("model"):
            request.model = model
        with refusing("request_id"):
            request.request_id = request_id
        return transcript_of(self._connection.call(self._stub.Recognize, request, deadline_s=deadline_s))

    def recognize_stream(
        self,
        audio: Iterable[bytes | Flush],
        *,
        model: str,
        audio_format: AudioFormat,
        options: RecognitionOptions | None = None,
        interim_results: bool = False,
        end_silence_s: float | None = None,
        request_id: str = "",
        deadline_s: float | None = None,
    ) -> RecognitionStream:
        """Send raw samples as they come and return the events of the stream.

        `audio` is read by another thread, no faster than the server takes it.
        """
        config = pb.StreamingRecognitionConfig(
            format=audio_format.message(),
            options=(options or RecognitionOptions()).message(),
            interim_results=interim_results,
        )
        with refusing("model"):
            config.model = model
        with refusing("request_id"):
            config.request_id = request_id
        if end_silence_s is not None:
            with refusing("end_silence"):
                config.end_silence.FromNanoseconds(round(end_silence_s * 1e9))
        requests = _stream_requests(config, audio)
        responses = self._connection.open_live_stream(
            self._stub.StreamingRecognize, requests, deadline_s=deadline_s
        )
        return RecognitionStream(responses)

    def spot_keywords(
        self,
        audio: Iterable[bytes],
        keywords: Iterable[Keyword | str],
        *,
        model: str,
        audio_format: AudioFormat,
        language: str = "",
        request_id: str = "",
        deadline_s: float | None = None,
    ) -> KeywordStream:
        """Send raw samples as they come and return each keyword when it was said."""
        requests = keyword_requests(
            audio,
            keywords,
            model=model,
            audio_format=audio_format,
            language=language,
            request_id=request_id,
        )
        responses = self._connection.open_live_stream(
            self._stub.SpotKeywords, requests, deadline_s=deadline_s
        )
        return KeywordStream(responses)


def _stream_requests(
    config: pb.StreamingRecognitionConfig, audio: Iterable[bytes | Flush]
) -> Iterator[pb.StreamingRecognizeRequest]:
    yield pb.StreamingRecognizeRequest(config=config)
    for item in audio:
        if isinstance(item, Flush):
            yield pb.StreamingRecognizeRequest(flush=pb.Flush(id=item.id))
        else:
            yield pb.StreamingRecognizeRequest(audio=item)
