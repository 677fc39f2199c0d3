"""Services as processes: signals, exit codes, what stands on standard error, and one command for all."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from aimass.model.v1.model_service_pb2 import GetModelRequest
from aimass_serving.echo import SERVICE_NAME
from aimass_serving.testing import write_bundle
from grpc_health.v1 import health_pb2, health_pb2_grpc

MAX_START_S = 60.0
"""Generous: importing the runtime takes seconds on a busy machine."""

Start = Callable[..., "subprocess.Popen[str]"]

# `aimass up` runs installed services; the echo service is not installed, so the supervisor is run on it here.
SUPERVISE = """
import asyncio, sys
from aimass_serving.cli import _supervise
from aimass_serving.errors import AimassError
from aimass_serving.ready import Announcement
from aimass_serving.supervisor import Program
command = (sys.executable, "-m", "aimass_serving.echo", "--supervised", "--json", "--port", "0")
programs = [Program(f"echo{n}", (*command, "--store", store)) for n, store in enumerate(sys.argv[1:])]
try:
    asyncio.run(_supervise(programs, Announcement(to_stdout=True)))
except AimassError as error:
    sys.exit(f"aimass up: {error}")
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "store", "m")
    return tmp_path / "store"


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a Python process; it is killed at the end of the test if it still runs."""
    processes: list[subprocess.Popen[str]] = []

    def start_process(*arguments: str, **environ: str) -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=pipe, stderr=pipe, text=True, env={**os.environ, **environ}
        )
        processes.append(process)
        return process

    yield start_process
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def echo(start: Start, *arguments: str, **environ: str) -> "subprocess.Popen[str]":
    return start("-m", "aimass_serving.echo", "--json", *arguments, **environ)


def ready(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"ended with {process.wait()}: {process.stderr.read() if process.stderr else ''}"
    facts: dict[str, Any] = json.loads(line)
    return facts


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def wait_for(is_true: Callable[[], bool], max_s: float = 20) -> None:
    deadline_s = time.monotonic() + max_s
    while not is_true():
        assert time.monotonic() < deadline_s, "did not come true in time"
        time.sleep(0.02)


def test_sigterm_finishes_the_call_in_progress_and_exits_0(store: Path, start: Start) -> None:
    process = echo(start, "--store", str(store), "--port", "0", "--drain-delay", "0.2")
    address = ready(process)["address"]
    with grpc.insecure_channel(address) as channel:
        call: Any = channel.unary_unary(f"/{SERVICE_NAME}/UnaryUnary")
        future = call.future(GetModelRequest(model="sleep 1").SerializeToString(), wait_for_ready=True)
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        process.send_signal(signal.SIGTERM)
        assert future.result(timeout=20)
    assert process.wait(20) == 0


def test_second_signal_does_not_wait_for_the_grace(store: Path, start: Start) -> None:
    process = echo(start, "--store", str(store), "--port", "0", "--drain-delay", "60")
    ready(process)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_ctrl_c_skips_the_delay(store: Path, start: Start) -> None:
    process = echo(start, "--store", str(store), "--port", "0", "--drain-delay", "60")
    ready(process)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0


def test_ready_file_appears_whole(store: Path, start: Start, tmp_path: Path) -> None:
    process = echo(start, "--store", str(store), "--port", "0", "--ready-file", str(tmp_path / "ready"))
    assert ready(process) == json.loads((tmp_path / "ready").read_text())


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def corrupt(store: Path) -> Path:
    (store / "m/1/model.onnx").write_bytes(b"altered!!")
    return store


@pytest.mark.parametrize(
    ("arguments", "environ", "complaint"),
    [
        (("--store", "{tmp}/nowhere"), {}, "holds no model for embedding"),
        (("--store", "{corrupt}"), {}, "no model could be loaded: m@1: bundle m@1: model.onnx was altered"),
        (("--store", "{store}", "--port", "{port}"), {}, "port {port}: address already in use"),
        (("--store", "{store}", "--device", "cuda"), {}, "device 'cuda' is not available"),
        (("--store", "{store}", "--model", "zebra"), {}, "model 'zebra' is not served here; available: m@1"),
        (("--store", "{store}"), {"AIMASS_PROT": "1"}, "known names such as AIMASS_PORT, got 'AIMASS_PROT'"),
        (("--store", "{store}"), {"AIMASS_PORT": "x"}, "AIMASS_PORT: expected a whole number"),
        (("--store", "nosuch://store"), {}, "store 'nosuch://store' cannot be read"),
        (
            ("--store", "{store}", "--api-keys", "{tmp}/no-keys"),
            {},
            "api_keys: expected a readable text file",
        ),
        (("--store", "{store}"), {"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: expected otlp"),
    ],
)
def test_start_that_fails_is_one_clear_line_and_exit_code_1(
    start: Start,
    store: Path,
    tmp_path: Path,
    taken_port: int,
    arguments: tuple[str, ...],
    environ: dict[str, str],
    complaint: str,
) -> None:
    facts = {"tmp": tmp_path, "store": store, "port": taken_port}
    if "{corrupt}" in arguments:
        facts["corrupt"] = corrupt(store)
    filled = [argument.format(**facts) for argument in arguments]
    process = echo(start, *filled, **environ)
    output, errors = process.communicate(timeout=MAX_START_S)
    assert process.returncode == 1
    assert output == ""
    assert errors.count("\n") == 1, errors
    assert errors.startswith("aimass echo: ")
    assert complaint.format(**facts) in errors


def test_one_command_runs_all_and_sigterm_ends_all(store: Path, start: Start) -> None:
    process = start("-c", SUPERVISE, str(store), str(store))
    facts = ready(process)
    assert [service["service"] for service in facts["services"]] == ["echo", "echo"]
    for service in facts["services"]:
        with grpc.insecure_channel(service["address"]) as channel:
            status = (
                health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10).status
            )
            assert status == health_pb2.HealthCheckResponse.SERVING
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "echo0 | " in errors
    assert "echo1 | " in errors
    assert not any(is_alive(service["pid"]) for service in facts["services"])


def test_service_that_dies_ends_all_with_its_name(store: Path, start: Start) -> None:
    process = start("-c", SUPERVISE, str(store), str(store))
    first, second = ready(process)["services"]
    os.kill(first["pid"], signal.SIGKILL)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "aimass up: echo0 ended with signal SIGKILL; the other services were stopped" in errors
    assert not is_alive(second["pid"])


def test_service_that_cannot_start_ends_all(store: Path, tmp_path: Path, start: Start) -> None:
    write_bundle(tmp_path / "bad", "m")
    process = start("-c", SUPERVISE, str(store), str(corrupt(tmp_path / "bad")))
    output, errors = process.communicate(timeout=MAX_START_S)
    assert process.returncode == 1
    assert output == ""
    assert "echo1 | aimass echo: no model could be loaded" in errors
    assert "aimass up: echo1 ended with exit code 1" in errors


def test_service_without_models_is_left_out(store: Path, tmp_path: Path, start: Start) -> None:
    process = start("-c", SUPERVISE, str(store), str(tmp_path / "empty"))
    assert len(ready(process)["services"]) == 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def test_store_without_models_for_anybody_is_an_error(tmp_path: Path, start: Start) -> None:
    process = start("-c", SUPERVISE, str(tmp_path), str(tmp_path))
    _, errors = process.communicate(timeout=MAX_START_S)
    assert process.returncode == 1
    assert "holds no model for any installed service (echo0, echo1)" in errors


def test_services_end_when_their_parent_is_killed(store: Path, start: Start) -> None:
    process = start("-c", SUPERVISE, str(store))
    [service] = ready(process)["services"]
    process.kill()
    wait_for(lambda: not is_alive(service["pid"]))
