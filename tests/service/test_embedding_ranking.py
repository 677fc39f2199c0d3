"""Token vectors, similarity, re-ranking and long texts with the real MiniLM; PyTorch is the oracle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pytest
from aimass import (
    EmbeddingClient,
    EmbeddingOptions,
    ItemError,
    RankingMethod,
    RelevanceScore,
    RerankOptions,
    SimilarityMetric,
    SimilarityOptions,
    TokenEmbeddingOptions,
    Truncation,
    VectorDtype,
)
from aimass.errors import InvalidRequest
from aimass_encoder.__main__ import PLAN
from aimass_serving.testing import running_service
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

    Oracle = tuple[PreTrainedModel, Tokenizer]

T = TypeVar("T")
MODEL = "all-minilm-l6-v2"
LONG = " ".join(f"Chapter {i} tells of a voyage to island number {i} and back." for i in range(60))
QUERY = "How do I reset my password?"
DOCUMENTS = [
    "Our office is open from nine to five on weekdays.",
    "To choose a new password, follow the link in the e-mail that we send you.",
    "The parcel will arrive within three days.",
    "Passwords should be long.",
]


@pytest.fixture
async def address(minilm_store: Path) -> AsyncIterator[str]:
    async with running_service(PLAN, minilm_store) as service:
        yield service.address


async def asked(address: str, call: Callable[[EmbeddingClient], T]) -> T:
    def run() -> T:
        with EmbeddingClient(address) as client:
            return call(client)

    return await asyncio.to_thread(run)


def hidden_of(oracle: Oracle, token_ids: list[int]) -> NDArray[np.float32]:
    """PyTorch's vectors of the tokens, [tokens, hidden_size]."""
    import torch

    with torch.inference_mode():
        hidden: NDArray[np.float32] = oracle[0](torch.tensor([token_ids])).last_hidden_state[0].numpy()
    return hidden


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    scaled: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return scaled


async def test_each_token_has_the_vector_of_pytorch_and_its_place_in_the_text(
    address: str, minilm_model: Oracle
) -> None:
    texts = ["Zürich's 🚲 bicycles", "北京 is a capital"]
    options = TokenEmbeddingOptions(normalize=False)
    found = await asked(address, lambda client: client.embed_tokens(texts, model=MODEL, options=options))
    for text, tokens in zip(texts, found.require_all(), strict=True):
        encoding = minilm_model[1].encode(text)
        assert tokens.token_ids == encoding.ids
        np.testing.assert_allclose(tokens.vectors, hidden_of(minilm_model, encoding.ids), atol=1e-4)
        assert tokens.offsets == encoding.offsets
    first = found.require_all()[0]
    assert texts[0][slice(*first.offsets[-2])] == "bicycles"


async def test_vectors_of_tokens_match_late_interaction_and_travel_in_bytes(address: str) -> None:
    texts = ["Who painted the ceiling?", "Michelangelo painted it.", "Bread needs flour and water."]
    options = TokenEmbeddingOptions(text_only=True, dtype=VectorDtype.INT8)
    query, right, wrong = (
        await asked(address, lambda client: client.embed_tokens(texts, model=MODEL, options=options))
    ).require_all()

    def max_sim(document: NDArray[np.float32]) -> float:
        return float((query.vectors @ document.T).max(axis=1).sum())

    assert max_sim(right.vectors) > max_sim(wrong.vectors)
    assert len(query.vectors) == query.tokens - 2
    np.testing.assert_allclose(np.linalg.norm(query.vectors, axis=1), 1, atol=0.01)


async def test_similarities_are_those_of_sentence_transformers(address: str) -> None:
    from aimass_exporters.progress import SilentProgress
    from aimass_exporters.sources.source import resolve_source
    from sentence_transformers import SentenceTransformer

    oracle = SentenceTransformer(str(resolve_source(MODEL, SilentProgress()).path), device="cpu")
    expected = oracle.similarity(oracle.encode([QUERY, "Opening hours"]), oracle.encode(DOCUMENTS)).numpy()
    found = await asked(
        address, lambda client: client.similarity([QUERY, "Opening hours"], DOCUMENTS, model=MODEL)
    )
    np.testing.assert_allclose(found.scores, expected, atol=1e-5)
    assert found.scores.argmax(axis=1).tolist() == [1, 0]
    dot = SimilarityOptions(metric=SimilarityMetric.DOT)
    each = await asked(address, lambda client: client.similarity(DOCUMENTS, model=MODEL, options=dot))
    assert each.scores.shape == (4, 4)
    np.testing.assert_allclose(np.diag(each.scores), 1, atol=1e-5)


async def test_a_bad_text_leaves_the_other_similarities(address: str) -> None:
    found = await asked(
        address, lambda client: client.similarity([QUERY, ""], ["x" * 300_000, QUERY], model=MODEL)
    )
    assert np.isnan(found.scores).tolist() == [[True, False], [True, True]]
    assert found.scores[0, 1] == pytest.approx(1, abs=1e-5)
    errors = [text for text in (found.queries[1], found.documents[0]) if isinstance(text, ItemError)]
    assert [error.violations[0].field for error in errors] == ["queries[1]", "documents[0]"]


async def test_an_embedding_model_ranks_and_says_that_it_is_one(address: str) -> None:
    options = RerankOptions(top_n=2, return_documents=True)
    ranking = await asked(
        address, lambda client: client.rerank(QUERY, [*DOCUMENTS, ""], model=MODEL, options=options)
    )
    assert [result.document for result in ranking.results] == [DOCUMENTS[1], DOCUMENTS[3]]
    assert (ranking.method, ranking.score) == (RankingMethod.BI_ENCODER, RelevanceScore.COSINE)
    assert {i: e.violations[0].field for i, e in ranking.errors.items()} == {4: "documents[4]"}


async def test_the_vector_of_a_text_in_pieces_is_the_weighted_mean_of_pytorchs(
    address: str, minilm_model: Oracle
) -> None:
    cut = await asked(address, lambda client: client.embed([LONG], model=MODEL))
    options = EmbeddingOptions(chunk_overlap=16)
    split = await asked(address, lambda client: client.embed([LONG, QUERY], model=MODEL, options=options))
    first, *body, last = minilm_model[1].encode(LONG).ids
    room = cut.tokens[0] - 2
    pieces = [[first, *body[i : i + room], last] for i in range(0, len(body) - 16, room - 16)]
    means = np.stack([hidden_of(minilm_model, piece).mean(axis=0) for piece in pieces])
    expected = unit(np.array([len(piece) for piece in pieces]) @ means)
    np.testing.assert_allclose(split.require_all()[0], expected, atol=1e-5)
    assert split.chunks == (len(pieces), 1)
    assert split.truncated_tokens == (0, 0)
    assert cut.chunks == (1,)
    assert cut.truncated_tokens == (len(body) - room,)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (EmbeddingOptions(chunk_overlap=-1), r"options\.chunking\.overlap_tokens"),
        (EmbeddingOptions(chunk_overlap=500), r"options\.chunking\.overlap_tokens"),
    ],
)
async def test_an_overlap_out_of_range_fails_the_call(
    address: str, options: EmbeddingOptions, field: str
) -> None:
    with pytest.raises(InvalidRequest, match=field):
        await asked(address, lambda client: client.embed([LONG], model=MODEL, options=options))


BAD_CALLS: list[tuple[Callable[[EmbeddingClient], Any], str]] = [
    (lambda client: client.similarity([], ["a"], model=MODEL), "queries"),
    (lambda client: client.similarity(["a"] * 100_000, model=MODEL), "queries: .*at most 2048"),
    (lambda client: client.rerank("", ["a"], model=MODEL), "query"),
    (lambda client: client.rerank("a", [], model=MODEL), "documents"),
    (
        lambda client: client.rerank("a", ["b"], model=MODEL, options=RerankOptions(top_n=0)),
        r"options\.top_n",
    ),
    (
        lambda client: client.rerank(
            "a", ["b"], model=MODEL, options=RerankOptions(score=RelevanceScore.SIGMOID)
        ),
        r"options\.score",
    ),
    (
        lambda client: client.rerank(
            "a", ["b"], model=MODEL, options=RerankOptions(document_prompt_name="passage")
        ),
        r"options\.document_prompt_name",
    ),
    (lambda client: client.rerank("x" * 300_000, ["b"], model=MODEL), "query"),
    (lambda client: client.embed_tokens([], model=MODEL), "texts"),
    (lambda client: client.embed_tokens([LONG] * 200, model=MODEL), "texts: .*tokens together"),
]


async def test_bad_calls_are_refused_by_the_names_of_their_fields(address: str) -> None:
    for call, message in BAD_CALLS:
        with pytest.raises(InvalidRequest, match=message):
            await asked(address, call)


async def test_long_texts_can_be_refused(address: str) -> None:
    options = TokenEmbeddingOptions(truncation=Truncation.NONE)
    found = await asked(
        address, lambda client: client.embed_tokens([LONG, "a"], model=MODEL, options=options)
    )
    (error,) = [result for result in found.results if isinstance(result, ItemError)]
    assert (error.reason, error.violations[0].field) == ("INPUT_TOO_LONG", "texts[0]")
