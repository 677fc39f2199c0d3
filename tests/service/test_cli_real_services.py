"""The commands against real services with small models, started the way a user starts them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from aimass import ChatMessage, EmbeddingClient, GenerationClient, GenerationOptions, ModelClient
from aimass.cli import app
from aimass.errors import FailedPrecondition, InputTooLong, InvalidRequest, ModelNotFound, Unimplemented
from typer.testing import CliRunner

AIMASS = [sys.executable, "-m", "aimass.cli"]
CHAT, EMBED = "tiny-llama", "all-minilm-l6-v2"


@pytest.fixture(scope="module")
def store(tiny_llama_store: Path, minilm_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "models"
    for source in (tiny_llama_store, minilm_store):
        shutil.copytree(source, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def addresses(store: Path) -> Iterator[Mapping[str, str]]:
    """Addresses of both services, by name, run by `aimass up` on free ports."""
    ports = ["--port", "generation=0", "--port", "encoder=0"]
    with subprocess.Popen(
        [*AIMASS, "up", "--store", str(store), *ports, "--json", "--log-level", "warning"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            yield {service["service"]: service["address"] for service in ready["services"]}
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


def test_status_says_that_all_is_ready(runner: CliRunner, addresses: Mapping[str, str]) -> None:
    arguments = ["--generation", addresses["generation"], "--encoder", addresses["encoder"], "--json"]
    result = runner.invoke(app, ["status", *arguments])

    report = json.loads(result.stdout)
    assert (result.exit_code, report["ready"]) == (0, True)
    models = {model["name"]: model for service in report["services"] for model in service["models"]}
    assert models[CHAT]["task"] == "text_generation"
    assert models[EMBED]["precision"] == "fp32"
    assert all(model["verified"] for model in models.values())


def test_the_streamed_text_is_the_text_of_the_json_object(
    runner: CliRunner, addresses: Mapping[str, str]
) -> None:
    arguments = ["generate", "Once upon", "--model", CHAT, "--address", addresses["generation"]]
    arguments += ["--max-new-tokens", "12", "--temperature", "0.9", "--seed", "7"]
    streamed = runner.invoke(app, arguments)
    answer = json.loads(runner.invoke(app, [*arguments, "--json"]).stdout)

    assert streamed.stdout == answer["text"] + "\n"
    assert answer["seed"] == 7
    assert answer["finish_reason"] in ("eos", "max_new_tokens")
    num_unseen = 1 if answer["finish_reason"] == "eos" else 0
    assert answer["usage"]["output_tokens"] == len(answer["token_ids"]) + num_unseen <= 12
    assert answer["timings"]["total_ms"] > 0


def test_json_of_generate_is_all_there_is_on_standard_output(addresses: Mapping[str, str]) -> None:
    result = subprocess.run(
        [*AIMASS, "generate", "Hi", "--address", addresses["generation"], "--max-new-tokens", "3", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )

    assert json.loads(result.stdout)["model"] == CHAT
    assert result.stdout.count("\n") == 1


def test_chat_takes_two_turns(runner: CliRunner, addresses: Mapping[str, str]) -> None:
    arguments = [
        "chat",
        "--address",
        addresses["generation"],
        "--system",
        "Be kind.",
        "--max-new-tokens",
        "4",
    ]
    result = runner.invoke(app, [*arguments, "--message", "Hello", "--message", "And now?"])

    assert result.exit_code == 0
    assert result.stdout


def test_embed_gives_unit_vectors(runner: CliRunner, addresses: Mapping[str, str]) -> None:
    arguments = ["embed", "a cat", "a dog", "--model", EMBED, "--address", addresses["encoder"], "--json"]
    answer = json.loads(runner.invoke(app, arguments).stdout)

    vectors = np.array(answer["vectors"])
    assert vectors.shape == (2, 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--model", "nobody"], "MODEL_NOT_FOUND"),
        (["--model", CHAT, "--top-p", "2"], "INVALID_FIELD: sampling.top_p"),
        (["--model", CHAT, "--temperature", "-1"], "INVALID_FIELD: sampling.temperature"),
        (["--model", CHAT, "--max-new-tokens", "0"], "INVALID_FIELD: stopping.max_new_tokens"),
    ],
)
def test_a_refusal_is_one_line_with_reason_and_field(
    runner: CliRunner, addresses: Mapping[str, str], options: list[str], named: str
) -> None:
    result = runner.invoke(app, ["generate", "Hi", "--address", addresses["generation"], *options])

    assert result.exit_code == 1
    assert result.stderr.startswith(f"aimass: {named}")
    assert result.stderr.count("\n") == 1


def test_every_way_into_the_generation_service_agrees(addresses: Mapping[str, str]) -> None:
    options = GenerationOptions(temperature=0, max_new_tokens=16, wants_token_ids=True)
    turns = [ChatMessage("user", "naïve 🙂 日本語")]
    with GenerationClient(addresses["generation"]) as client:
        whole = client.complete(turns, model=CHAT, options=options)
        with client.generate(turns, model=f"{CHAT}@1", options=options) as stream:
            deltas = list(stream)
        ids = client.tokenize(turns, model=CHAT)
        from_ids = client.complete(list(ids), model=CHAT, options=options)

        assert "".join(delta.text for delta in deltas) == whole.text == from_ids.text
        assert [i for delta in deltas for i in delta.token_ids] == list(whole.token_ids)
        assert whole.prompt_info.prompt_tokens == len(ids)
        assert client.detokenize(list(client.tokenize("plain text", model=CHAT)), model=CHAT) == "plain text"


def test_typed_errors_come_from_the_real_services(addresses: Mapping[str, str]) -> None:
    with GenerationClient(addresses["generation"]) as client:
        with pytest.raises(ModelNotFound, match=CHAT):
            client.complete("Hi", model="nobody")
        with pytest.raises(InputTooLong):
            client.complete("word " * 5000, model=CHAT)
        with pytest.raises(InvalidRequest) as refused:
            client.complete("", model=CHAT)
        assert refused.value.violations
        assert refused.value.request_id
    with EmbeddingClient(addresses["generation"]) as stranger, pytest.raises(Unimplemented):
        stranger.embed(["a"], model=EMBED)
    with EmbeddingClient(addresses["encoder"]) as client, pytest.raises((ModelNotFound, FailedPrecondition)):
        client.embed(["a"], model=CHAT)


def test_one_empty_text_fails_alone_at_the_real_encoder(addresses: Mapping[str, str]) -> None:
    with EmbeddingClient(addresses["encoder"]) as client:
        embeddings = client.embed(["fine", "", "fine"], model=EMBED)
        with client.embed_stream(["fine", "", "fine"], model=EMBED) as stream:
            answers = list(stream)

    assert list(embeddings.errors) == [1]
    assert embeddings.errors[1].reason == "INVALID_FIELD"
    assert np.allclose(embeddings.vectors[0], embeddings.vectors[2], atol=1e-6)
    assert [answer.vector is None for answer in answers] == [False, True, False]


def test_models_are_described_by_their_service(addresses: Mapping[str, str]) -> None:
    with ModelClient(addresses["encoder"]) as client:
        model = client.get(EMBED)

    assert (model.family, model.limits.dimensions, model.licence) == ("bert", 384, "Apache-2.0")
    assert model.parity
    assert all(measure.comparison in ("at_most", "at_least") for measure in model.parity)


def test_one_command_makes_one_connected_trace(addresses: Mapping[str, str], store: Path) -> None:
    """The services of this test export their spans; those of the others do not."""
    with subprocess.Popen(
        [*AIMASS, "traces", "--listen", "0", "--limit", "1", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as collector:
        try:
            assert collector.stderr is not None
            line = next(line for line in collector.stderr if line.startswith("set "))
            environ = {
                **os.environ,
                "OTEL_EXPORTER_OTLP_ENDPOINT": line.strip().partition("=")[2],
                "OTEL_BSP_SCHEDULE_DELAY": "100",
            }
            _generate_once(store, environ)
            trace = json.loads(collector.communicate(timeout=60)[0])
        finally:
            collector.kill()

    spans = {span["name"]: span for span in trace["spans"]}
    assert {"tokenize", "queue", "prefill", "decode"} <= set(spans)
    (client,) = (span for span in trace["spans"] if span["service"] == "aimass-cli")
    (server,) = (span for span in trace["spans"] if span["parent_span_id"] == client["span_id"])
    assert client["parent_span_id"] == ""
    assert spans["decode"]["parent_span_id"] == server["span_id"]


def _generate_once(store: Path, environ: Mapping[str, str]) -> None:
    serve = [*AIMASS, "serve", "generation", "--store", str(store), "--port", "0", "--json"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True, env=environ) as service:
        try:
            assert service.stdout is not None
            address = json.loads(service.stdout.readline())["address"]
            arguments = ["generate", "Hi", "--model", CHAT, "--max-new-tokens", "3", "--address", address]
            subprocess.run([*AIMASS, *arguments], env=environ, capture_output=True, timeout=120, check=True)
        finally:
            service.send_signal(signal.SIGINT)
