"""Phrases mode and keywords over gRPC and from the typed client, with the real tiny.en and detector."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from aimass import (
    AudioEncoding,
    AudioFormat,
    Final,
    Flush,
    Keyword,
    RecognitionClient,
    RecognitionOptions,
)
from aimass.errors import InvalidRequest
from aimass_serving.testing import running_service
from aimass_speech.__main__ import PLAN
from numpy.typing import NDArray

MODEL = "whisper-tiny.en"
RATE = 16_000
PCM = AudioFormat(encoding=AudioEncoding.PCM_S16LE, sample_rate_hz=RATE)
PHRASES = ["It was the age of reason", "it was the best of times, it was the worst of times", "turn it off"]


@pytest.fixture
def store(silero_store: Path, whisper_tiny_store: Path, tmp_path: Path) -> Path:
    for source in (silero_store, whisper_tiny_store):
        shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    return tmp_path


def pcm(samples: NDArray[np.float32]) -> bytes:
    return (samples * 32767).astype("<i2").tobytes()


def pieces(samples: NDArray[np.float32]) -> Iterator[bytes]:
    content = pcm(samples)
    return (content[start : start + 3200] for start in range(0, len(content), 3200))


async def test_one_of_the_phrases_is_answered_or_none_and_keywords_are_told_when_said(
    store: Path, spoken: NDArray[np.float32]
) -> None:
    """One server for all: it is the start that takes time."""
    async with running_service(PLAN, store) as running:
        await asyncio.to_thread(_ask_all, running.address, spoken)


def _ask_all(address: str, spoken: NDArray[np.float32]) -> None:
    with RecognitionClient(address) as client:
        _ask_recordings(client, spoken)
        _ask_live(client, spoken)
        _ask_keywords(client, spoken)


def _ask_recordings(client: RecognitionClient, spoken: NDArray[np.float32]) -> None:
    first = pcm(spoken[: 4 * RATE])
    options = RecognitionOptions(phrases=PHRASES)
    said = client.recognize(first, model=MODEL, audio_format=PCM, options=options)
    assert said.phrase == said.text == PHRASES[1]
    assert said.phrase_scores[0].score > 0.9
    other = client.recognize(
        first, model=MODEL, audio_format=PCM, options=RecognitionOptions(phrases=["turn it off", "stop"])
    )
    assert (other.phrase, other.text, list(other.segments)) == (None, "", [])
    silent = client.recognize(bytes(RATE), model=MODEL, audio_format=PCM, options=options)
    assert silent.phrase is None
    with pytest.raises(InvalidRequest, match=r"audio: expected at most 30 s of speech with options\.phrases"):
        client.recognize(pcm(np.tile(spoken, 5)), model=MODEL, audio_format=PCM, options=options)
    wrong = RecognitionOptions(phrases=["stop", "Stop!"])
    with pytest.raises(InvalidRequest, match=r"options\.phrases\[1\]"):
        client.recognize(first, model=MODEL, audio_format=PCM, options=wrong)


def _ask_live(client: RecognitionClient, spoken: NDArray[np.float32]) -> None:
    """Both utterances have a final: one with a phrase, one without."""
    audio: list[bytes | Flush] = [*pieces(spoken[: 4 * RATE]), Flush(), *pieces(spoken[4 * RATE :])]
    with client.recognize_stream(
        audio,
        model=MODEL,
        audio_format=PCM,
        options=RecognitionOptions(phrases=PHRASES),
        end_silence_s=1.0,
    ) as stream:
        finals = [event for event in stream if isinstance(event, Final)]
    assert [final.phrase for final in finals] == [PHRASES[1], None]
    assert finals[1].segment.text == ""


def _ask_keywords(client: RecognitionClient, spoken: NDArray[np.float32]) -> None:
    wanted: list[Keyword | str] = ["Worst", Keyword(phrase="age of wisdom", threshold=0.3), "lamp", "wise"]
    with client.spot_keywords(pieces(spoken), wanted, model=MODEL, audio_format=PCM) as stream:
        found = list(stream)
    assert [one.phrase for one in found] == ["Worst", "age of wisdom"]
    assert 2.0 < found[0].start_s < found[0].end_s < 4.2 < found[1].start_s < found[1].end_s < 6.5
    assert all(one.score > 0.3 for one in found)
    with (
        client.spot_keywords(pieces(spoken), [], model=MODEL, audio_format=PCM) as stream,
        pytest.raises(InvalidRequest, match=r"config\.keywords: expected 1 to 100"),
    ):
        list(stream)
