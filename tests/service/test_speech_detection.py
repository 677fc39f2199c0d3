"""Voice activity detection over gRPC, with the real detector."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import soundfile
from aimass.speech.v1 import audio_pb2
from aimass.speech.v1 import detection_service_pb2 as pb
from aimass.speech.v1.detection_service_pb2_grpc import SpeechDetectionServiceStub
from aimass_exporters.speech.voice_activity import speech_like
from aimass_serving.testing import running_service
from aimass_speech.__main__ import PLAN
from numpy.typing import NDArray

RATE = 16_000
PCM = audio_pb2.AudioFormat(encoding=audio_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hz=RATE)


@pytest.fixture
async def stub(silero_store: Path) -> AsyncIterator[Any]:
    async with (
        running_service(PLAN, silero_store) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        yield SpeechDetectionServiceStub(channel)  # the asynchronous one, which its types do not know


def pcm(samples: NDArray[np.float32]) -> bytes:
    return (samples * 32767).astype("<i2").tobytes()


def wav(samples: NDArray[np.float32], rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def stream_of(
    config: pb.StreamingDetectSpeechConfig, pieces: Sequence[bytes]
) -> list[pb.StreamingDetectSpeechRequest]:
    requests = [pb.StreamingDetectSpeechRequest(config=config)]
    return requests + [pb.StreamingDetectSpeechRequest(audio=piece) for piece in pieces]


async def test_speech_in_a_recording_is_found_and_noise_is_not(stub: Any) -> None:
    noise = np.random.default_rng(0).normal(scale=0.01, size=3 * RATE).astype(np.float32)
    quiet = await stub.DetectSpeech(pb.DetectSpeechRequest(audio=wav(noise), frame_probabilities=True))
    voiced = await stub.DetectSpeech(pb.DetectSpeechRequest(audio=wav(speech_like(8 * RATE))))
    assert list(quiet.spans) == []
    assert quiet.audio_duration.ToMilliseconds() == 3000
    assert len(quiet.frame_probabilities) == 94
    assert voiced.spans


async def test_streams_find_what_the_whole_recording_has_however_it_is_cut(
    stub: Any,
) -> None:
    content = pcm(speech_like(12 * RATE))
    whole = await stub.DetectSpeech(pb.DetectSpeechRequest(audio=content, format=PCM))

    async def streamed(piece: int) -> list[tuple[int, int]]:
        pieces = [content[start : start + piece] for start in range(0, len(content), piece)]
        call = stub.StreamingDetectSpeech(stream_of(pb.StreamingDetectSpeechConfig(format=PCM), pieces))
        events = [event async for event in call]
        kinds = [event.WhichOneof("event") for event in events]
        assert kinds == ["speech_started", "speech_ended"] * (len(kinds) // 2)
        ends = [event.speech_ended for event in events if event.HasField("speech_ended")]
        return [(end.start.ToMilliseconds(), end.end.ToMilliseconds()) for end in ends]

    results = await asyncio.gather(streamed(641), streamed(1280), streamed(len(content)))
    expected = [(span.start.ToMilliseconds(), span.end.ToMilliseconds()) for span in whole.spans]
    assert expected
    assert all(result == expected for result in results)


async def test_sixty_streams_at_once_get_what_one_gets(stub: Any) -> None:
    content = pcm(speech_like(4 * RATE))
    pieces = [content[start : start + 1280] for start in range(0, len(content), 1280)]

    async def spans() -> list[bytes]:
        call = stub.StreamingDetectSpeech(stream_of(pb.StreamingDetectSpeechConfig(format=PCM), pieces))
        return [event.SerializeToString() async for event in call]

    alone = await spans()
    together = await asyncio.gather(*(spans() for _ in range(60)))
    assert alone
    assert all(events == alone for events in together)


async def refusal(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return str(caught.value.details())


async def test_bad_audio_is_refused_with_what_is_wrong(stub: Any) -> None:
    flac = audio_pb2.AudioFormat(encoding=audio_pb2.AUDIO_ENCODING_FLAC)
    wrong_rate = audio_pb2.AudioFormat(sample_rate_hz=8000)
    sound = wav(speech_like(RATE))

    async def refused(audio: bytes, audio_format: audio_pb2.AudioFormat | None = None) -> str:
        return await refusal(stub.DetectSpeech(pb.DetectSpeechRequest(audio=audio, format=audio_format)))

    assert "at least one sample" in await refused(b"")
    assert "a part" in await refused(sound[: len(sound) // 2])
    assert "expected FLAC, got 'WAV'" in await refused(sound, flac)
    assert "the header's 16000" in await refused(sound, wrong_rate)
    assert "expected WAV, FLAC, Ogg or MP3" in await refused(b"not audio at all")
    assert "format.sample_rate_hz" in await refused(
        b"\0\0", audio_pb2.AudioFormat(encoding=audio_pb2.AUDIO_ENCODING_MULAW)
    )


async def test_stream_that_breaks_the_order_of_messages_is_refused(stub: Any) -> None:
    audio_first = [pb.StreamingDetectSpeechRequest(audio=b"\0\0")]
    config = pb.StreamingDetectSpeechRequest(config=pb.StreamingDetectSpeechConfig(format=PCM))
    wav_stream = pb.StreamingDetectSpeechConfig(
        format=audio_pb2.AudioFormat(encoding=audio_pb2.AUDIO_ENCODING_WAV)
    )
    assert "the configuration in the first message, got 'audio'" in await refusal(
        stub.StreamingDetectSpeech(audio_first).read()
    )
    assert "expected audio in every message after the first" in await refusal(
        stub.StreamingDetectSpeech([config, config]).read()
    )
    assert "raw samples" in await refusal(stub.StreamingDetectSpeech(stream_of(wav_stream, [])).read())
