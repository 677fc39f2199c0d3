"""What goes into a service's image, read from its Dockerfile and from the distributions' metadata."""

import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
SERVICES = ("generation", "encoder", "speech")
TRAINING_STACK = {
    "torch",
    "transformers",
    "optimum",
    "optimum-onnx",
    "onnx",
    "onnxscript",
    "aimass-exporters",
}
CONSTRAINTS_CHECK: dict[str, Any] = runpy.run_path(str(ROOT / ".ci/check_constraints.py"))


def dockerfile(service: str) -> str:
    return (ROOT / "deploy" / service / "Dockerfile").read_text()


def installed_paths(service: str) -> list[tuple[str, str]]:
    """The local distributions a Dockerfile installs: `(path, extra)`."""
    install = dockerfile(service).split("pip install -c")[1]
    return re.findall(r"\./([a-z/]+)(?:\[\$\{(\w+)\}\])?", install)


def everything_installed(distributions: list[str]) -> set[str]:
    names: set[str] = CONSTRAINTS_CHECK["closure"]([Requirement(name) for name in distributions])
    return names


def distribution(path: str) -> str:
    name: str = tomllib.loads((ROOT / path / "pyproject.toml").read_text())["project"]["name"]
    return name


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("runtime", ["cpu", "cuda"])
def test_no_image_holds_the_training_stack(service: str, runtime: str) -> None:
    roots = [
        distribution(path) + (f"[{runtime}]" if extra else "") for path, extra in installed_paths(service)
    ]
    names = everything_installed(roots)
    assert f"aimass-{service}" in names
    assert ("onnxruntime" if runtime == "cpu" else "onnxruntime-gpu") in names
    assert names.isdisjoint(TRAINING_STACK)


def test_the_walk_would_find_the_training_stack() -> None:
    assert everything_installed(["aimass-exporters"]) >= TRAINING_STACK


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_installs_every_distribution_of_ours_that_its_service_needs(service: str) -> None:
    installed = {distribution(path) for path, _ in installed_paths(service)}
    needed = {name for name in everything_installed([f"aimass-{service}"]) if name.startswith("aimass-")}
    assert installed == needed


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_copies_what_it_installs_and_the_build_context_holds_it(service: str) -> None:
    copied = set(re.findall(r"^COPY (\S+) \S+$", dockerfile(service), re.MULTILINE))
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert {path for path, _ in installed_paths(service)} <= copied
    assert all(any(path == a or path.startswith(f"{a}/") for a in allowed) for path in copied)


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_runs_without_privileges_and_tells_its_health(service: str) -> None:
    final_stage = dockerfile(service).rsplit("\nFROM ", 1)[1]
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", final_stage, re.MULTILINE)
    assert "HEALTHCHECK" in final_stage
    assert "STOPSIGNAL SIGTERM" in final_stage
