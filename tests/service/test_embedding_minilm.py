"""The embedding service with the real MiniLM and the Python client: answers a person would agree with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from aimass.embedding_client import EmbeddingClient
from aimass.embedding_options import EmbeddingOptions, Truncation
from aimass.embeddings import Embeddings
from aimass.vectors import VectorDtype
from aimass_encoder.__main__ import PLAN
from aimass_serving.testing import running_service
from numpy.typing import NDArray

MODEL = "all-minilm-l6-v2"


@pytest.fixture
async def address(minilm_store: Path) -> AsyncIterator[str]:
    async with running_service(PLAN, minilm_store) as service:
        yield service.address


def similarities(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors @ vectors.T


async def embed(
    address: str, texts: list[str], options: EmbeddingOptions | None = None
) -> NDArray[np.float32]:
    def call() -> NDArray[np.float32]:
        with EmbeddingClient(address) as client:
            return client.embed(texts, model=MODEL, options=options, deadline_s=60).require_all()

    return await asyncio.to_thread(call)


async def test_what_is_alike_is_near_and_what_is_not_is_far(address: str) -> None:
    near = similarities(
        await embed(
            address,
            [
                "A man is playing a guitar.",
                "Someone performs music on an instrument.",
                "The stock market fell sharply on Tuesday.",
                "Share prices dropped steeply this week.",
            ],
        )
    )
    assert near[0, 1] > 0.5 > near[0, 2]
    assert near[2, 3] > 0.5 > near[1, 3]


async def test_a_question_finds_its_answer(address: str) -> None:
    questions = ["How do I reset my password?", "Where is my parcel?", "Can I get my money back?"]
    answers = [
        "Refunds are paid within 14 days of the return.",
        "Choose 'forgot password' on the login page and follow the link we mail you.",
        "Track the delivery with the number in your shipping confirmation.",
    ]
    vectors = await embed(address, questions + answers)
    nearest = (vectors[:3] @ vectors[3:].T).argmax(axis=1)
    assert nearest.tolist() == [1, 2, 0]


@pytest.mark.parametrize("dtype", list(VectorDtype))
async def test_packed_vectors_keep_the_neighbours(address: str, dtype: VectorDtype) -> None:
    texts = [
        "A cat sleeps.",
        "A kitten is napping.",
        "Interest rates were raised.",
        "The bank lifted its rates.",
    ]
    near = similarities(await embed(address, texts, EmbeddingOptions(dtype=dtype)))
    np.fill_diagonal(near, -np.inf)
    assert near.argmax(axis=1).tolist() == [1, 0, 3, 2]


async def test_a_stream_gives_the_vectors_of_a_call_in_order(address: str) -> None:
    texts = [f"Sentence number {i} " + "and so on " * (i % 9) for i in range(80)]

    def stream() -> list[NDArray[np.float32]]:
        with (
            EmbeddingClient(address) as client,
            client.embed_stream(texts, model=MODEL, deadline_s=60) as answers,
        ):
            return [answer.require() for answer in answers]

    streamed = np.stack(await asyncio.to_thread(stream))
    np.testing.assert_allclose(streamed, await embed(address, texts), atol=1e-5)


async def test_a_call_refuses_one_long_text_and_answers_the_others(address: str) -> None:
    def call() -> Embeddings:
        with EmbeddingClient(address) as client:
            texts = ["short", "long " * 1000, "also short"]
            options = EmbeddingOptions(truncation=Truncation.NONE)
            return client.embed(texts, model=MODEL, options=options, deadline_s=60)

    reply = await asyncio.to_thread(call)
    assert {index: error.reason for index, error in reply.errors.items()} == {1: "INPUT_TOO_LONG"}
    assert np.isfinite(reply.vectors[[0, 2]]).all()
