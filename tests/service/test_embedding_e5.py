"""Search across languages with the real multilingual E5 and its prompts: server, client and command."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from aimass import EmbeddingClient, RerankOptions, SimilarityOptions
from aimass.cli.application import app
from aimass_encoder.__main__ import PLAN
from aimass_serving.testing import running_service
from typer.testing import CliRunner

MODEL = "multilingual-e5-small"
QUERY = "如何重置密码?"  # how to reset a password
PASSAGES = [
    "忘记密码时，可以在设置页面重新设定。",  # noqa: RUF001 - who forgot a password can set another
    "To reset your password, open the settings page.",
    "今天的天气非常好，适合去爬山。",  # noqa: RUF001 - the weather is fine for a walk in the mountains
    "Bread is made from flour and water.",
]
COSINES = [0.917, 0.848, 0.777, 0.706]
"""As another conversion of the same weights gave them."""


@pytest.fixture(scope="module")
def e5_store() -> Path:
    from aimass_exporters.testing import cached_export

    return cached_export(MODEL, name=MODEL)


def ask(address: str) -> tuple[list[float], list[int]]:
    """Return the cosines of query and passages, and the order of the passages, given the other way round."""
    compared = SimilarityOptions(query_prompt_name="query", document_prompt_name="passage")
    ranked = RerankOptions(query_prompt_name="query", document_prompt_name="passage")
    with EmbeddingClient(address) as client:
        found = client.similarity([QUERY], PASSAGES, model=MODEL, options=compared)
        ranking = client.rerank(QUERY, PASSAGES[::-1], model=MODEL, options=ranked)
    return found.scores[0].tolist(), [result.index for result in ranking.results]


def run(address: str) -> list[list[float]]:
    """Return the numbers that the command prints."""
    texts = [QUERY, "--with", PASSAGES[1], "--with", PASSAGES[3]]
    prompts = ["--query-prompt-name", "query", "--document-prompt-name", "passage"]
    arguments = ["similarity", *texts, *prompts, "--address", address]
    printed = CliRunner().invoke(app, [*arguments, "--json"])
    assert printed.exit_code == 0, printed.output
    scores: list[list[float]] = json.loads(printed.stdout)["scores"]
    assert f"{scores[0][0]:.3f}" in CliRunner().invoke(app, arguments).stdout
    return scores


async def test_a_chinese_question_finds_its_answer_in_two_languages(e5_store: Path) -> None:
    async with running_service(PLAN, e5_store) as service:
        cosines, order = await asyncio.to_thread(ask, service.address)
        printed = await asyncio.to_thread(run, service.address)
    assert cosines == pytest.approx(COSINES, abs=0.002)
    assert order == [3, 2, 1, 0]
    assert printed == [[pytest.approx(cosines[1], abs=1e-5), pytest.approx(cosines[3], abs=1e-5)]]
