"""Re-ranking with a cross-encoder of random weights, PyTorch as the oracle: server, client and command."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from aimass import EmbeddingClient, Ranking, RankingMethod, RelevanceScore, RerankOptions
from aimass.cli.application import app
from aimass.errors import InvalidRequest
from aimass_encoder.__main__ import PLAN
from aimass_serving.testing import running_service
from typer.testing import CliRunner

MODEL = "tiny-cross-encoder"
QUERY = "What does a dog eat?"
DOCUMENTS = ["Dogs eat meat.", "The sea is blue. " * 3, "A train", "It rained all day and all night, " * 12]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from aimass_exporters.testing import tiny_tokenizer
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("cross-encoder")
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=512,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=96,
        num_labels=1,
        initializer_range=0.3,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def store(folder: Path) -> Path:
    from aimass_exporters.testing import cached_export

    return cached_export(folder, name=MODEL, task="text-classification")


@pytest.fixture
async def address(store: Path) -> AsyncIterator[str]:
    async with running_service(PLAN, store) as service:
        yield service.address


async def rerank(address: str, options: RerankOptions, documents: list[str] = DOCUMENTS) -> Ranking:
    def call() -> Ranking:
        with EmbeddingClient(address) as client:
            return client.rerank(QUERY, documents, model=MODEL, options=options)

    return await asyncio.to_thread(call)


async def test_scores_are_the_logits_of_pytorch_the_best_first(address: str, folder: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(1)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        expected = [
            model(**tokenizer(QUERY, document, return_tensors="pt")).logits.item()
            for document in DOCUMENTS[:3]
        ]
    ranking = await rerank(address, RerankOptions(score=RelevanceScore.RAW), DOCUMENTS[:3])
    assert [r.index for r in ranking.results] == np.argsort([-logit for logit in expected]).tolist()
    np.testing.assert_allclose([r.score for r in ranking.results], sorted(expected, reverse=True), atol=1e-3)
    assert (ranking.method, ranking.score) == (RankingMethod.CROSS_ENCODER, RelevanceScore.RAW)
    sigmoid = await rerank(address, RerankOptions(), DOCUMENTS[:3])
    assert sigmoid.score is RelevanceScore.SIGMOID
    odds = 1 / (1 + np.exp(-np.array(sorted(expected, reverse=True))))
    np.testing.assert_allclose([r.score for r in sigmoid.results], odds, atol=1e-3)


async def test_a_long_document_is_cut_or_counts_as_its_best_piece(address: str) -> None:
    raw = RelevanceScore.RAW
    (cut,) = (await rerank(address, RerankOptions(score=raw), DOCUMENTS[3:])).results
    options = RerankOptions(score=raw, chunk_overlap=8)
    (split,) = (await rerank(address, options, DOCUMENTS[3:])).results
    assert cut.truncated_tokens > 0
    assert (split.truncated_tokens, split.chunks > 1) == (0, True)
    assert split.score >= cut.score - 1e-4  # the first piece is what the cut leaves


async def test_a_bad_document_fails_alone_and_a_wrong_score_the_call(address: str) -> None:
    ranking = await rerank(address, RerankOptions(), ["", *DOCUMENTS])
    assert {i: e.violations[0].field for i, e in ranking.errors.items()} == {0: "documents[0]"}
    assert sorted(r.index for r in ranking.results) == [1, 2, 3, 4]
    with pytest.raises(InvalidRequest, match=r"options\.score: expected sigmoid or raw"):
        await rerank(address, RerankOptions(score=RelevanceScore.COSINE))


async def test_the_commands_print_one_json_object_or_a_table(address: str) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, "--address", address])
        assert result.exit_code == 0, result.output
        return result.stdout

    printed = json.loads(await asyncio.to_thread(run, "rerank", QUERY, *DOCUMENTS, "--top-n", "2", "--json"))
    assert (len(printed["results"]), printed["method"]) == (2, "cross_encoder")
    assert "cross-encoder" in await asyncio.to_thread(run, "rerank", QUERY, *DOCUMENTS)
