"""Spans of outgoing calls, on the OpenTelemetry API alone. Knows gRPC and no service.

One CLIENT span a call, with the W3C context of the caller sent along. The span ends exactly once, when gRPC
says that the call is over: answered, failed, cancelled, past its deadline, or its iterator dropped. The
published instrumentation ends it in the reader's hands, and so loses it when the reader leaves early.
Attributes follow the `rpc.*` semantic conventions.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider

INSTRUMENTATION_NAME = "aimass.client"
_EXPORT_SWITCHES = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_TRACES_EXPORTER",
)


class _CallDetails(NamedTuple):
    method: str
    timeout: float | None
    metadata: tuple[tuple[str, str | bytes], ...]
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class CallDetails(_CallDetails, grpc.ClientCallDetails):  # type: ignore[misc]  # metadata: a tuple will do
    """What gRPC calls `ClientCallDetails`, made new with more metadata."""


Continuation = Callable[..., Any]


class TracingInterceptor(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Gives each call through a channel its span. For `grpc.intercept_channel`; threads may share it."""

    def __init__(self, address: str, *, tracer_provider: TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer(INSTRUMENTATION_NAME, tracer_provider=tracer_provider)
        self._peer = _peer_attributes(address)

    def intercept_unary_unary(
        self, continuation: Continuation, client_call_details: grpc.ClientCallDetails, request: Any
    ) -> Any:
        return self._traced(continuation, client_call_details, request)

    def intercept_unary_stream(
        self, continuation: Continuation, client_call_details: grpc.ClientCallDetails, request: Any
    ) -> Any:
        return self._traced(continuation, client_call_details, request)

    def intercept_stream_unary(
        self, continuation: Continuation, client_call_details: grpc.ClientCallDetails, request_iterator: Any
    ) -> Any:
        return self._traced(continuation, client_call_details, request_iterator)

    def intercept_stream_stream(
        self, continuation: Continuation, client_call_details: grpc.ClientCallDetails, request_iterator: Any
    ) -> Any:
        return self._traced(continuation, client_call_details, request_iterator)

    def _traced(self, continuation: Continuation, details: grpc.ClientCallDetails, request: Any) -> Any:
        span = self._start_span(details.method)
        try:
            call = continuation(_with_trace_context(details, span), request)
        except BaseException as error:
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(StatusCode.ERROR)
            span.end()
            raise
        call.add_done_callback(lambda ended: _end_span(span, ended))
        return call

    def _start_span(self, method: str) -> Span:
        name = method.removeprefix("/")
        attributes = {"rpc.system.name": "grpc", "rpc.method": name, **self._peer}
        return self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)


def export_spans(service_name: str) -> Callable[[], None]:
    """Send this process's spans where the standard `OTEL_*` variables say; return what flushes and stops it.

    Does nothing, and imports no SDK, when they name no exporter. For programs: a library leaves this to its
    caller. `OTEL_SERVICE_NAME` wins over `service_name`.
    """
    if not any(os.environ.get(name) for name in _EXPORT_SWITCHES) or _is_switched_off():
        return lambda: None
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = os.environ.get("OTEL_SERVICE_NAME", service_name)
    provider = SdkTracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider.shutdown


def _is_switched_off() -> bool:
    return (
        os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
        or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    )


def _with_trace_context(details: grpc.ClientCallDetails, span: Span) -> CallDetails:
    carrier: dict[str, str] = {}
    propagate.inject(carrier, context=trace.set_span_in_context(span))
    return CallDetails(
        method=details.method,
        timeout=details.timeout,
        metadata=(*(details.metadata or ()), *carrier.items()),
        credentials=details.credentials,
        wait_for_ready=details.wait_for_ready,
        compression=details.compression,
    )


def _end_span(span: Span, call: grpc.Call) -> None:
    code = call.code() or grpc.StatusCode.UNKNOWN
    span.set_attribute("rpc.response.status_code", code.name)
    if code is not grpc.StatusCode.OK:
        span.set_attribute("error.type", code.name)
        span.set_status(Status(StatusCode.ERROR, call.details() or None))
    span.end()


def _peer_attributes(address: str) -> dict[str, str | int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return {"server.address": address}
    return {"server.address": host.removeprefix("dns:///").strip("[]"), "server.port": int(port)}
