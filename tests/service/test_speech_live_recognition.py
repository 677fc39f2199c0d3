"""Live recognition over gRPC, with the real tiny.en and the real detector."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from aimass.speech.v1 import audio_pb2
from aimass.speech.v1 import recognition_service_pb2 as pb
from aimass.speech.v1.recognition_service_pb2_grpc import SpeechRecognitionServiceStub
from aimass_serving.testing import running_service
from aimass_speech.__main__ import PLAN
from aimass_speech.config import SpeechConfig
from numpy.typing import NDArray

RATE = 16_000
PCM = audio_pb2.AudioFormat(encoding=audio_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hz=RATE)
TEXT = (
    "it was the best of times it was the worst of times "
    "it was the age of wisdom it was the age of foolishness"
)
BEGIN, END = pb.SpeechActivity.KIND_BEGIN, pb.SpeechActivity.KIND_END


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
        running_service(PLAN, speech_store, extra=[SpeechConfig(max_live_streams=4)]) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        yield SpeechRecognitionServiceStub(channel)  # the asynchronous one, which its types do not know


def pcm(samples: NDArray[np.float32]) -> bytes:
    return (samples * 32767).astype("<i2").tobytes()


def audio(content: bytes, piece: int = 1281) -> list[pb.StreamingRecognizeRequest]:
    starts = range(0, len(content), piece)
    return [pb.StreamingRecognizeRequest(audio=content[start : start + piece]) for start in starts]


def configured(**settings: Any) -> pb.StreamingRecognizeRequest:
    config = pb.StreamingRecognitionConfig(model="whisper-tiny.en", format=PCM, **settings)
    return pb.StreamingRecognizeRequest(config=config)


def plain(text: str) -> str:
    return " ".join("".join(c for c in text.lower() if c.isalpha() or c == " ").split())


async def paced(
    requests: Iterable[pb.StreamingRecognizeRequest], delay_s: float
) -> AsyncIterator[pb.StreamingRecognizeRequest]:
    for request in requests:
        yield request
        await asyncio.sleep(delay_s)


async def test_utterances_are_told_in_order_with_interims_and_finals(
    stub: Any, spoken: NDArray[np.float32]
) -> None:
    silence = np.zeros(RATE, np.float32)
    content = pcm(np.concatenate([silence, spoken, silence]))
    requests = [configured(interim_results=True), *audio(content)]
    events = [event async for event in stub.StreamingRecognize(paced(requests, 0.01))]
    finals = [event.final for event in events if event.HasField("final")]
    activities = [event.activity for event in events if event.HasField("activity")]
    interims = [event.interim for event in events if event.HasField("interim")]
    assert plain(" ".join(final.segment.text for final in finals)) == TEXT
    assert [final.utterance for final in finals] == sorted({final.utterance for final in finals})
    assert [activity.kind for activity in activities] == [BEGIN, END] * (len(activities) // 2)
    times = [activity.at.ToMilliseconds() for activity in activities]
    assert times == sorted(times)
    assert times[0] > 1000
    starts = [final.segment.start.ToMilliseconds() for final in finals]
    assert starts == sorted(starts)
    assert interims
    for _, own in itertools.groupby(interims, key=lambda interim: interim.utterance):
        committed = [interim.committed_text for interim in own]
        assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(committed))


async def test_flush_finishes_the_open_utterance_and_is_answered_after_it(
    stub: Any, spoken: NDArray[np.float32]
) -> None:
    flush = pb.StreamingRecognizeRequest(flush=pb.Flush(id="now"))
    requests = [configured(), *audio(pcm(spoken[: int(2.2 * RATE)])), flush, flush]
    options = pb.RecognitionOptions(word_times=True)
    requests[0].config.options.CopyFrom(options)
    call = stub.StreamingRecognize(held_open(requests))
    kinds: list[str] = []
    final = None
    async for event in call:
        kinds.append(str(event.WhichOneof("event")))
        final = event.final if event.HasField("final") else final
        if kinds.count("flushed") == 2:
            break
    call.cancel()
    assert kinds == ["activity", "activity", "final", "flushed", "flushed"]
    assert final is not None
    assert "it was the best" in plain(final.segment.text)
    assert final.segment.words[0].end.ToMilliseconds() <= 2000
    assert 0 <= final.finalization_ms < 60_000


async def test_silence_behind_a_flush_is_no_beginning_however_long_it_may_last(
    stub: Any, spoken: NDArray[np.float32]
) -> None:
    said = audio(pcm(spoken[: int(2.2 * RATE)]))  # speech to its last sample, which a detector hears on
    flush = pb.StreamingRecognizeRequest(flush=pb.Flush(id="now"))
    first = configured()
    first.config.end_silence.FromMilliseconds(5000)
    requests = [first, *said, flush, *audio(pcm(np.zeros(RATE, np.float32))), *said, flush]
    events = [event async for event in stub.StreamingRecognize(paced(requests, 0.001))]
    activities = [event.activity for event in events if event.HasField("activity")]
    assert [activity.kind for activity in activities] == [BEGIN, END, BEGIN, END]
    assert activities[2].at.ToMilliseconds() > 3100
    finals = [event.final.segment for event in events if event.HasField("final")]
    assert len(finals) == 2
    assert all("it was the best" in plain(final.text) for final in finals)


async def held_open(
    requests: Iterable[pb.StreamingRecognizeRequest],
) -> AsyncIterator[pb.StreamingRecognizeRequest]:
    for request in requests:
        yield request
    await asyncio.sleep(300)


async def test_a_client_that_stops_sending_gets_its_utterance(stub: Any, spoken: NDArray[np.float32]) -> None:
    call = stub.StreamingRecognize(held_open([configured(), *audio(pcm(spoken[: 2 * RATE]))]))
    async for event in call:
        if event.HasField("final"):
            assert "it was the best" in plain(event.final.segment.text)
            break
    call.cancel()


async def test_minutes_of_silence_and_noise_have_no_words(stub: Any) -> None:
    noise = np.random.default_rng(1).normal(scale=0.02, size=120 * RATE).astype(np.float32)
    content = pcm(np.concatenate([np.zeros(120 * RATE, np.float32), noise]))
    events = [event async for event in stub.StreamingRecognize([configured(), *audio(content, 32_000)])]
    assert not [event for event in events if event.HasField("final")]


async def test_more_streams_than_allowed_are_refused_and_the_others_go_on(
    stub: Any, spoken: NDArray[np.float32]
) -> None:
    requests = [configured(), *audio(pcm(spoken[: 2 * RATE]))]

    async def text() -> str:
        try:
            events = [event async for event in stub.StreamingRecognize(paced(requests, 0.001))]
        except grpc.aio.AioRpcError as error:
            # A refusal that meets a write of this client: grpc.aio then tells of its own core instead.
            met_a_write = error.details() == "Internal error from Core"
            return "RESOURCE_EXHAUSTED" if met_a_write else error.code().name
        return plain(" ".join(event.final.segment.text for event in events if event.HasField("final")))

    results = await asyncio.gather(*(text() for _ in range(12)))
    served = [result for result in results if result != "RESOURCE_EXHAUSTED"]
    assert 4 <= len(served) < 12
    assert all("it was the best" in result for result in served), served


async def refusal(requests: list[pb.StreamingRecognizeRequest], stub: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.StreamingRecognize(requests).read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return str(caught.value.details())


async def test_bad_streams_are_refused(stub: Any) -> None:
    wav = audio_pb2.AudioFormat(encoding=audio_pb2.AUDIO_ENCODING_WAV)
    header = pb.StreamingRecognizeRequest(
        config=pb.StreamingRecognitionConfig(model="whisper-tiny.en", format=wav)
    )
    hasty = configured()
    hasty.config.end_silence.FromMilliseconds(20)
    greedy = configured(options=pb.RecognitionOptions(beam_size=50))
    assert "the configuration in the first message, got 'audio'" in await refusal(audio(b"\0\0"), stub)
    assert "raw samples" in await refusal([header], stub)
    assert "config.end_silence" in await refusal([hasty], stub)
    assert "config.options.beam_size" in await refusal([greedy], stub)
    assert "got 'config'" in await refusal([configured(), configured()], stub)
