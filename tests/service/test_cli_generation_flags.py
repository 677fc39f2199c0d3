"""The options of `aimass generate` and `aimass chat` against a fake: each arrives, or is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aimass.cli import app
from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.generation.v1 import options_pb2
from aimass.testing import (
    FakeGenerationService,
    FakeHealthService,
    FakeModelService,
    ready_model,
    running_fakes,
)
from google.protobuf.json_format import MessageToDict
from typer.testing import CliRunner, Result

FLAGS = tuple(
    " ".join(
        (
            "--temperature 0.5 --top-k 3 --top-p 0.25 --min-p 0.125 --typical-p 0.75 --repetition-penalty",
            "1.5 --frequency-penalty -0.5 --presence-penalty 0.5 --logit-bias 7=-100 --logit-bias 8=2.5",
            "--allowed-token 7 --allowed-token 8 --seed 9 --max-new-tokens 6 --min-new-tokens 2 --stop x",
            "--stop-token 4 --include-stop --ignore-eos --time-limit 1.5 --num-beams 3 --length-penalty -0.5",
            "--no-early-stopping --no-repeat-ngram-size 2 --priority -4 --cache-salt s",
            "--adapter tone --request-id r",
        )
    ).split()
)
WANTED: dict[str, Any] = {
    "sampling": {
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.25,
        "min_p": 0.125,
        "typical_p": 0.75,
        "repetition_penalty": 1.5,
        "frequency_penalty": -0.5,
        "presence_penalty": 0.5,
        "logit_bias": {"7": -100.0, "8": 2.5},
        "allowed_token_ids": [7, 8],
        "seed": "9",
    },
    "stopping": {
        "max_new_tokens": 6,
        "min_new_tokens": 2,
        "stop_strings": ["x"],
        "stop_token_ids": [4],
        "include_stop_string": True,
        "ignore_eos": True,
    },
    "beams": {"num_beams": 3, "length_penalty": -0.5, "early_stopping": False, "no_repeat_ngram_size": 2},
    "time_limit": "1.500s",
    "priority": -4,
    "cache_salt": "s",
    "adapter": "tone",
    "request_id": "r",
}


@pytest.fixture
def generation() -> Iterator[tuple[FakeGenerationService, str]]:
    fake = FakeGenerationService.saying("yes")
    with running_fakes(fake, FakeModelService([ready_model("m")]), FakeHealthService()) as address:
        yield fake, address


def sent(fake: FakeGenerationService) -> dict[str, Any]:
    [request] = fake.calls[-1].requests
    return MessageToDict(request, preserving_proto_field_name=True)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("command", [["generate", "Hi"], ["chat", "--message", "Hi"]])
def test_every_option_of_the_wire_has_a_flag_in_both_commands(
    command: list[str], generation: tuple[FakeGenerationService, str]
) -> None:
    fake, address = generation
    result = run(*command, "--model", "m", "--address", address, *FLAGS)
    assert result.exit_code == 0, result.output
    request = sent(fake)
    assert {name: request[name] for name in WANTED} == WANTED
    messages: dict[str, Any] = {
        "sampling": options_pb2.SamplingOptions,
        "stopping": options_pb2.StoppingOptions,
        "beams": options_pb2.BeamOptions,
    }
    for name, message in messages.items():
        assert set(WANTED[name]) == {field.name for field in message.DESCRIPTOR.fields}


def test_a_grammar_is_text_or_a_file(generation: tuple[FakeGenerationService, str], tmp_path: Path) -> None:
    fake, address = generation
    (tmp_path / "g.lark").write_text('start: "a"')
    for value in ('start: "a"', str(tmp_path / "g.lark")):
        run("generate", "Hi", "--model", "m", "--address", address, "--grammar", value)
        assert sent(fake)["guidance"] == {"grammar": 'start: "a"'}
    run("generate", "Hi", "--model", "m", "--address", address, "--json-object")
    assert sent(fake)["guidance"] == {"json_object": True}


def test_json_tells_probabilities_and_further_sequences(
    generation: tuple[FakeGenerationService, str],
) -> None:
    fake, address = generation
    flags = ("--logprobs", "2", "--prompt-logprobs", "--num-sequences", "2", "--json")
    result = run("generate", "Hi", "--model", "m", "--address", address, *flags)
    assert sent(fake)["output"] == {
        "token_ids": True,
        "logprobs": True,
        "top_logprobs": 2,
        "prompt_logprobs": True,
    }
    assert sent(fake)["num_sequences"] == 2
    told = json.loads(result.stdout)
    assert (told["text"], told["logprobs"], told["prompt_logprobs"], told["further"]) == ("yes", [], [], [])


def test_several_sequences_are_numbered(generation: tuple[FakeGenerationService, str]) -> None:
    result = run("generate", "Hi", "--model", "m", "--address", generation[1], "--num-sequences", "2")
    assert result.stdout == "[1] yes\n"  # the fake gives one, whatever is asked


def test_tools_of_files_reach_the_template_with_every_turn(
    generation: tuple[FakeGenerationService, str], tmp_path: Path
) -> None:
    fake, address = generation
    one, two = {"type": "function", "function": {"name": "wetter"}}, {"name": "é"}
    (tmp_path / "one.json").write_text(json.dumps(one))
    (tmp_path / "more.json").write_text(json.dumps([two, one]))
    tools = ("--tool", str(tmp_path / "one.json"), "--tool", str(tmp_path / "more.json"))
    run("chat", "--model", "m", "--address", address, "--message", "a", "--message", "b", *tools)
    first, second = (call.requests[0] for call in fake.calls)
    assert isinstance(first, pb.GenerateRequest)
    assert isinstance(second, pb.GenerateRequest)
    for request in (first, second):
        assert [json.loads(tool) for tool in request.chat.tools] == [one, two, one]
    assert [turn.role for turn in second.chat.messages] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--logit-bias", "7"], "--logit-bias"),
        (["--logit-bias", "x=1"], "'x=1'"),
        (["--grammar", "no-such-file"], "--grammar"),
        (["--logprobs", "2"], "together with --json"),
        (["--prompt-logprobs"], "--prompt-logprobs"),
        (["--regex", "a", "--choice", "b"], "one form of text"),
    ],
)
def test_a_flag_that_cannot_be_is_named(flags: list[str], expected: str) -> None:
    result = run("generate", "Hi", "--model", "m", "--address", "127.0.0.1:1", *flags)
    assert result.exit_code in (1, 2)
    assert expected in " ".join(result.stderr.replace("│", " ").split())


def test_a_file_that_holds_no_function_is_named(tmp_path: Path) -> None:
    (tmp_path / "tool.json").write_text("[1]")
    for file in (tmp_path / "tool.json", tmp_path / "none.json"):
        result = run(
            "chat", "--model", "m", "--address", "127.0.0.1:1", "--message", "a", "--tool", str(file)
        )
        assert result.exit_code == 2
        assert "--tool" in result.stderr
