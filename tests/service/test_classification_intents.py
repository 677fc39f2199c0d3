"""Text classification with a real model, 157 intents on MiniLM: server, client and command."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from aimass import ClassificationClient, ClassifyOptions, ScoreKind, TextClass, TextClasses
from aimass.cli.application import app
from aimass.embeddings import ItemError
from aimass.errors import InvalidRequest, RpcError
from aimass_encoder.__main__ import PLAN
from aimass_serving.testing import running_service
from typer.testing import CliRunner

MODEL = "minilm-intents"
ASKED = {
    "where is my package?": "order_status",
    "set a timer for ten minutes": "timer",
    "how do you say good morning in french": "translate",
    "i lost my phone, help me find it": "find_phone",
    "what is the meaning of life": "meaning_of_life",
}


@pytest.fixture(scope="module")
def intents_store() -> Path:
    from aimass_exporters.testing import cached_export

    return cached_export(MODEL, name=MODEL)


@pytest.fixture
async def address(intents_store: Path) -> AsyncIterator[str]:
    async with running_service(PLAN, intents_store) as service:
        yield service.address


async def classify(address: str, texts: list[str], options: ClassifyOptions | None = None) -> TextClasses:
    def call() -> TextClasses:
        with ClassificationClient(address) as client:
            return client.classify(texts, model=MODEL, options=options, deadline_s=60)

    return await asyncio.to_thread(call)


async def test_requests_have_the_intents_a_person_would_name(address: str) -> None:
    classes = await classify(address, list(ASKED))
    best = [result.best.label for result in classes.require_all() if result.best]
    assert best == list(ASKED.values())
    assert classes.score_kind is ScoreKind.SINGLE_LABEL
    assert classes.usage.input_tokens == sum(result.tokens for result in classes.require_all())


async def test_scores_are_those_of_the_scikit_learn_classifier_on_sentence_transformers(address: str) -> None:
    """The oracle shares no code with the export: scikit-learn's own model, sentence-transformers' vectors."""
    import warnings

    import joblib
    from aimass_exporters.progress import SilentProgress
    from aimass_exporters.sources.source import resolve_source
    from sentence_transformers import SentenceTransformer

    folder = resolve_source(MODEL, SilentProgress()).path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # written by an older scikit-learn
        classifier = joblib.load(folder / "LogisticRegression.joblib")  # pinned by hash
    names = joblib.load(folder / "label_map.joblib")
    encoder = SentenceTransformer(
        str(resolve_source("all-minilm-l6-v2", SilentProgress()).path), device="cpu"
    )
    vectors = encoder.encode(list(ASKED), normalize_embeddings=True, convert_to_numpy=True)
    logits = vectors @ classifier.coef_.T + classifier.intercept_
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)

    served = (await classify(address, list(ASKED), ClassifyOptions(top_k=157))).require_all()
    for result, row in zip(served, expected, strict=True):
        by_index = {score.index: score for score in result.labels}
        assert [by_index[i].label for i in range(157)] == [names[key] for key in classifier.classes_]
        np.testing.assert_allclose([by_index[i].score for i in range(157)], row, atol=1e-5)


async def test_a_text_has_the_same_scores_alone_and_in_a_batch(address: str) -> None:
    texts = [*ASKED, "could you please " * 30 + "find my phone", "hi"]
    together = (await classify(address, texts * 5)).require_all()
    for place, text in enumerate(texts):
        (alone,) = (await classify(address, [text])).require_all()
        assert alone.best is not None
        batched = together[place + len(texts)].best
        assert batched is not None
        assert batched.label == alone.best.label
        assert abs(batched.score - alone.best.score) <= 1e-5


async def test_a_threshold_lets_the_model_abstain(address: str) -> None:
    options = ClassifyOptions(threshold=0.5)
    sure, unsure = (
        await classify(address, ["set a timer for ten minutes", "blue seven the"], options)
    ).require_all()
    assert [score.label for score in sure.labels] == ["timer"]
    assert unsure.labels == []


async def test_bad_inputs_fail_alone_and_unknown_labels_fail_the_call(address: str) -> None:
    results = (await classify(address, ["what time is it", "", "x" * 300_000])).results
    assert isinstance(results[0], TextClass)
    errors = [r for r in results if isinstance(r, ItemError)]
    assert [e.violations[0].field for e in errors] == ["inputs[1].text", "inputs[2].text"]
    with pytest.raises(InvalidRequest, match=r"options\.labels\[1\]"):
        await classify(address, ["hi"], ClassifyOptions(labels=("timer", "nonsense")))
    with pytest.raises(InvalidRequest, match="inputs"):
        await classify(address, [])


async def test_only_the_asked_for_labels_come_back(address: str) -> None:
    options = ClassifyOptions(labels=("timer", "translate"), top_k=5)
    (result,) = (await classify(address, ["set a timer"], options)).require_all()
    assert [score.label for score in result.labels] == ["timer", "translate"]


async def test_embedding_with_a_classifier_is_the_wrong_task(address: str) -> None:
    from aimass import EmbeddingClient

    def call() -> None:
        with EmbeddingClient(address) as client:
            client.embed(["hi"], model=MODEL, deadline_s=30)

    with pytest.raises(RpcError, match="expected a model for embedding"):
        await asyncio.to_thread(call)


async def test_the_command_prints_one_json_object_or_a_table(address: str) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["classify", *arguments, "--address", address])
        assert result.exit_code == 0, result.output
        return result.stdout

    printed = await asyncio.to_thread(run, "set a timer for ten minutes", "--json")
    assert json.loads(printed)["results"][0]["labels"][0]["label"] == "timer"
    table = await asyncio.to_thread(run, "set a timer for ten minutes", "--top-k", "2")
    assert "timer" in table
