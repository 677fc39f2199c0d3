"""Chinese words, parts of speech and names over the wire: server, client and command."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
from aimass import ClassificationClient, Entities, EntityOptions
from aimass.cli.application import app
from aimass.errors import InvalidRequest
from aimass_encoder.__main__ import PLAN
from aimass_serving.testing import running_service
from typer.testing import CliRunner

# transformers scripts some functions when it is imported.
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
]

MODEL = "lac-chinese"
SENTENCE = "百度是一家高科技公司，李彦宏在北京市创办了它。"
NAMES = EntityOptions(labels=("PER", "LOC", "ORG", "TIME"))


@pytest.fixture(scope="module")
def store() -> Path:
    from aimass_exporters.testing import cached_export

    return cached_export(MODEL, name=MODEL)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address(store: Path) -> AsyncIterator[str]:
    async with running_service(PLAN, store) as service:
        yield service.address


async def entities(address: str, texts: Sequence[str], options: EntityOptions | None = None) -> Entities:
    def call() -> Entities:
        with ClassificationClient(address) as client:
            return client.entities(texts, model=MODEL, options=options, deadline_s=120)

    return await asyncio.to_thread(call)


async def test_a_sentence_comes_in_words_with_parts_of_speech_and_names(address: str) -> None:
    (found,) = (await entities(address, [SENTENCE])).require_all()
    words = [(entity.text, entity.label) for entity in found.entities]
    assert "".join(word for word, _ in words) == SENTENCE
    assert words[:3] == [("百度", "ORG"), ("是", "v"), ("一家", "m")]
    assert ("李彦宏", "PER") in words
    assert ("北京市", "LOC") in words
    assert ("它", "r") in words


async def test_names_alone_can_be_asked_for(address: str) -> None:
    (found,) = (await entities(address, [SENTENCE], NAMES)).require_all()
    assert [(e.text, e.label) for e in found.entities] == [
        ("百度", "ORG"),
        ("李彦宏", "PER"),
        ("北京市", "LOC"),
    ]
    with pytest.raises(InvalidRequest, match=r"options\.labels\[0\]: expected one of a, ad, an"):
        await entities(address, [SENTENCE], EntityOptions(labels=("B-PER",)))


async def test_places_are_characters_of_the_callers_text_whatever_stands_before(address: str) -> None:
    for prefix in ("🙂👩\u200d🚀 ", "Ｃａｆｅ\u0301，", "𠮷𠮷\n\n", "　　"):
        (found,) = (await entities(address, [prefix + SENTENCE], NAMES)).require_all()
        places = {e.text: e.start for e in found.entities}
        assert places["李彦宏"] == len(prefix) + SENTENCE.index("李彦宏")
        assert all((prefix + SENTENCE)[e.start : e.end] == e.text for e in found.entities)


async def test_a_sentence_has_the_same_words_alone_in_a_batch_and_deep_in_a_long_text(address: str) -> None:
    filler = "今天天气真不错，我们一起去公园散步吧。" * 60
    alone, deep, *_ = (
        await entities(address, [SENTENCE, filler + SENTENCE, *("你好" * i for i in range(1, 20))])
    ).require_all()
    (single,) = (await entities(address, [SENTENCE])).require_all()
    assert [(e.text, e.label) for e in single.entities] == [(e.text, e.label) for e in alone.entities]
    assert [e.score for e in single.entities] == pytest.approx([e.score for e in alone.entities], abs=1e-5)
    assert deep.windows > 1
    behind = [(e.text, e.label) for e in deep.entities if e.start >= len(filler)]
    assert behind == [(e.text, e.label) for e in single.entities]


async def test_texts_of_blanks_have_no_words_and_characters_it_never_saw_have_one(address: str) -> None:
    blank, unknown = (await entities(address, [" 　\n\t", "ꙮᚠ𓂀"])).require_all()
    assert blank.entities == []
    assert "".join(e.text for e in unknown.entities) == "ꙮᚠ𓂀"


async def test_the_command_marks_words_or_prints_one_json_object(address: str) -> None:
    def run(*arguments: str) -> str:
        command = ["entities", SENTENCE, "--model", MODEL, *arguments, "--address", address]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        return result.stdout

    printed = json.loads(await asyncio.to_thread(run, "--json", "--label", "PER"))
    (person,) = printed["results"][0]["entities"]
    assert (person["text"], person["start"], person["end"]) == ("李彦宏", 11, 14)
    shown = await asyncio.to_thread(run)
    assert "百度[ORG" in shown
    assert "北京市[LOC" in shown
