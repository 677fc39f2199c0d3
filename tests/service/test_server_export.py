"""Spans and measurements leave the process by the standard variables."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from aimass.model.v1.model_service_pb2 import GetModelRequest
from aimass_serving.echo import SERVICE_NAME
from aimass_serving.testing import write_bundle
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class Collector(trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer):
    """Keeps what is exported to it."""

    def __init__(self) -> None:
        self.has_spans = threading.Event()
        self.resource_spans: list[Any] = []
        self.resource_metrics: list[Any] = []

    def Export(self, request: Any, context: Any) -> Any:
        if isinstance(request, metrics_service_pb2.ExportMetricsServiceRequest):
            self.resource_metrics += request.resource_metrics
            return metrics_service_pb2.ExportMetricsServiceResponse()
        self.resource_spans += request.resource_spans
        self.has_spans.set()
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    servicer = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call] # generated
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call] # generated
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"http://127.0.0.1:{port}"
    server.stop(None)


def run_one_call(store: Path, **environ: str) -> str:
    """Start the echo service, make one call, end the service; return its standard error."""
    write_bundle(store, "m")
    arguments = (
        "-m",
        "aimass_serving.echo",
        "--store",
        str(store),
        "--port",
        "0",
        "--json",
        "--drain-delay",
        "0",
    )
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )
    try:
        assert process.stdout is not None
        with grpc.insecure_channel(json.loads(process.stdout.readline())["address"]) as channel:
            call: Any = channel.unary_unary(f"/{SERVICE_NAME}/UnaryUnary")
            call(GetModelRequest(model="hi").SerializeToString(), timeout=10)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    return errors


def attributes(resource: Any) -> dict[str, str]:
    return {attribute.key: attribute.value.string_value for attribute in resource.attributes}


def test_endpoint_alone_switches_on_spans_and_measurements(
    tmp_path: Path, collector: tuple[Collector, str]
) -> None:
    servicer, endpoint = collector
    run_one_call(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_EXPORTER_OTLP_INSECURE="true")
    [spans] = servicer.resource_spans
    assert attributes(spans.resource)["service.name"] == "aimass-echo"
    assert [span.name for scope in spans.scope_spans for span in scope.spans] == [
        f"{SERVICE_NAME}/UnaryUnary"
    ]
    names = {m.name for r in servicer.resource_metrics for s in r.scope_metrics for m in s.metrics}
    assert "rpc.server.call.duration" in names


def test_service_name_of_the_environment_wins(tmp_path: Path, collector: tuple[Collector, str]) -> None:
    servicer, endpoint = collector
    run_one_call(tmp_path, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=endpoint, OTEL_SERVICE_NAME="mine")
    assert {attributes(spans.resource)["service.name"] for spans in servicer.resource_spans} == {"mine"}
    assert servicer.resource_metrics == []


def test_console_exporter_writes_to_standard_error(tmp_path: Path) -> None:
    assert f'"name": "{SERVICE_NAME}/UnaryUnary"' in run_one_call(tmp_path, OTEL_TRACES_EXPORTER="console")


def test_collector_that_is_not_there_harms_nobody(tmp_path: Path) -> None:
    run_one_call(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", OTEL_EXPORTER_OTLP_TIMEOUT="2")
