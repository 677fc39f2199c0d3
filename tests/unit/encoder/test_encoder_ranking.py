"""Prompts, pieces and errors of similarity and re-ranking, on a fake graph that reads words."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from aimass_encoder.engine import EncoderEngine
from aimass_encoder.pooling import l2_normalize
from aimass_encoder.ranking import RerankRequest, SimilarityMetric, SimilarityRequest
from aimass_encoder.request import EmbeddedText, EmbedOptions, EmbedRequest
from aimass_encoder.testing import FakeEncoderGraph, fake_engine
from aimass_encoder.token_vectors import TextTokenVectors, TokenVectorsRequest
from aimass_serving.errors import InputTooLong, InvalidField
from numpy.typing import NDArray

WORDS = [f"w{'x' * i}" for i in range(30)]  # a piece of 16 tokens holds 14 of them


@pytest.fixture
def engine() -> Iterator[EncoderEngine]:
    engine = fake_engine(FakeEncoderGraph())
    try:
        yield engine
    finally:
        engine.close()


async def raw_vectors(engine: EncoderEngine, *texts: str) -> NDArray[np.float32]:
    reply = await engine.embed(EmbedRequest(texts, EmbedOptions(normalize=False)))
    return np.stack([r.vector for r in reply.results if isinstance(r, EmbeddedText)])


async def test_a_prompt_stands_in_every_piece_of_a_long_text(engine: EncoderEngine) -> None:
    options = EmbedOptions(prompt_name="query", chunk_overlap=2)
    (split,) = (await engine.embed(EmbedRequest([" ".join(WORDS)], options))).results
    pieces = [WORDS[0:12], WORDS[10:22], WORDS[20:30]]  # the prompt takes two of fourteen places
    by_hand = await raw_vectors(engine, *("query : " + " ".join(piece) for piece in pieces))
    assert isinstance(split, EmbeddedText)
    weights = np.array([16, 16, 14])
    mean = (weights[:, None] * by_hand).sum(axis=0, keepdims=True) / weights.sum()
    np.testing.assert_allclose(split.vector, l2_normalize(mean.astype(np.float32))[0], atol=1e-5)
    assert (split.num_chunks, split.num_tokens, split.num_truncated_tokens) == (3, 46, 0)


async def test_each_side_has_its_own_prompt(engine: EncoderEngine) -> None:
    request = SimilarityRequest(["a b"], ["c", "query : a b"], query_prompt_name="query")
    reply = await engine.similarity(request)
    unit = l2_normalize(await raw_vectors(engine, "query : a b", "c"))
    np.testing.assert_allclose(reply.scores, [[unit[0] @ unit[1], 1]], atol=1e-6)


async def test_a_dot_product_is_of_the_models_own_vectors(engine: EncoderEngine) -> None:
    request = SimilarityRequest(["a b", "c"], metric=SimilarityMetric.DOT, dimensions=3)
    reply = await engine.similarity(request)
    cut = l2_normalize((await raw_vectors(engine, "a b", "c"))[:, :3])  # the fake model normalises
    np.testing.assert_allclose(reply.scores, cut @ cut.T, atol=1e-6)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (SimilarityRequest(["a"], ["b"], query_prompt_name="x"), "options.query_prompt_name"),
        (SimilarityRequest(["a"], ["b"], document_prompt_name="x"), "options.document_prompt_name"),
        (SimilarityRequest(["a"], dimensions=9), "options.dimensions"),
        (SimilarityRequest(["a"], chunk_overlap=8), "options.chunking.overlap_tokens"),
    ],
)
async def test_options_that_the_model_does_not_have_are_refused_by_name(
    engine: EncoderEngine, request_: SimilarityRequest, field: str
) -> None:
    with pytest.raises(InvalidField) as refused:
        await engine.similarity(request_)
    assert refused.value.violations[0].field == field


async def test_a_query_that_cannot_be_read_fails_the_ranking(engine: EncoderEngine) -> None:
    with pytest.raises(InvalidField, match="query: expected at most"):
        await engine.rerank(RerankRequest("x" * 300_000, ["a"]))


async def test_a_prompt_without_room_for_text_is_too_long(engine: EncoderEngine) -> None:
    engine._spec.prompts["long"] = "p " * 14  # type: ignore[index]  # the fake's prompts are a dict
    options = EmbedOptions(prompt_name="long", chunk_overlap=0)
    try:
        (result,) = (await engine.embed(EmbedRequest(["a b"], options))).results
    finally:
        del engine._spec.prompts["long"]  # type: ignore[attr-defined]  # as above
    assert isinstance(result, InputTooLong)
    assert result.field == "texts[0]"


async def test_tokens_of_the_prompt_have_no_place_in_the_text(engine: EncoderEngine) -> None:
    options = EmbedOptions(prompt_name="query", normalize=False)
    (whole,) = (await engine.embed_tokens(TokenVectorsRequest(["ab c"], options))).results
    (own,) = (await engine.embed_tokens(TokenVectorsRequest(["ab c"], options, text_only=True))).results
    assert isinstance(whole, TextTokenVectors)
    assert isinstance(own, TextTokenVectors)
    assert whole.offsets.tolist() == [[0, 0], [0, 0], [0, 0], [0, 2], [3, 4], [0, 0]]
    assert own.offsets.tolist() == [[0, 2], [3, 4]]
    np.testing.assert_array_equal(own.vectors, whole.vectors[3:5])
