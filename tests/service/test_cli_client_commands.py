"""The commands against fakes: what is on standard output, what on standard error, and the exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
import typer
from aimass.cli import app
from aimass.cli.application import add_installed_commands
from aimass.cli.embed import cosine_similarities
from aimass.embedding.v1 import embedding_service_pb2 as embedding_pb
from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.model.v1 import manifest_pb2, model_service_pb2
from aimass.testing import (
    Fail,
    FakeEmbeddingService,
    FakeGenerationService,
    FakeHealthService,
    FakeModelService,
    Hang,
    Script,
    delta_event,
    error_result,
    finish_event,
    prompt_info_event,
    ready_model,
    running_fakes,
    vector_result,
)
from grpc_health.v1 import health_pb2
from typer.testing import CliRunner

NOBODY = "127.0.0.1:1"
SAID = "Hello there, naïve 🙂"
FINE: Script = [prompt_info_event(), delta_event("fine"), finish_event()]
ENDLESS: Script = [prompt_info_event(), delta_event("a"), Hang()]


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


@pytest.fixture
def generation() -> Iterator[tuple[FakeGenerationService, str]]:
    fake = FakeGenerationService.saying(SAID)
    with running_fakes(fake, FakeModelService([ready_model("m")]), FakeHealthService()) as address:
        yield fake, address


@pytest.fixture
def encoder() -> Iterator[tuple[FakeEmbeddingService, str]]:
    fake = FakeEmbeddingService()
    models = FakeModelService([ready_model("e", manifest_pb2.TASK_EMBEDDING)])
    with running_fakes(fake, models, FakeHealthService()) as address:
        yield fake, address


def generating(script: Script) -> FakeGenerationService:
    return FakeGenerationService(generate=[script], complete=[script])


@contextmanager
def aimass(*arguments: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "aimass.cli", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "GRPC_VERBOSITY": "NONE", **environ},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_generate_writes_the_text_and_nothing_else(
    runner: CliRunner, generation: tuple[FakeGenerationService, str]
) -> None:
    result = runner.invoke(app, ["generate", "Hi", "--model", "m", "--address", generation[1]])

    assert (result.exit_code, result.stdout, result.stderr) == (0, SAID + "\n", "")


def test_generate_passes_every_option_on(
    runner: CliRunner, generation: tuple[FakeGenerationService, str]
) -> None:
    fake, address = generation
    options = (
        "--max-new-tokens 5 --temperature 0.5 --top-k 3 --top-p 0.9 --min-p 0.1 --seed 7 --stop x --stop y"
    )
    runner.invoke(app, ["generate", "Hi", "--model", "m@1", "--address", address, *options.split()])

    (request,) = fake.calls[0].requests
    assert isinstance(request, pb.GenerateRequest)
    assert (request.model, request.text) == ("m@1", "Hi")
    assert (request.stopping.max_new_tokens, list(request.stopping.stop_strings)) == (5, ["x", "y"])
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.seed) == (0.5, 3, 7)
    assert (round(sampling.top_p, 3), round(sampling.min_p, 3)) == (0.9, 0.1)


def test_generate_json_is_one_object(
    runner: CliRunner, generation: tuple[FakeGenerationService, str]
) -> None:
    result = runner.invoke(app, ["generate", "Hi", "--model", "m", "--address", generation[1], "--json"])

    answer = json.loads(result.stdout)
    assert answer["text"] == SAID
    assert answer["token_ids"] == [0, 1, 2, 3]
    assert answer["finish_reason"] == "eos"
    assert answer["usage"] == {"input_tokens": 3, "output_tokens": 4, "cached_input_tokens": 0}
    assert result.stderr == ""


def test_generate_reads_the_prompt_from_standard_input(
    runner: CliRunner, generation: tuple[FakeGenerationService, str]
) -> None:
    runner.invoke(app, ["generate", "-", "--model", "m", "--address", generation[1]], input="from a file")

    (request,) = generation[0].calls[0].requests
    assert isinstance(request, pb.GenerateRequest)
    assert request.text == "from a file"


def test_the_only_model_needs_no_name(
    runner: CliRunner, generation: tuple[FakeGenerationService, str]
) -> None:
    assert runner.invoke(app, ["generate", "Hi", "--address", generation[1]]).exit_code == 0
    (request,) = generation[0].calls[0].requests
    assert isinstance(request, pb.GenerateRequest)
    assert request.model == "m"


def test_several_models_need_a_name(runner: CliRunner) -> None:
    models = FakeModelService([ready_model("one"), ready_model("two")])
    with running_fakes(FakeGenerationService.saying("x"), models) as address:
        result = runner.invoke(app, ["generate", "Hi", "--address", address])

    assert result.exit_code == 2
    assert "one, two" in result.stderr


def test_an_error_is_one_line_that_names_reason_and_field(runner: CliRunner) -> None:
    fail = Fail(
        code=grpc.StatusCode.INVALID_ARGUMENT,
        reason="INVALID_FIELD",
        message="sampling.top_p: expected a number above 0, up to 1, got 2.0",
    )
    with running_fakes(generating([fail])) as address:
        for more in ([], ["--json"]):
            result = runner.invoke(app, ["generate", "Hi", "--model", "m", "--address", address, *more])

            assert result.exit_code == 1
            assert result.stdout.strip() == ""
            assert result.stderr == (
                "aimass: INVALID_FIELD: sampling.top_p: expected a number above 0, up to 1, got 2.0\n"
            )


def test_a_value_that_fits_no_field_is_one_line_too(runner: CliRunner) -> None:
    result = runner.invoke(app, ["generate", "Hi", "--model", "m", "--address", NOBODY, "--seed", "-1"])

    assert result.exit_code == 1
    assert result.stderr.startswith("aimass: INVALID_FIELD: sampling.seed: ")


def test_a_wrong_option_is_a_usage_error(runner: CliRunner) -> None:
    assert runner.invoke(app, ["generate", "Hi", "--temperature", "warm"]).exit_code == 2
    assert runner.invoke(app, ["generate"]).exit_code == 2


@pytest.mark.parametrize(("command", "service"), [("generate", "generation"), ("embed", "encoder")])
def test_a_service_that_is_not_there_is_named_with_how_to_start_it(
    runner: CliRunner, command: str, service: str
) -> None:
    result = runner.invoke(app, [command, "Hi", "--model", "m", "--address", NOBODY])

    assert result.exit_code == 1
    assert f"no service answers at {NOBODY}" in result.stderr
    assert f"aimass serve {service}" in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_api_key_of_the_environment_is_sent(
    runner: CliRunner, generation: tuple[FakeGenerationService, str]
) -> None:
    fake, address = generation
    arguments = ["generate", "Hi", "--model", "m", "--address", address]
    result = runner.invoke(app, arguments, env={"AIMASS_CLIENT_API_KEY": "k-1"})

    assert fake.calls[0].metadata["authorization"] == "Bearer k-1"
    assert "k-1" not in result.output


def test_half_a_client_certificate_is_a_usage_error(runner: CliRunner, tmp_path: Path) -> None:
    cert = tmp_path / "cert.pem"
    cert.write_text("PEM")

    assert runner.invoke(app, ["--cert", str(cert), "status"]).exit_code == 2


def test_ctrl_c_cancels_the_call_and_leaves() -> None:
    fake = generating(ENDLESS)
    with (
        running_fakes(fake) as address,
        aimass("generate", "Hi", "--model", "m", "--address", address) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.read(1) == "a", "tokens are written as they come"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)

        assert process.returncode == 130
        assert "Traceback" not in stderr
        assert fake.calls[0].was_cancelled


def test_ctrl_c_cancels_a_call_that_answers_at_once() -> None:
    fake = generating([Hang()])
    with (
        running_fakes(fake) as address,
        aimass("generate", "Hi", "--model", "m", "--address", address, "--json") as process,
    ):
        _wait_for_calls(fake, 1)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)

        assert (process.returncode, stdout) == (130, "")
        assert "Traceback" not in stderr
        assert fake.calls[0].was_cancelled


def test_ctrl_c_in_a_conversation_stops_the_answer_and_not_the_conversation() -> None:
    fake = FakeGenerationService(generate=[ENDLESS, FINE])
    with (
        running_fakes(fake) as address,
        aimass("chat", "--model", "m", "--address", address) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("one\n")
        process.stdin.flush()
        assert process.stdout.read(1) == "a"
        process.send_signal(signal.SIGINT)
        assert fake.calls[0].was_cancelled
        stdout, stderr = process.communicate("two\n", timeout=30)

    assert (process.returncode, stdout) == (0, "\nfine\n")
    assert "[stopped]" in stderr
    last = fake.calls[1].requests[0]
    assert isinstance(last, pb.GenerateRequest)
    assert [m.content for m in last.chat.messages] == ["one", "a", "two"], "what was answered is remembered"


def _wait_for_calls(fake: FakeGenerationService, num_calls: int) -> None:
    until_s = time.monotonic() + 30
    while len(fake.calls) < num_calls and time.monotonic() < until_s:
        time.sleep(0.01)
    assert len(fake.calls) == num_calls


def test_a_reader_that_goes_away_ends_the_command_quietly() -> None:
    fake = generating([prompt_info_event(), *[delta_event("x" * 1000)] * 500, Hang()])
    with (
        running_fakes(fake) as address,
        aimass("generate", "Hi", "--model", "m", "--address", address) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        stderr = process.stderr.read()
        process.wait(timeout=30)

        assert "Traceback" not in stderr
        assert fake.calls[0].was_cancelled


def test_json_of_a_subprocess_is_one_object_on_standard_output(
    generation: tuple[FakeGenerationService, str],
) -> None:
    with aimass("generate", "Hi", "--model", "m", "--address", generation[1], "--json") as process:
        stdout, _ = process.communicate(timeout=60)

    assert process.returncode == 0
    assert stdout.count("\n") == 1
    assert json.loads(stdout)["text"] == SAID


def test_chat_answers_messages_with_history(
    runner: CliRunner, generation: tuple[FakeGenerationService, str]
) -> None:
    fake, address = generation
    arguments = [
        "chat",
        "--address",
        address,
        "--system",
        "Be brief.",
        "--message",
        "one",
        "--message",
        "two",
    ]
    result = runner.invoke(app, arguments)

    assert (result.exit_code, result.stdout) == (0, f"{SAID}\n{SAID}\n")
    last = fake.calls[-1].requests[0]
    assert isinstance(last, pb.GenerateRequest)
    assert [(m.role, m.content) for m in last.chat.messages] == [
        ("system", "Be brief."),
        ("user", "one"),
        ("assistant", SAID),
        ("user", "two"),
    ]


def test_chat_is_a_conversation_on_standard_input(
    runner: CliRunner, generation: tuple[FakeGenerationService, str]
) -> None:
    fake, address = generation
    lines = "one\n\n/reset\ntwo\n/exit\nnever\n"
    result = runner.invoke(app, ["chat", "--address", address], input=lines)

    assert (result.exit_code, result.stdout) == (0, f"{SAID}\n{SAID}\n")
    turns = [[m.content for m in call.requests[0].chat.messages] for call in fake.calls]  # type: ignore[attr-defined]
    assert turns == [["one"], ["two"]]


def test_chat_goes_on_after_an_error_but_a_script_does_not(runner: CliRunner) -> None:
    fail: Script = [Fail(code=grpc.StatusCode.RESOURCE_EXHAUSTED, reason="OVERLOADED", message="full")]
    fine: Script = [prompt_info_event(), delta_event("ok"), Fail(code=grpc.StatusCode.INTERNAL)]
    with running_fakes(FakeGenerationService(generate=[fail, fine])) as address:
        arguments = ["chat", "--model", "m", "--address", address]
        talk = runner.invoke(app, arguments, input="one\ntwo\n")
        script = runner.invoke(app, [*arguments, "--message", "one"])

    assert talk.exit_code == 0
    assert "OVERLOADED: full" in talk.stderr
    assert "ok" in talk.stdout
    assert script.exit_code == 1


def test_embed_prints_similarities(runner: CliRunner, encoder: tuple[FakeEmbeddingService, str]) -> None:
    result = runner.invoke(app, ["embed", "ab", "ba", "zz", "--address", encoder[1]])

    assert result.exit_code == 0
    assert "1.000" in result.stdout
    assert "0.000" in result.stdout


def test_embed_json_is_one_object_with_vectors_that_lose_nothing(
    runner: CliRunner, encoder: tuple[FakeEmbeddingService, str]
) -> None:
    arguments = ["embed", "ab", "zzz b", "--model", "e", "--address", encoder[1], "--json"]
    answer = json.loads(runner.invoke(app, arguments).stdout)

    vectors = np.array(answer["vectors"], np.float32)
    assert vectors.shape == (2, answer["dimensions"]) == (2, 26)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)
    assert (answer["model"], answer["errors"]) == ("e", {})


def test_embed_of_a_bad_text_fails_after_the_rest_is_printed(runner: CliRunner) -> None:
    response = embedding_pb.EmbedResponse(
        results=[vector_result(np.ones(1, np.float32)), error_result("INPUT_TOO_LONG", "too long")],
        dimensions=1,
        dtype=embedding_pb.VECTOR_DTYPE_FLOAT32,
    )
    with running_fakes(FakeEmbeddingService(embed=[[response]])) as address:
        result = runner.invoke(app, ["embed", "a", "b", "--model", "e", "--address", address, "--json"])

    assert result.exit_code == 1
    assert json.loads(result.stdout)["vectors"] == [[1.0], None]
    assert result.stderr == "aimass: texts[1]: INPUT_TOO_LONG: too long\n"


def test_a_zero_vector_is_similar_to_nothing() -> None:
    assert cosine_similarities(np.array([[0, 0], [0, 2]], np.float32)).tolist() == [[0, 0], [0, 1]]


def test_status_is_ready_when_every_service_is(
    runner: CliRunner,
    generation: tuple[FakeGenerationService, str],
    encoder: tuple[FakeEmbeddingService, str],
) -> None:
    arguments = ["status", "--generation", generation[1], "--encoder", encoder[1]]
    table = runner.invoke(app, arguments)
    report = json.loads(runner.invoke(app, [*arguments, "--json"]).stdout)

    assert table.exit_code == 0
    assert report["ready"] is True
    assert [service["health"] for service in report["services"]] == ["serving", "serving"]
    assert report["services"][1]["models"][0]["task"] == "embedding"


@pytest.mark.parametrize("ailment", ["not serving", "no models", "failed model", "nobody"])
def test_status_is_not_ready_when_one_service_is_not(
    runner: CliRunner, encoder: tuple[FakeEmbeddingService, str], ailment: str
) -> None:
    failed = model_service_pb2.Model(
        name="m", version="1", state=model_service_pb2.MODEL_STATE_FAILED, state_detail="broken file"
    )
    models = {"no models": [], "failed model": [failed]}.get(ailment, [ready_model("m")])
    health = FakeHealthService()
    if ailment == "not serving":
        health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    with running_fakes(health, FakeModelService(models)) as address:
        where = NOBODY if ailment == "nobody" else address
        arguments = ["status", "--generation", where, "--encoder", encoder[1]]
        table = runner.invoke(app, arguments)
        as_json = runner.invoke(app, [*arguments, "--json"])

    assert (table.exit_code, as_json.exit_code) == (1, 1)
    report = json.loads(as_json.stdout)
    assert [service["ready"] for service in report["services"]] == [False, True]
    if ailment == "nobody":
        assert "aimass serve generation" in table.stdout
    if ailment == "failed model":
        assert "broken file" in table.stdout


def test_traces_shows_the_span_of_a_command(generation: tuple[FakeGenerationService, str]) -> None:
    with aimass("traces", "--listen", "0", "--limit", "1", "--json") as collector:
        assert collector.stderr is not None
        endpoint = (
            next(line for line in collector.stderr if line.startswith("set ")).strip().partition("=")[2]
        )
        arguments = ["generate", "Hi", "--model", "m", "--address", generation[1]]
        with aimass(*arguments, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint) as caller:
            caller.communicate(timeout=60)
        stdout, _ = collector.communicate(timeout=60)

    trace = json.loads(stdout)
    (span,) = trace["spans"]
    assert span["name"] == "aimass.generation.v1.GenerationService/Generate"
    assert span["service"] == "aimass-cli"
    assert span["attributes"]["rpc.response.status_code"] == "OK"
    traceparent = str(generation[0].calls[0].metadata["traceparent"])
    assert traceparent.split("-")[1:3] == [trace["trace_id"], span["span_id"]]


def test_traces_says_when_its_port_is_taken(
    runner: CliRunner, generation: tuple[FakeGenerationService, str]
) -> None:
    port = generation[1].rpartition(":")[2]
    result = runner.invoke(app, ["traces", "--listen", port])

    assert result.exit_code == 1
    assert result.stderr == (
        f"aimass: 127.0.0.1:{port} cannot be opened: another collector may listen there\n"
    )


def test_every_installed_distribution_adds_its_commands() -> None:
    with aimass("--help", COLUMNS="100") as process:
        stdout, stderr = process.communicate(timeout=60)

    own = {"generate", "chat", "embed", "status", "traces"}
    listed = {word for line in stdout.splitlines() for word in line.split()[1:2]}
    assert own | {"serve", "up", "export", "models"} <= listed
    assert "not available" not in stderr


def test_a_distribution_that_cannot_be_loaded_costs_only_its_own_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    info = tmp_path / "broken_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[aimass.commands]\nbroken = no_such_module:register\n")
    monkeypatch.syspath_prepend(tmp_path)

    add_installed_commands(typer.Typer())

    assert "no_such_module:register are not available" in capsys.readouterr().err


def test_the_command_starts_without_the_training_stack_or_the_runtime() -> None:
    heavy = ("torch", "transformers", "onnxruntime", "opentelemetry.sdk")
    script = f"import sys; from aimass.cli import app; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )

    assert result.stdout.strip() == "[]"
