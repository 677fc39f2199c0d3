"""Recognition over gRPC, with the real tiny.en and the real detector, on real and made-up audio."""

from __future__ import annotations

import asyncio
import io
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import soundfile
from aimass.speech.v1 import audio_pb2
from aimass.speech.v1 import recognition_service_pb2 as pb
from aimass.speech.v1.recognition_service_pb2_grpc import SpeechRecognitionServiceStub
from aimass_serving.testing import running_service
from aimass_speech.__main__ import PLAN
from aimass_speech.g711 import encode_alaw
from numpy.typing import NDArray
from soxr import resample

MODEL = "whisper-tiny.en"
RATE = 16_000
TEXT = (
    "it was the best of times it was the worst of times "
    "it was the age of wisdom it was the age of foolishness"
)


@pytest.fixture(scope="module")
def speech_store(
    silero_store: Path, whisper_tiny_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    store = tmp_path_factory.mktemp("store")
    for source in (silero_store, whisper_tiny_store):
        shutil.copytree(source, store, dirs_exist_ok=True)
    return store


@pytest.fixture
async def stub(speech_store: Path) -> AsyncIterator[Any]:
    async with (
        running_service(PLAN, speech_store) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        yield SpeechRecognitionServiceStub(channel)  # the asynchronous one, which its types do not know


def packed(samples: NDArray[np.float32], rate: int = RATE, container: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container)
    return file.getvalue()


def plain(text: str) -> str:
    return " ".join("".join(c for c in text.lower() if c.isalpha() or c == " ").split())


async def test_recording_is_written_down_with_times_and_confidence(
    stub: Any, spoken: NDArray[np.float32]
) -> None:
    options = pb.RecognitionOptions(word_times=True)
    request = pb.RecognizeRequest(model=MODEL, audio=packed(spoken), options=options)
    response = await stub.Recognize(request)
    words = [word for segment in response.segments for word in segment.words]
    assert plain(response.text) == TEXT
    assert plain("".join(word.text for word in words)) == TEXT
    starts = [word.start.ToMilliseconds() for word in words]
    assert starts == sorted(starts)
    assert all(word.start.ToNanoseconds() <= word.end.ToNanoseconds() for word in words)
    assert words[-1].end.ToMilliseconds() <= response.audio_duration.ToMilliseconds()
    assert np.mean([word.confidence for word in words]) > 0.7
    assert response.language == "en"
    assert 0 < response.speech_duration.ToMilliseconds() < response.audio_duration.ToMilliseconds()
    assert response.timings.decode_ms > 0


async def test_every_encoding_rate_and_channel_count_says_the_same(
    stub: Any, spoken: NDArray[np.float32]
) -> None:
    stereo = np.stack([resample(spoken, RATE, 8000)] * 2, axis=1)
    alaw = encode_alaw((stereo.ravel() * 32767).astype(np.int16))
    alaw_format = audio_pb2.AudioFormat(
        encoding=audio_pb2.AUDIO_ENCODING_ALAW, sample_rate_hz=8000, num_channels=2
    )
    offset_clipped = np.clip(3 * spoken + 0.1, -1, 1).astype(np.float32)
    requests = [
        pb.RecognizeRequest(model=MODEL, audio=alaw, format=alaw_format),
        pb.RecognizeRequest(model=MODEL, audio=packed(resample(spoken, RATE, 44100), 44100, "MP3")),
        pb.RecognizeRequest(model=MODEL, audio=packed(offset_clipped)),
    ]
    texts = [plain(response.text) for response in await asyncio.gather(*map(stub.Recognize, requests))]
    assert texts == [TEXT] * 3


async def test_silence_and_noise_have_no_words(stub: Any) -> None:
    noise = np.random.default_rng(0).normal(scale=0.02, size=60 * RATE).astype(np.float32)
    for samples in (np.zeros(60 * RATE, np.float32), noise):
        response = await stub.Recognize(pb.RecognizeRequest(model=MODEL, audio=packed(samples)))
        assert response.text == ""
        assert not response.segments


async def test_beam_search_without_a_filter_gives_the_same_text(
    stub: Any, spoken: NDArray[np.float32]
) -> None:
    options = pb.RecognitionOptions(beam_size=8, voice_activity_filter=False)
    response = await stub.Recognize(pb.RecognizeRequest(model=MODEL, audio=packed(spoken), options=options))
    assert plain(response.text) == TEXT


async def test_other_readings_differ_in_words_and_leave_the_best_as_it_is(
    stub: Any, spoken: NDArray[np.float32]
) -> None:
    """The most probable outputs of a clear clip differ in their times only: those are one reading."""
    options = pb.RecognitionOptions(beam_size=8, max_alternatives=3)
    response = await stub.Recognize(pb.RecognizeRequest(model=MODEL, audio=packed(spoken), options=options))
    assert plain(response.text) == TEXT
    others = response.segments[0].alternatives
    assert 1 <= len(others) <= 2
    assert len({plain(response.text), *(plain(other.text) for other in others)}) == len(others) + 1
    assert all(other.avg_logprob < response.segments[0].avg_logprob for other in others)


async def test_hot_phrase_changes_what_is_written(stub: Any, spoken: NDArray[np.float32]) -> None:
    options = pb.RecognitionOptions(hot_phrases=[pb.HotPhrase(phrase="Age of Wisdom", boost=5)])
    response = await stub.Recognize(pb.RecognizeRequest(model=MODEL, audio=packed(spoken), options=options))
    assert "Age of Wisdom," in response.text


async def refusal(call: Any, code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is code
    return str(caught.value.details())


async def test_what_the_model_cannot_do_is_refused_by_field(stub: Any, spoken: NDArray[np.float32]) -> None:
    sound = packed(spoken[:RATE])

    async def refused(options: pb.RecognitionOptions) -> str:
        return await refusal(stub.Recognize(pb.RecognizeRequest(model=MODEL, audio=sound, options=options)))

    assert "options.language" in await refused(pb.RecognitionOptions(language="de"))
    assert "options.task" in await refused(pb.RecognitionOptions(task=pb.RECOGNITION_TASK_TRANSLATE))
    assert "options.beam_size" in await refused(pb.RecognitionOptions(beam_size=9))
    assert "options.max_alternatives" in await refused(pb.RecognitionOptions(max_alternatives=2))
    assert "hot_phrases[0].phrase" in await refused(
        pb.RecognitionOptions(hot_phrases=[pb.HotPhrase(phrase=" ")])
    )


async def test_a_detector_is_no_recogniser_and_audio_must_be_whole(
    stub: Any, spoken: NDArray[np.float32]
) -> None:
    sound = packed(spoken)
    wrong = pb.RecognizeRequest(model="silero-vad", audio=sound)
    assert "expected a model for speech recognition" in await refusal(
        stub.Recognize(wrong), grpc.StatusCode.FAILED_PRECONDITION
    )
    truncated = pb.RecognizeRequest(model=MODEL, audio=sound[: len(sound) // 2])
    assert "a part" in await refusal(stub.Recognize(truncated))


async def test_cancelled_recording_leaves_the_decoder(stub: Any, spoken: NDArray[np.float32]) -> None:
    long = np.tile(spoken, 30)  # five minutes
    call = stub.Recognize(pb.RecognizeRequest(model=MODEL, audio=packed(long)))
    await asyncio.sleep(1.0)
    call.cancel()
    short = await stub.Recognize(pb.RecognizeRequest(model=MODEL, audio=packed(spoken)), timeout=60)
    assert plain(short.text) == TEXT
