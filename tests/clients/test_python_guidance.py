"""The form a text is held to, from the client's options and the command line into the request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aimass import GenerationClient, GenerationOptions
from aimass.cli import app
from aimass.errors import InvalidRequest
from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.generation.v1 import options_pb2
from aimass.testing import (
    FakeGenerationService,
    FakeHealthService,
    FakeModelService,
    ready_model,
    running_fakes,
)
from typer.testing import CliRunner

SCHEMA = '{"type": "object"}'


@pytest.fixture
def service() -> Iterator[tuple[FakeGenerationService, str]]:
    fake = FakeGenerationService.saying("ok")
    with running_fakes(fake, FakeModelService([ready_model("m")]), FakeHealthService()) as address:
        yield fake, address


def arrived(fake: FakeGenerationService) -> options_pb2.GuidanceOptions | None:
    (request,) = fake.calls[-1].requests
    assert isinstance(request, pb.GenerateRequest | pb.CompleteRequest)
    return request.guidance if request.HasField("guidance") else None


@pytest.mark.parametrize(
    ("options", "guidance"),
    [
        ({}, None),
        ({"json_schema": SCHEMA}, {"json_schema": SCHEMA}),
        ({"json_object": True}, {"json_object": True}),
        ({"regex": "a+"}, {"regex": "a+"}),
        ({"choice": ["yes", "no"]}, {"choice": {"texts": ["yes", "no"]}}),
        ({"choice": ()}, {"choice": {}}),
        ({"grammar": 'start: "a"'}, {"grammar": 'start: "a"'}),
    ],
)
def test_form_reaches_the_service(
    service: tuple[FakeGenerationService, str], options: dict[str, Any], guidance: dict[str, Any] | None
) -> None:
    fake, address = service
    with GenerationClient(address) as client:
        client.complete("Hi", model="m", options=GenerationOptions(**options))
    assert arrived(fake) == (None if guidance is None else options_pb2.GuidanceOptions(**guidance))


def test_two_forms_are_refused_and_neither_is_dropped(service: tuple[FakeGenerationService, str]) -> None:
    fake, address = service
    options = GenerationOptions(regex="a", choice=["a"])
    with GenerationClient(address) as client, pytest.raises(InvalidRequest, match="regex and choice"):
        client.complete("Hi", model="m", options=options)
    assert not fake.calls


@pytest.mark.parametrize(
    ("arguments", "guidance"),
    [
        (["--json-schema", SCHEMA], {"json_schema": SCHEMA}),
        (["--json-schema", "schema.json"], {"json_schema": SCHEMA}),
        (["--regex", "a+"], {"regex": "a+"}),
        (["--choice", "yes", "--choice", "no"], {"choice": {"texts": ["yes", "no"]}}),
    ],
)
def test_command_passes_the_form_on(
    service: tuple[FakeGenerationService, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    guidance: dict[str, Any],
) -> None:
    fake, address = service
    (tmp_path / "schema.json").write_text(SCHEMA)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["generate", "Hi", "--model", "m", "--address", address, *arguments])
    assert (result.exit_code, result.stdout) == (0, "ok\n")
    assert arrived(fake) == options_pb2.GuidanceOptions(**guidance)


def test_schema_file_that_is_not_there_is_a_usage_error() -> None:
    result = CliRunner().invoke(app, ["generate", "Hi", "--json-schema", "nowhere.json"])
    assert result.exit_code == 2
    assert "nowhere.json" in result.stderr
