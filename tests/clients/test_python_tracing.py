"""Each call of the client has one span, which ends once, whatever way the call is left."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator, Sequence

import grpc
import pytest
from aimass import Connection, ConnectionOptions, EmbeddingClient, GenerationClient
from aimass.errors import Cancelled, DeadlineExceeded, ServerFault
from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.generation.v1 import generation_service_pb2_grpc
from aimass.testing import (
    Fail,
    FakeEmbeddingService,
    FakeGenerationService,
    Hang,
    Script,
    delta_event,
    prompt_info_event,
    running_fakes,
)
from aimass.tracing import TracingInterceptor, export_spans
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode

GENERATE = "aimass.generation.v1.GenerationService/Generate"
COMPLETE = "aimass.generation.v1.GenerationService/Complete"
HANGING: Script = [Hang()]
MISSING: Script = [Fail(code=grpc.StatusCode.NOT_FOUND)]
ENDLESS: Script = [prompt_info_event(), delta_event("a"), Hang()]


class EndedSpans(SpanExporter):
    """Every span in the order in which they ended, one entry for each time one ended."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans.extend(spans)
        return SpanExportResult.SUCCESS


class Traced:
    """A fake service, and a client of it whose spans are kept."""

    def __init__(self, fake: FakeGenerationService, address: str) -> None:
        self.fake = fake
        self.ended = EndedSpans()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.ended))
        self.address = address
        self.connection = Connection(address, ConnectionOptions(tracer_provider=self.provider))
        self.client = GenerationClient(self.connection)

    def only_span(self) -> ReadableSpan:
        """Close the connection, which waits for spans, and return the one that ended."""
        self.connection.close()
        (span,) = self.ended.spans
        return span


@pytest.fixture
def traced() -> Iterator[Traced]:
    fake = FakeGenerationService(generate=[ENDLESS], complete=[HANGING])
    with running_fakes(fake) as address:
        endless = Traced(fake, address)
        yield endless
        endless.connection.close()


@pytest.fixture
def answering() -> Iterator[Traced]:
    fake = FakeGenerationService.saying("all of it")
    with running_fakes(fake) as address:
        answering = Traced(fake, address)
        yield answering
        answering.connection.close()


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def test_an_answered_call_has_a_client_span_with_rpc_attributes(answering: Traced) -> None:
    answering.client.complete("Hi", model="m")

    span = answering.only_span()
    host, port = answering.address.split(":")
    assert (span.name, span.kind) == (COMPLETE, SpanKind.CLIENT)
    assert attributes(span) == {
        "rpc.system.name": "grpc",
        "rpc.method": COMPLETE,
        "rpc.response.status_code": "OK",
        "server.address": host,
        "server.port": int(port),
    }
    assert span.status.status_code is StatusCode.UNSET


def test_a_stream_read_to_its_end_ends_its_span_as_ok(answering: Traced) -> None:
    with answering.client.generate("Hi", model="m") as stream:
        list(stream)

    assert attributes(answering.only_span())["rpc.response.status_code"] == "OK"


def test_the_span_lasts_as_long_as_the_stream(answering: Traced) -> None:
    with answering.client.generate("Hi", model="m") as stream:
        next(stream)
        before_ns = time.time_ns()
        list(stream)

    span = answering.only_span()
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.start_time < before_ns
    assert span.end_time > span.start_time


def test_leaving_a_stream_early_ends_its_span_as_cancelled(traced: Traced) -> None:
    with traced.client.generate("Hi", model="m") as stream:
        next(stream)

    span = traced.only_span()
    assert attributes(span)["error.type"] == "CANCELLED"
    assert span.status.status_code is StatusCode.ERROR


def test_dropping_a_stream_ends_its_span_as_cancelled(traced: Traced) -> None:
    for _ in traced.client.generate("Hi", model="m"):
        break
    gc.collect()

    assert traced.fake.calls[0].was_cancelled
    assert attributes(traced.only_span())["rpc.response.status_code"] == "CANCELLED"


def test_closing_from_another_thread_ends_the_span_once(traced: Traced) -> None:
    stream = traced.client.generate("Hi", model="m")
    next(stream)
    closers = [threading.Thread(target=stream.close) for _ in range(4)]
    for closer in closers:
        closer.start()
    with pytest.raises(Cancelled):
        next(stream)
    for closer in closers:
        closer.join()

    assert attributes(traced.only_span())["rpc.response.status_code"] == "CANCELLED"


def test_a_passed_deadline_ends_the_span_as_such(traced: Traced) -> None:
    with pytest.raises(DeadlineExceeded):
        traced.client.complete("Hi", model="m", deadline_s=0.1)

    assert attributes(traced.only_span())["error.type"] == "DEADLINE_EXCEEDED"


def test_a_failed_stream_ends_its_span_with_the_status() -> None:
    fake = FakeGenerationService(generate=[[Fail(code=grpc.StatusCode.INTERNAL, message="words")]])
    with running_fakes(fake) as address:
        failing = Traced(fake, address)
        with pytest.raises(ServerFault):
            list(failing.client.generate("Hi", model="m"))

        span = failing.only_span()
    assert attributes(span)["rpc.response.status_code"] == "INTERNAL"
    assert span.status.description == "words"


def test_closing_the_connection_ends_the_spans_of_running_calls(traced: Traced) -> None:
    stream = traced.client.generate("Hi", model="m")
    next(stream)

    span = traced.only_span()

    assert attributes(span)["rpc.response.status_code"] == "CANCELLED"
    assert stream.text == "a"


def test_a_stream_of_requests_has_one_span_too() -> None:
    with running_fakes(FakeEmbeddingService()) as address:
        ended = EndedSpans()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(ended))
        with (
            EmbeddingClient(address, ConnectionOptions(tracer_provider=provider)) as client,
            client.embed_stream(["a", "b"], model="m") as stream,
        ):
            list(stream)

    assert [span.name for span in ended.spans] == ["aimass.embedding.v1.EmbeddingService/EmbedStream"]


def test_the_trace_goes_on_at_the_service(traced: Traced) -> None:
    tracer = traced.provider.get_tracer("test")
    with tracer.start_as_current_span("caller") as caller, traced.client.generate("Hi", model="m") as stream:
        next(stream)

    traced.connection.close()
    rpc = next(span for span in traced.ended.spans if span.name == GENERATE)
    assert rpc.parent is not None
    assert rpc.parent.span_id == caller.get_span_context().span_id
    assert rpc.context is not None
    traceparent = str(traced.fake.calls[0].metadata["traceparent"])
    assert traceparent.startswith(f"00-{rpc.context.trace_id:032x}-{rpc.context.span_id:016x}-")


def test_without_a_tracer_provider_nothing_is_sent_along() -> None:
    fake = FakeGenerationService.saying("ok")
    with running_fakes(fake) as address, GenerationClient(address) as client:
        client.complete("Hi", model="m")

    assert "traceparent" not in fake.calls[0].metadata


def test_the_interceptor_serves_generated_stubs_alone() -> None:
    fake = FakeGenerationService(generate=[ENDLESS], complete=[MISSING])
    ended = EndedSpans()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ended))
    with running_fakes(fake) as address, grpc.insecure_channel(address) as channel:
        interceptor = TracingInterceptor(address, tracer_provider=provider)
        stub = generation_service_pb2_grpc.GenerationServiceStub(grpc.intercept_channel(channel, interceptor))
        with pytest.raises(grpc.RpcError):
            stub.Complete(pb.CompleteRequest(), timeout=5)
        for _ in stub.Generate(pb.GenerateRequest(), timeout=5):
            break
        gc.collect()

        assert fake.calls[1].was_cancelled, "the interceptor must not keep a dropped call alive"
        assert interceptor.wait_until_ended(timeout_s=5)

    assert [attributes(span)["rpc.response.status_code"] for span in ended.spans] == [
        "NOT_FOUND",
        "CANCELLED",
    ]


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4317"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4317"},
    ],
)
def test_no_exporter_is_started_unless_the_environment_asks(environ: dict[str, str]) -> None:
    before = trace.get_tracer_provider()

    export_spans("test", environ)()

    assert trace.get_tracer_provider() is before
