"""The multilingual Whisper: which language is spoken, what is said in it, and what that is in English."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from aimass.speech.v1 import recognition_service_pb2 as pb
from aimass.speech.v1.recognition_service_pb2_grpc import SpeechRecognitionServiceStub
from aimass_exporters.sources.packages import Package, fetch_package
from aimass_exporters.testing import cached_export
from aimass_serving.testing import running_service
from aimass_speech.__main__ import PLAN

MODEL = "whisper-base"
RECORDINGS = Package(
    "pytest-audioeval", "0.1.3", "8b97369347232d43180dd9860189c547ccc8dedb42b7c21d511ddc5a05ef7ecc"
)
"""Sentences in ten languages with their texts, MIT."""


@pytest.fixture(scope="module")
def store() -> Path:
    return cached_export(MODEL, name=MODEL)


@pytest.fixture(scope="module")
def recordings() -> dict[str, bytes]:
    """Counting to ten in Spanish, Chinese and English; a sentence in French, of a judge and old whisky."""
    folder = fetch_package(RECORDINGS) / "pytest_audioeval/samples/audio"
    names = {"es": "conteo", "zh": "jishu", "en": "counting", "fr": "pangrama"}
    return {language: (folder / language / f"{name}.wav").read_bytes() for language, name in names.items()}


@pytest.fixture
async def stub(store: Path) -> AsyncIterator[Any]:
    async with (
        running_service(PLAN, store) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        yield SpeechRecognitionServiceStub(channel)  # the asynchronous one, which its types do not know


def words(text: str) -> set[str]:
    return set("".join(c if c.isalnum() else " " for c in text.casefold()).split())


async def test_languages_are_recognised_written_and_translated(
    stub: Any, recordings: dict[str, bytes]
) -> None:
    async def recognized(spoken: str, **settings: Any) -> pb.RecognizeResponse:
        options = pb.RecognitionOptions(**settings)
        request = pb.RecognizeRequest(model=MODEL, audio=recordings[spoken], options=options)
        response: pb.RecognizeResponse = await stub.Recognize(request)
        return response

    found = dict(zip(recordings, await asyncio.gather(*map(recognized, recordings)), strict=True))
    for language, response in found.items():
        assert response.language == language
        assert response.language_probability > 0.5
    assert {"portez", "ce", "vieux", "whisky", "au", "juge"} <= words(found["fr"].text)
    translated = await recognized("fr", task=pb.RECOGNITION_TASK_TRANSLATE)
    assert translated.language == "fr"
    assert {"old", "judge"} <= words(translated.text)
    assert not {"vieux", "juge"} & words(translated.text)
    told = await recognized("fr", language="fr")
    assert (told.text, told.language_probability) == (found["fr"].text, 1.0)
    with pytest.raises(grpc.aio.AioRpcError, match=r"options\.language: expected a language of this model"):
        await recognized("fr", language="xx")
