"""Audio that is not what it should be, and more callers than are taken: refused by name, none lost."""

from __future__ import annotations

import asyncio
import io
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import soundfile
from aimass.speech.v1 import audio_pb2
from aimass.speech.v1 import recognition_service_pb2 as pb
from aimass.speech.v1.recognition_service_pb2_grpc import SpeechRecognitionServiceStub
from aimass_serving.testing import running_service
from aimass_speech.__main__ import PLAN
from aimass_speech.config import SpeechConfig
from numpy.typing import NDArray

MODEL, RATE = "whisper-tiny.en", 16_000
PCM = audio_pb2.AudioFormat(encoding=audio_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hz=RATE)
NUM_CALLERS, MAX_STREAMS = 200, 150


@pytest.fixture
async def stub(silero_store: Path, whisper_tiny_store: Path, tmp_path: Path) -> AsyncIterator[Any]:
    for source in (silero_store, whisper_tiny_store):
        shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    async with (
        running_service(PLAN, tmp_path, extra=[SpeechConfig(max_live_streams=MAX_STREAMS)]) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        yield SpeechRecognitionServiceStub(channel)  # the asynchronous one, which its types do not know


def packed(container: str, *, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(RATE, np.float32), rate, format=container)
    return file.getvalue()


def six_hours_of_flac() -> bytes:
    """A short file whose header promises six hours: nothing of that length may be allocated."""
    content = bytearray(packed("FLAC"))
    place = 8 + 13  # behind the magic and the block's head: the last 36 bits before the MD5 are the length
    num_samples = 6 * 3600 * RATE
    content[place] = (content[place] & 0xF0) | (num_samples >> 32)
    content[place + 1 : place + 5] = (num_samples & 0xFFFF_FFFF).to_bytes(4, "big")
    return bytes(content)


async def refusal(stub: Any, audio: bytes, **packing: Any) -> str:
    request = pb.RecognizeRequest(model=MODEL, audio=audio, format=audio_pb2.AudioFormat(**packing))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Recognize(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return str(caught.value.details())


async def test_audio_that_is_not_what_it_should_be_is_refused_by_name(stub: Any) -> None:
    wav, flac = audio_pb2.AUDIO_ENCODING_WAV, audio_pb2.AUDIO_ENCODING_FLAC
    assert "audio: expected audio with at least one sample" in await refusal(stub, b"")
    assert "audio: expected at most 14400 seconds" in await refusal(stub, six_hours_of_flac())
    assert "audio: expected FLAC, got 'WAV'" in await refusal(stub, packed("WAV"), encoding=flac)
    assert "audio: expected WAV" in await refusal(stub, b"\x89PNG\r\n\x1a\n" + bytes(500), encoding=wav)
    assert "a part: an Ogg stream" in await refusal(stub, packed("OGG")[:-40])
    assert "format.sample_rate_hz: expected the header's 44100, got 16000" in await refusal(
        stub, packed("WAV", rate=44_100), sample_rate_hz=RATE
    )
    raw = audio_pb2.AUDIO_ENCODING_ALAW
    assert "format.sample_rate_hz" in await refusal(stub, bytes(800), encoding=raw)
    assert "a part: 801 bytes" in await refusal(
        stub, bytes(801), encoding=raw, sample_rate_hz=8000, num_channels=2
    )


async def test_two_hundred_streams_at_once_are_served_or_refused_and_those_that_speak_are_heard(
    stub: Any, spoken: NDArray[np.float32]
) -> None:
    """Two of those who came first speak; the others keep silent, as most callers do most of the time."""
    said = (spoken[: 4 * RATE] * 32767).astype("<i2").tobytes()
    everybody = asyncio.Event()
    memory_before = psutil.Process().memory_info().rss

    async def call(content: bytes) -> str:
        async def requests() -> AsyncIterator[pb.StreamingRecognizeRequest]:
            yield pb.StreamingRecognizeRequest(config=pb.StreamingRecognitionConfig(model=MODEL, format=PCM))
            await everybody.wait()
            yield pb.StreamingRecognizeRequest(audio=content)

        try:
            events = [event async for event in stub.StreamingRecognize(requests())]
        except grpc.aio.AioRpcError as error:
            # A refusal that meets a write of this client: grpc.aio then tells of its own core instead.
            met_a_write = error.details() == "Internal error from Core"
            return "RESOURCE_EXHAUSTED" if met_a_write else error.code().name
        return " ".join(event.final.segment.text for event in events if event.HasField("final"))

    speaking = [asyncio.ensure_future(call(said)) for _ in range(2)]
    await asyncio.sleep(0.5)
    silent = [asyncio.ensure_future(call(bytes(2 * RATE))) for _ in range(NUM_CALLERS - 2)]
    await asyncio.wait(silent, timeout=30, return_when=asyncio.FIRST_COMPLETED)  # the first to be refused
    everybody.set()
    texts, results = await asyncio.gather(*speaking), await asyncio.gather(*silent)
    assert all("best of times" in text for text in texts)
    assert results.count("RESOURCE_EXHAUSTED") == NUM_CALLERS - MAX_STREAMS
    assert results.count("") == MAX_STREAMS - 2
    assert psutil.Process().memory_info().rss - memory_before < 500 * 2**20
