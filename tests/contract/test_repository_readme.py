"""What the README shows works."""

import re
from pathlib import Path

import numpy as np
import pytest
from aimass.testing import FakeEmbeddingService, FakeGenerationService, running_fakes

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks("python")
    with running_fakes(
        FakeGenerationService.saying("Air scatters blue light."), FakeEmbeddingService()
    ) as address:
        names: dict[str, object] = {}
        exec(re.sub(r"localhost:\d+", address, example), names)
    printed = capsys.readouterr().out
    assert printed.startswith("Air scatters blue light.")
    vectors = names["vectors"]
    assert isinstance(vectors, np.ndarray)
    assert len(vectors) == 3


def test_the_typescript_example_imports_what_the_client_exports() -> None:
    (example,) = blocks("typescript")
    imported = re.findall(r"^import \{ (.*) \}", example, re.MULTILINE)[0].split(", ")
    index = (ROOT / "clients/typescript/src/index.ts").read_text()
    assert len(imported) >= 3
    assert all(re.search(rf"\b{name}\b", index) for name in imported)


def test_every_linked_file_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_make_target_it_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = set(
        re.findall(r"\bmake ([a-z]+)\b", "\n".join(blocks("console") + re.findall(r"`(make [a-z]+)", README)))
    )
    assert named >= {"demo", "test"}
    assert {name for name in named if f"\n{name}:" not in makefile} == set()
