"""Sparse embeddings with a real SPLADE model: server, client and command, and PyTorch as the oracle."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from aimass import EmbeddingClient, SparseEmbeddings
from aimass.cli.application import app
from aimass.embeddings import ItemError
from aimass.errors import InvalidRequest
from aimass_encoder.__main__ import PLAN
from aimass_serving.testing import running_service
from typer.testing import CliRunner

MODEL = "bert-tiny-splade"
TEXTS = ["interest rates and inflation", "a", "The central bank raised rates. " * 30]


@pytest.fixture(scope="module")
def splade_store() -> Path:
    from aimass_exporters.testing import cached_export

    return cached_export(MODEL, name=MODEL)


@pytest.fixture
async def address(splade_store: Path) -> AsyncIterator[str]:
    async with running_service(PLAN, splade_store) as service:
        yield service.address


async def embed(address: str, texts: list[str], top_k: int | None = None) -> SparseEmbeddings:
    def call() -> SparseEmbeddings:
        with EmbeddingClient(address) as client:
            return client.embed_sparse(texts, model=MODEL, top_k=top_k, deadline_s=60)

    return await asyncio.to_thread(call)


async def test_the_heaviest_words_are_those_that_the_text_is_about(address: str) -> None:
    (text,) = (await embed(address, TEXTS[:1], top_k=4)).require_all()
    assert {"inflation", "interest"} <= set(text.words.values())
    assert list(text.weights.values()) == sorted(text.weights.values(), reverse=True)


async def test_a_query_is_nearest_to_the_passage_on_its_subject(address: str) -> None:
    query, economy, cooking = (
        await embed(
            address,
            [
                TEXTS[0],
                "Prices rise faster when the bank lowers its interest rate.",
                "Stir the soup slowly and add salt and pepper.",
            ],
        )
    ).require_all()
    assert query.dot(economy) > query.dot(cooking)


async def test_weights_are_those_of_pytorch_alone_and_in_a_batch(address: str) -> None:
    import torch
    from aimass_exporters.progress import SilentProgress
    from aimass_exporters.sources.source import resolve_source
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    folder = resolve_source(MODEL, SilentProgress()).path
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    served = await embed(address, TEXTS)
    for text, sparse in zip(TEXTS, served.require_all(), strict=True):
        with torch.inference_mode():
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
        expected = torch.log1p(torch.relu(logits)).amax(dim=0).numpy()
        dense = np.zeros(served.vocabulary_size, np.float32)
        dense[list(sparse.weights)] = list(sparse.weights.values())
        np.testing.assert_allclose(dense, expected, atol=1e-4)


async def test_bad_texts_fail_alone_and_bad_options_fail_the_call(address: str) -> None:
    results = (await embed(address, ["rates", "", "x" * 300_000])).results
    errors = {i: r.violations[0].field for i, r in enumerate(results) if isinstance(r, ItemError)}
    assert errors == {1: "texts[1]", 2: "texts[2]"}
    with pytest.raises(InvalidRequest, match=r"options\.top_k"):
        await embed(address, ["rates"], top_k=0)


async def test_the_command_prints_words_and_weights(address: str) -> None:
    arguments = ["embed-sparse", TEXTS[0], "--top-k", "3", "--address", address]
    printed = await asyncio.to_thread(CliRunner().invoke, app, [*arguments, "--json"])
    assert printed.exit_code == 0, printed.output
    (result,) = json.loads(printed.stdout)["results"]
    assert len(result["words"]) == len(result["weights"]) == 3
    table = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    assert result["words"][0] in table.stdout
