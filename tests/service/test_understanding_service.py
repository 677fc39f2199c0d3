"""Masked words, answers, own labels, next sentences and sentiment over the wire: server, client, commands.

One service with several models. The masked language model and the sentiment model are trained; of answers,
own labels and next sentences no trained weights are to be had, so their arithmetic is held to transformers'
elsewhere and their random models serve here for places, errors and options.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
import pytest_asyncio
from aimass import (
    AnswerOptions,
    ClassificationClient,
    ClassifyOptions,
    FillMaskOptions,
    ZeroShotOptions,
)
from aimass.cli.application import app
from aimass.embeddings import ItemError
from aimass.errors import InvalidRequest, RpcError, error_of
from aimass_encoder.__main__ import PLAN
from aimass_serving.testing import running_service
from typer.testing import CliRunner

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
]

Reply = TypeVar("Reply")
MASKS, ANSWERS, ENTAILS, NEXT, SENTIMENT = "masks", "answers", "entails", "next", "minilm-review-sentiment"
CONTEXT = "The old mill 🙂 stood by the river until 1871, when a flood took it. " * 6


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from aimass_exporters.sources.catalogue import TaskName
    from aimass_exporters.testing import cached_export
    from aimass_exporters.tiny_encoders import write_tiny_bert

    folder, whole = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("understanding")
    nli = ["contradiction", "neutral", "entailment"]
    sources = {
        ANSWERS: write_tiny_bert(folder / "qa", TaskName.QUESTION_ANSWERING, max_tokens=40),
        ENTAILS: write_tiny_bert(folder / "nli", TaskName.TEXT_CLASSIFICATION, labels=nli),
        NEXT: write_tiny_bert(folder / "nsp", TaskName.NEXT_SENTENCE_PREDICTION),
    }
    stores = [cached_export(source, name=name) for name, source in sources.items()]
    stores.append(cached_export("bert-tiny-splade", name=MASKS, task="fill-mask"))
    stores.append(cached_export(SENTIMENT, name=SENTIMENT))
    for part in stores:
        shutil.copytree(part, whole, dirs_exist_ok=True)
    return whole


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address(store: Path) -> AsyncIterator[str]:
    async with running_service(PLAN, store) as service:
        yield service.address


async def asked(address: str, call: Callable[[ClassificationClient], Reply]) -> Reply:
    def run() -> Reply:
        with ClassificationClient(address) as client:
            return call(client)

    return await asyncio.to_thread(run)


def calling(method: str, *arguments: Any, **options: Any) -> Callable[[ClassificationClient], Any]:
    """Return a call of a client's method with what a loop holds now."""
    return lambda client: getattr(client, method)(*arguments, **options)


async def command(address: str, *arguments: str) -> str:
    def run() -> str:
        result = CliRunner().invoke(app, [*arguments, "--address", address])
        assert result.exit_code == 0, result.output
        return result.stdout

    return await asyncio.to_thread(run)


async def test_masked_words_fit_the_sentence(address: str) -> None:
    """The model was tuned for search, so it guesses topics rather than grammar: a city, not a doctor."""
    texts = ["🙂 The [MASK] of France is Paris.", "He took the [MASK] from Berlin to [MASK]."]
    filled = await asked(address, lambda c: c.fill_mask(texts, model=MASKS))
    first, second = filled.require_all()
    assert filled.mask_token == "[MASK]"
    assert "city" in [word.text for word in first.masks[0].words]
    assert texts[0][first.masks[0].start : first.masks[0].end] == "[MASK]"
    assert [texts[1][m.start : m.end] for m in second.masks] == ["[MASK]", "[MASK]"]
    assert "[MASK]" not in second.filled(texts[1])
    options = FillMaskOptions(targets=("doctor", "city", "cup"))
    (chosen,) = (
        await asked(address, lambda c: c.fill_mask(texts[:1], model=MASKS, options=options))
    ).require_all()
    assert chosen.masks[0].words[0].text == "city"
    assert len(chosen.masks[0].words) == 3


async def test_a_mask_deep_in_a_long_text_is_filled(address: str) -> None:
    text = "we talked about the weather for hours . " * 150 + "Paris is the [MASK] of France."
    (filled,) = (await asked(address, lambda c: c.fill_mask([text], model=MASKS))).require_all()
    assert text[filled.masks[0].start : filled.masks[0].end] == "[MASK]"
    assert filled.windows == 1, "windows without a mask cost nothing"


async def test_texts_without_a_mask_fail_alone_and_words_that_are_no_token_fail_the_call(
    address: str,
) -> None:
    texts = ["Paris is the [MASK].", "no mask", "", "[MASK] " * 60_000, "[MASK] " * 5000]
    results = (await asked(address, lambda c: c.fill_mask(texts, model=MASKS))).results
    errors = [r for r in results if isinstance(r, ItemError)]
    assert [e.violations[0].field for e in errors] == ["texts[1]", "texts[2]", "texts[3]", "texts[4]"]
    assert "at most 4000 masks" in errors[3].message
    assert "the mask token [MASK]" in errors[0].message
    for options, field in [
        (FillMaskOptions(targets=("city", "capital of")), r"options\.targets\[1\]"),
        (FillMaskOptions(top_k=0), r"options\.top_k"),
    ]:
        with pytest.raises(InvalidRequest, match=field):
            await asked(address, calling("fill_mask", texts, model=MASKS, options=options))


async def test_answers_stand_in_the_callers_context(address: str) -> None:
    inputs = [
        ("when was the flood?", CONTEXT),
        ("who", "Anna."),
        ("", "text"),
        ("who", ""),
        ("why " * 60, "x"),
    ]
    options = AnswerOptions(top_k=3)
    results = (await asked(address, lambda c: c.answer(inputs, model=ANSWERS, options=options))).results
    long, short, *errors = results
    assert not isinstance(long, ItemError)
    assert not isinstance(short, ItemError)
    assert long.windows > 4
    assert len(long.answers) == 3
    assert all(CONTEXT[a.start : a.end] == a.text and a.text for a in long.answers)
    assert short.best is not None
    assert short.best.text in "Anna."
    fields = [e.violations[0].field for e in errors if isinstance(e, ItemError)]
    assert fields == ["inputs[2].question", "inputs[3].context", "inputs[4].question"]
    empty, anna = AnswerOptions(allow_no_answer=True, top_k=100), inputs[1:2]
    (listed,) = (await asked(address, lambda c: c.answer(anna, model=ANSWERS, options=empty))).require_all()
    assert [a.score for a in listed.answers if not a.text] == [listed.no_answer_score]


async def test_bad_options_of_answers_fail_the_call(address: str) -> None:
    for options, field in [
        (AnswerOptions(top_k=0), r"options\.top_k"),
        (AnswerOptions(max_answer_tokens=0), r"options\.max_answer_tokens"),
        (AnswerOptions(overlap_tokens=-1), r"options\.overlap_tokens"),
    ]:
        with pytest.raises(InvalidRequest, match=field):
            await asked(address, calling("answer", [("a", "b")], model=ANSWERS, options=options))
    with pytest.raises(InvalidRequest, match="inputs"):
        await asked(address, lambda c: c.answer([], model=ANSWERS))


async def test_own_labels_are_scored_and_bad_ones_are_named(address: str) -> None:
    texts, labels = ["a long walk by the river", ""], ["sport", "food", "travel"]
    classes = await asked(address, lambda c: c.classify_zero_shot(texts, labels, model=ENTAILS))
    first, second = classes.results
    assert not isinstance(first, ItemError)
    assert sum(score.score for score in first.labels) == pytest.approx(1)
    assert {labels[score.index] == score.label for score in first.labels} == {True}
    assert isinstance(second, ItemError)
    assert second.violations[0].field == "texts[1]"
    for bad, options, field in [
        (["sport", " "], None, r"labels\[1\]"),
        (["sport", "food", "sport"], None, r"labels\[2\]"),
        ([], None, "labels"),
        (["l" + str(i) for i in range(5000)], None, "labels: expected texts times labels"),
        (["sport"], ZeroShotOptions(hypothesis_template="no place"), r"options\.hypothesis_template"),
    ]:
        with pytest.raises(InvalidRequest, match=field):
            await asked(
                address,
                calling("classify_zero_shot", texts, bad, model=ENTAILS, options=options),
            )
    with pytest.raises(RpcError, match="zero-shot"):
        await asked(address, lambda c: c.classify_zero_shot(texts, labels, model=SENTIMENT))


async def test_next_sentences_have_a_probability_and_bad_pairs_are_named(address: str) -> None:
    pairs = [("It rains.", "We stay."), ("", "b"), ("a", "")]
    results = (await asked(address, lambda c: c.predict_next_sentence(pairs, model=NEXT))).results
    assert not isinstance(results[0], ItemError)
    assert 0 <= results[0].score <= 1
    fields = [r.violations[0].field for r in results if isinstance(r, ItemError)]
    assert fields == ["pairs[1].text", "pairs[2].next_text"]


@pytest.mark.parametrize(
    ("method", "second_field"),
    [
        ("ClassifyTokens", b"\xff\xfe"),
        ("FillMask", b"\xff\xfe"),
        ("ClassifyZeroShot", b"\xff\xfe"),
        ("PredictNextSentence", b"\x0a\x02\xff\xfe"),
        ("AnswerQuestion", b"\x0a\x02\xff\xfe"),
    ],
)
async def test_text_that_is_not_utf8_is_a_malformed_message(
    address: str, method: str, second_field: bytes
) -> None:
    """Field 1 is the model, field 2 the texts, or inputs whose field 1 is a text."""
    message = b"\x0a\x05masks\x12" + bytes([len(second_field)]) + second_field
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.unary_unary(f"/aimass.classification.v1.ClassificationService/{method}")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(message, timeout=20)
    assert error_of(failed.value, address=address).reason == "MALFORMED_MESSAGE"


async def test_each_call_refuses_models_of_other_tasks(address: str) -> None:
    for call in (
        lambda c: c.fill_mask(["[MASK]"], model=ANSWERS),
        lambda c: c.answer([("a", "b")], model=NEXT),
        lambda c: c.predict_next_sentence([("a", "b")], model=MASKS),
        lambda c: c.entities(["a"], model=SENTIMENT),
    ):
        with pytest.raises(RpcError, match="expected a model for"):
            await asked(address, call)


async def test_sentiment_is_what_a_person_would_say_and_as_sure_as_it_is_right(address: str) -> None:
    """The oracle is the labels of sentences that neither training nor calibration has seen."""
    from aimass_exporters.progress import SilentProgress
    from aimass_exporters.sources.labelled import labelled_texts
    from aimass_exporters.sources.source import resolve_source

    praise, blame = "a warm , funny and moving film .", "a dull , lifeless mess that wastes its cast ."
    plain = await asked(address, lambda c: c.classify([praise, blame], model=SENTIMENT))
    assert [r.best.label for r in plain.require_all() if r.best] == ["positive", "negative"]
    unseen = labelled_texts(resolve_source(SENTIMENT, SilentProgress()).path)[1:400:2]
    texts = [item.text for item in unseen]
    results = (await asked(address, lambda c: c.classify(texts, model=SENTIMENT))).require_all()
    best = [r.best for r in results if r.best]
    right = [score.label == item.label for score, item in zip(best, unseen, strict=True)]
    assert sum(right) / len(right) >= 0.7
    assert abs(sum(s.score for s in best) / len(best) - sum(right) / len(right)) <= 0.1
    sure = ClassifyOptions(min_precision=0.9)
    certain = (await asked(address, lambda c: c.classify(texts, model=SENTIMENT, options=sure))).require_all()
    kept = [r.labels[0].label == item.label for r, item in zip(certain, unseen, strict=True) if r.labels]
    assert 0.1 * len(texts) < len(kept) < 0.9 * len(texts)
    assert sum(kept) / len(kept) >= 0.86


async def test_a_precision_that_was_never_reached_is_refused(address: str) -> None:
    for model, precision in ((SENTIMENT, 0.999), (ENTAILS, 0.9)):
        options = ClassifyOptions(min_precision=precision)
        with pytest.raises(InvalidRequest, match=r"options\.min_precision"):
            await asked(address, calling("classify", ["a"], model=model, options=options))


async def test_the_commands_print_tables_or_one_json_object(address: str, tmp_path: Path) -> None:
    text = "The [MASK] of France is Paris."
    printed = json.loads(await command(address, "fill-mask", text, "--model", MASKS, "--json"))
    assert len(printed["results"][0]["masks"][0]["words"]) == 5
    assert "city" in await command(address, "fill-mask", text, "--model", MASKS)
    file = tmp_path / "context.txt"
    file.write_text(CONTEXT, encoding="utf-8")
    question = ("answer", "when?", "--model", ANSWERS, "--context-file", str(file), "--top-k", "2")
    answers = json.loads(await command(address, *question, "--json"))["results"][0]["answers"]
    assert [CONTEXT[a["start"] : a["end"]] for a in answers] == [a["text"] for a in answers]
    assert "characters" in await command(address, *question)
    tried = (
        "classify",
        "a walk",
        "--try-label",
        "sport",
        "--try-label",
        "food",
        "--model",
        ENTAILS,
        "--json",
    )
    assert {s["label"] for s in json.loads(await command(address, *tried))["results"][0]["labels"]} == {
        "sport",
        "food",
    }
