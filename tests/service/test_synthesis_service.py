"""Synthesis over gRPC with the real hibari voice: audio, times, refusals, and the way back to text."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
import soundfile
from aimass import AudioEncoding, Flush, SynthesisClient, SynthesisOptions, TimingKind
from aimass.cli import app
from aimass.errors import InvalidRequest, ModelNotFound, Overloaded, error_of
from aimass.speech.v1 import recognition_service_pb2 as recognition
from aimass.speech.v1 import synthesis_service_pb2 as pb
from aimass.speech.v1.recognition_service_pb2_grpc import SpeechRecognitionServiceStub
from aimass.speech.v1.synthesis_service_pb2_grpc import SpeechSynthesisServiceStub
from aimass_serving.testing import running_service
from aimass_speech.__main__ import PLAN
from aimass_speech.audio import AudioFormat, decode_audio
from aimass_speech.config import SpeechConfig
from aimass_speech.synthesis.engine import SynthesisEngine
from typer.testing import CliRunner

pytestmark = pytest.mark.asyncio(loop_scope="module")

VOICE = "hibari-heart"
TEXT = "The quick brown fox jumps over the lazy dog. Please call me at seven thirty tomorrow morning."


@pytest.fixture(scope="module")
def store(hibari_store: Path, whisper_tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    for source in (hibari_store, whisper_tiny_store):
        shutil.copytree(source, folder, dirs_exist_ok=True)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(store: Path) -> AsyncIterator[Any]:
    settings = SpeechConfig(max_synthesis_streams=8, max_synthesis_idle_s=0.5)
    async with running_service(PLAN, store, extra=[settings]) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def channel(service: Any) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(service.address) as opened:
        yield opened


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    return SpeechSynthesisServiceStub(channel)  # the asynchronous one, which its types do not know


@pytest.fixture
def engine(service: Any) -> SynthesisEngine:
    found = service.registry.get(VOICE).engine
    assert isinstance(found, SynthesisEngine)
    return found


def asked(text: str = TEXT, **options: Any) -> pb.SynthesizeRequest:
    return pb.SynthesizeRequest(voice=VOICE, text=text, options=pb.SynthesisOptions(**options))


def plain(text: str) -> str:
    return " ".join("".join(c if c.isalpha() else " " for c in text.lower()).split())


async def test_what_is_spoken_is_heard_again_word_for_word(stub: Any, channel: grpc.aio.Channel) -> None:
    events = [event async for event in stub.Synthesize(asked(sample_rate_hz=16_000))]
    assert [event.WhichOneof("event") for event in (events[0], events[-1])] == ["info", "end"]
    audio = b"".join(event.audio.data for event in events)
    assert events[-1].end.audio_duration.ToMilliseconds() == pytest.approx((len(audio) - 44) / 32, abs=1)
    hearing: Any = SpeechRecognitionServiceStub(channel)
    request = recognition.RecognizeRequest(model="whisper-tiny.en", audio=audio)
    heard = await hearing.Recognize(request)
    assert plain(heard.text).replace(" 7 30 ", " seven thirty ").replace("7 30", "seven thirty") in (
        plain(TEXT),
        plain(TEXT.replace("seven thirty", "")),  # written as digits
    )


async def test_the_typed_client_reads_audio_timings_and_voices(service: Any) -> None:
    def speak(encoding: AudioEncoding, **options: Any) -> Any:
        with SynthesisClient(service.address) as client:
            chosen = SynthesisOptions(encoding=encoding, word_timings=True, **options)
            with client.speak("Hello wide world ☃", options=chosen) as stream:
                return stream.read_all()

    for encoding in (AudioEncoding.FLAC, AudioEncoding.OGG_OPUS, AudioEncoding.MP3):
        spoken = await asyncio.to_thread(speak, encoding, seed=3)
        assert spoken.info.sample_rate_hz == 24_000
        samples = decode_audio(spoken.data, AudioFormat(sample_rate_hz=24_000), max_audio_s=10)
        assert len(samples) / 16_000 == pytest.approx(spoken.end.audio_s, abs=0.15)
        assert 0.05 < abs(samples).max() <= 1
    again = await asyncio.to_thread(speak, AudioEncoding.PCM_S16LE, seed=3)
    assert again.data == (await asyncio.to_thread(speak, AudioEncoding.PCM_S16LE, seed=3)).data
    assert again.data != (await asyncio.to_thread(speak, AudioEncoding.PCM_S16LE, seed=4)).data
    assert [timing.text for timing in again.timings] == ["Hello", "wide", "world"]
    assert {timing.kind for timing in again.timings} == {TimingKind.WORD}
    times = [(timing.start_s, timing.end_s) for timing in again.timings]
    assert all(start < end for start, end in times)
    assert [*times] == sorted(times)
    assert again.end.unpronounceable == ("☃",)
    slow = await asyncio.to_thread(speak, AudioEncoding.PCM_S16LE, rate=0.5)
    assert slow.end.audio_s > 1.5 * again.end.audio_s

    def voices(language: str) -> list[str]:
        with SynthesisClient(service.address) as client:
            return [voice.name for voice in client.voices(language=language)]

    assert [await asyncio.to_thread(voices, tag) for tag in ("", "en", "en-us", "e", "de")] == [
        [VOICE],
        [VOICE],
        [VOICE],
        [],
        [],
    ]


async def test_a_sentence_is_spoken_while_the_next_one_is_not_there_yet(service: Any) -> None:
    heard: list[int] = []
    has_heard = threading.Event()

    def pieces() -> Iterator[str | Flush]:
        yield from ("One sen", "tence is over. ", "And this one")
        assert has_heard.wait(60), "the first is heard before the second has ended"
        yield Flush()
        yield " is flushed"

    def listen() -> float:
        with (
            SynthesisClient(service.address) as client,
            client.speak_stream(pieces(), options=SynthesisOptions(encoding=AudioEncoding.MULAW)) as stream,
        ):
            for chunk in stream:
                heard.append(len(chunk.data))
                has_heard.set()
            return stream.end.audio_s

    audio_s = await asyncio.to_thread(listen)
    assert sum(heard) == pytest.approx(24_000 * audio_s, abs=1)
    assert audio_s > 2


@pytest.mark.parametrize(
    ("request_pb", "field", "said"),
    [
        (pb.SynthesizeRequest(voice=VOICE), "input", "one of: text, ssml, phonemes"),
        (asked("  "), "text", "not empty"),
        (asked("word " * 20_000), "text", "at most 50000 characters"),
        (asked(rate=9), "options.rate", "0.25 to 4"),
        (asked(rate=float("nan")), "options.rate", "a number"),
        (asked(volume_db=20), "options.volume_db", "-96 to 16"),
        (asked(encoding=99), "options.encoding", "one of: AUTO, WAV"),
        (asked(sample_rate_hz=0), "options.sample_rate_hz", "8000 to 48000"),
        (asked(sample_rate_hz=44_100, encoding=6), "options.sample_rate_hz", "for OGG_OPUS one of"),
        (
            asked(pronunciations=[pb.Pronunciation(word=w, ipa="a") for w in ("A", "a")]),
            "options.pronunciations[1].word",
            "each word once",
        ),
        (pb.SynthesizeRequest(voice=VOICE, ssml="<speak>a"), "ssml", "at byte 8"),
    ],
)
async def test_a_bad_request_is_refused_by_its_field(
    stub: Any, request_pb: pb.SynthesizeRequest, field: str, said: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Synthesize(request_pb).read()
    error = error_of(caught.value, address="")
    assert isinstance(error, InvalidRequest)
    assert [violation.field for violation in error.violations] == [field]
    assert said in error.violations[0].description


async def test_an_unknown_voice_and_a_model_of_another_task_are_refused(stub: Any) -> None:
    for name, code in (("nobody", "NOT_FOUND"), ("whisper-tiny.en", "FAILED_PRECONDITION")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Synthesize(pb.SynthesizeRequest(voice=name, text="Hi")).read()
        assert caught.value.code().name == code
    assert not isinstance(error_of(caught.value, address=""), ModelNotFound)


async def streamed(stub: Any, *requests: pb.StreamingSynthesizeRequest, stays: bool = False) -> list[str]:
    async def all_of() -> AsyncIterator[pb.StreamingSynthesizeRequest]:
        for request in requests:
            yield request
        if stays:
            await asyncio.sleep(30)

    return [event.WhichOneof("event") async for event in stub.StreamingSynthesize(all_of())]


async def test_a_stream_of_text_keeps_its_order_and_its_limits(stub: Any, engine: SynthesisEngine) -> None:
    config = pb.StreamingSynthesizeRequest(config=pb.StreamingSynthesisConfig(voice=VOICE))
    text = pb.StreamingSynthesizeRequest(text="Hi. ")
    assert await streamed(stub, config) == ["info", "audio", "end"]  # a header, and nothing to say
    bad = (
        ((text,), "INVALID_ARGUMENT"),
        ((config, config), "INVALID_ARGUMENT"),
        ((config, pb.StreamingSynthesizeRequest()), "INVALID_ARGUMENT"),
        ((config, pb.StreamingSynthesizeRequest(text="a" * 50_001)), "INVALID_ARGUMENT"),
    )
    for requests, code in bad:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await streamed(stub, *requests)
        assert caught.value.code().name == code
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await streamed(stub, config, text, stays=True)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "waiting for text" in str(caught.value.details())
    assert engine.num_open == 0


async def test_two_hundred_at_once_are_spoken_or_told_when_to_come_back(
    stub: Any, engine: SynthesisEngine
) -> None:
    async def one() -> str:
        try:
            events = [event async for event in stub.Synthesize(asked("Hello there."))]
        except grpc.aio.AioRpcError as failure:
            error = error_of(failure, address="")
            assert isinstance(error, Overloaded)
            assert error.retry_after_s == 2.0
            return "refused"
        return str(events[-1].WhichOneof("event"))

    outcomes = await asyncio.gather(*(one() for _ in range(200)))
    assert set(outcomes) == {"end", "refused"}
    assert outcomes.count("end") >= 8
    assert engine.num_open == 0


async def test_a_cancelled_call_frees_its_place(stub: Any, engine: SynthesisEngine) -> None:
    call = stub.Synthesize(asked(f"{TEXT} " * 100))
    while not (await call.read()).HasField("audio"):
        pass
    assert engine.num_open == 1
    call.cancel()
    for _ in range(500):
        if not engine.num_open:
            break
        await asyncio.sleep(0.01)
    assert engine.num_open == 0


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_the_command_line_writes_a_file_that_any_player_reads(service: Any, tmp_path: Path) -> None:
    def run(*arguments: str, text: str | None = None) -> Any:
        command = ["speak", *arguments, "--address", service.address]
        return CliRunner().invoke(app, command, input=text, catch_exceptions=False)

    file = tmp_path / "hello.wav"
    done = await asyncio.to_thread(run, "Hello ☃", "-o", str(file), "--json", "--seed", "5")
    answer = json.loads(done.stdout)
    assert soundfile.info(file).duration == pytest.approx(answer["audio_s"])
    assert (answer["seed"], answer["unpronounceable"]) == (5, ["☃"])
    assert [timing["text"] for timing in answer["timings"]] == ["Hello"]
    ssml = '<speak><break time="2s"/>Hi</speak>'
    done = await asyncio.to_thread(run, "--ssml", "-o", str(tmp_path / "a.mp3"), text=ssml)
    assert done.exit_code == 0
    assert soundfile.info(tmp_path / "a.mp3").duration > 2
    refused = await asyncio.to_thread(run, "x", "-o", str(tmp_path / "x.doc"))
    assert refused.exit_code == 2
    failed = await asyncio.to_thread(run, "x", "--voice", "nobody", "-o", str(tmp_path / "x.wav"))
    assert failed.exit_code == 1
    assert names_in(tmp_path) == ["a.mp3", "hello.wav"]
