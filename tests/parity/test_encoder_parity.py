"""MiniLM as it is served against PyTorch on the same weights, fp32.

Tolerances: fp32 sums in another order (fused attention, other batch shapes) differ by a few 1e-7 of a unit
vector; 1e-5 leaves room for long texts and is far below what a wrong mask, pooling or token would cause.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from aimass_encoder.engine import EncoderEngine
from aimass_encoder.loader import load_engine
from aimass_encoder.request import EmbeddedText, EmbedOptions, EmbedReply, EmbedRequest, Truncation
from aimass_serving.compute import ComputePermit
from aimass_serving.service import LoadContext
from aimass_serving.session import Device, SessionConfig
from aimass_serving.store import open_store
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

TOLERANCE = 1e-5
MIN_COSINE = 0.99999

TEXTS = [
    "A man is playing a guitar.",
    "a",
    "Someone performs music on an instrument, slowly, in front of a small and rather silent audience.",
    "The stock market fell sharply on Tuesday.",
    "Größe, naïve, façade — « déjà vu »; 東京タワーは高い。 🎸🎶 مرحبا",
    "   spaces   and\n\nnewlines\tand\x00control",
    "word " * 120,
    "The quick brown fox jumps over the lazy dog. " * 40,
]


@pytest.fixture(scope="module")
def engine(minilm_store: Path) -> Iterator[EncoderEngine]:
    store = open_store(str(minilm_store))
    (ref,) = store.list()
    context = LoadContext(SessionConfig(device=Device.CPU), ComputePermit())
    engine = load_engine(store.open(ref), context)
    assert isinstance(engine, EncoderEngine)
    yield engine
    engine.close()


def vectors(reply: EmbedReply) -> NDArray[np.float32]:
    assert all(isinstance(r, EmbeddedText) for r in reply.results), reply.results
    return np.stack([r.vector for r in reply.results if isinstance(r, EmbeddedText)])


def reference(
    oracle: tuple[PreTrainedModel, Tokenizer], text: str, *, max_tokens: int
) -> NDArray[np.float32]:
    """Return the vector as PyTorch gives it, one text alone: no batch, no padding."""
    import torch

    model, tokenizer = oracle[0], copy.deepcopy(oracle[1])  # others read with it too
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    ids = torch.tensor([tokenizer.encode(text).ids])
    with torch.inference_mode():
        hidden: Any = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    pooled = hidden[0].mean(dim=0)
    return np.asarray(torch.nn.functional.normalize(pooled, dim=0).numpy())


async def test_vectors_equal_those_of_pytorch(
    engine: EncoderEngine, minilm_model: tuple[PreTrainedModel, Tokenizer]
) -> None:
    served = vectors(await engine.embed(EmbedRequest(TEXTS)))
    max_tokens = engine.limits.max_tokens
    expected = np.stack([reference(minilm_model, text, max_tokens=max_tokens) for text in TEXTS])
    cosines = (served * expected).sum(axis=1)
    assert cosines.min() >= MIN_COSINE
    assert np.abs(served - expected).max() <= TOLERANCE


async def test_a_text_has_the_same_vector_alone_and_in_a_batch(engine: EncoderEngine) -> None:
    together = vectors(await engine.embed(EmbedRequest(TEXTS * 3)))
    for row, text in enumerate(TEXTS * 3):
        (alone,) = vectors(await engine.embed(EmbedRequest([text])))
        assert np.abs(together[row] - alone).max() <= TOLERANCE


async def test_cutting_a_long_text_is_the_same_as_sending_less(engine: EncoderEngine) -> None:
    long = " ".join(["apple"] * 300 + ["banana"] * 300)
    content_tokens = engine.limits.max_tokens - 2
    end, start = [
        await engine.embed(EmbedRequest([long], EmbedOptions(truncation=side)))
        for side in (Truncation.END, Truncation.START)
    ]
    cut = await engine.embed(
        EmbedRequest([" ".join(["apple"] * content_tokens), " ".join(["banana"] * content_tokens)])
    )
    assert np.abs(np.concatenate([vectors(end), vectors(start)]) - vectors(cut)).max() <= TOLERANCE
    (result,) = end.results
    assert isinstance(result, EmbeddedText)
    assert result.num_tokens == engine.limits.max_tokens
    assert result.num_truncated_tokens == 600 - content_tokens


async def test_sentence_transformers_gives_the_same_vectors(
    engine: EncoderEngine, minilm_model: tuple[PreTrainedModel, Tokenizer]
) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(minilm_model[0].name_or_path, device="cpu")
    expected = model.encode(TEXTS, normalize_embeddings=True, convert_to_numpy=True)
    served = vectors(await engine.embed(EmbedRequest(TEXTS)))
    assert (served * expected).sum(axis=1).min() >= MIN_COSINE
