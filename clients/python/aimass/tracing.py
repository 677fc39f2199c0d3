"""Spans of outgoing calls, on the OpenTelemetry API alone. Knows gRPC and no service.

One CLIENT span a call, with the W3C context of the caller sent along. The span ends exactly once, when gRPC
says that the call is over: answered, failed, cancelled, past its deadline, or its iterator dropped. The
published instrumentation ends it in the reader's hands, and so loses it when the reader leaves early.
Attributes follow the `rpc.*` semantic conventions.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import grpc
from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider

INSTRUMENTATION_NAME = "aimass.client"
_OTLP_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class _CallDetails(NamedTuple):
    method: str
    timeout: float | None
    metadata: tuple[tuple[str, str | bytes], ...]
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class CallDetails(_CallDetails, grpc.ClientCallDetails):  # type: ignore[misc]  # metadata: a tuple will do
    """What gRPC calls `ClientCallDetails`, made new with more metadata."""


Continuation: TypeAlias = Callable[..., Any]
End: TypeAlias = Callable[[grpc.StatusCode, str], None]
TellEnd: TypeAlias = Callable[[Any, End], None]


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
        self._num_open = 0
        self._changed = threading.Condition()

    def wait_until_ended(self, *, timeout_s: float) -> bool:
        """Wait until no span is open; return False when some still are after the time.

        gRPC tells of a call's end on a thread of its own, a moment after the caller has its answer.
        """
        with self._changed:
            return self._changed.wait_for(lambda: self._num_open == 0, timeout_s)

    def intercept_unary_unary(
        self, continuation: Continuation, client_call_details: grpc.ClientCallDetails, request: Any
    ) -> Any:
        return self._traced(continuation, client_call_details, request, tell_end=_tell_future_end)

    def intercept_unary_stream(
        self, continuation: Continuation, client_call_details: grpc.ClientCallDetails, request: Any
    ) -> Any:
        return self._traced(continuation, client_call_details, request, tell_end=_tell_stream_end)

    def intercept_stream_unary(
        self, continuation: Continuation, client_call_details: grpc.ClientCallDetails, request_iterator: Any
    ) -> Any:
        return self._traced(continuation, client_call_details, request_iterator, tell_end=_tell_future_end)

    def intercept_stream_stream(
        self, continuation: Continuation, client_call_details: grpc.ClientCallDetails, request_iterator: Any
    ) -> Any:
        return self._traced(continuation, client_call_details, request_iterator, tell_end=_tell_stream_end)

    def _traced(
        self, continuation: Continuation, details: grpc.ClientCallDetails, request: Any, *, tell_end: TellEnd
    ) -> Any:
        span = self._start_span(details.method)
        try:
            call = continuation(_with_trace_context(details, span), request)
        except BaseException as error:
            self._end_span(span, grpc.StatusCode.CANCELLED, type(error).__qualname__)
            raise
        tell_end(call, functools.partial(self._end_span, span))
        return call

    def _start_span(self, method: str) -> Span:
        name = method.removeprefix("/")
        attributes = {"rpc.system.name": "grpc", "rpc.method": name, **self._peer}
        with self._changed:
            self._num_open += 1
        return self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)

    def _end_span(self, span: Span, code: grpc.StatusCode, details: str) -> None:
        span.set_attribute("rpc.response.status_code", code.name)
        if code is not grpc.StatusCode.OK:
            span.set_attribute("error.type", code.name)
            span.set_status(Status(StatusCode.ERROR, details or None))
        span.end()
        with self._changed:
            self._num_open -= 1
            self._changed.notify_all()


def export_spans(service_name: str, environ: Mapping[str, str] = os.environ) -> Callable[[], None]:
    """Send this process's spans where the standard `OTEL_*` variables say; return what flushes and stops it.

    Over OTLP/gRPC when they name an OTLP endpoint or `OTEL_TRACES_EXPORTER=otlp`; otherwise nothing is done
    and no SDK is imported. `OTEL_SERVICE_NAME` wins over `service_name`. For programs: a library leaves this
    to its caller.
    """
    if not _wants_otlp(environ):
        return lambda: None
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = environ.get("OTEL_SERVICE_NAME") or service_name
    provider = SdkTracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider.shutdown


def _wants_otlp(environ: Mapping[str, str]) -> bool:
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    has_endpoint = any(environ.get(name) for name in _OTLP_ENDPOINTS)
    return (environ.get("OTEL_TRACES_EXPORTER") or ("otlp" if has_endpoint else "none")) == "otlp"


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


def _tell_future_end(call: Any, end: End) -> None:
    call.add_done_callback(lambda ended: end(ended.code() or grpc.StatusCode.UNKNOWN, ended.details() or ""))


def _tell_stream_end(call: Any, end: End) -> None:
    """Arrange for `end` without holding the call: one that nobody holds any more must still be collected.

    gRPC cancels a call when it is collected, and its own `add_done_callback` would keep it alive for ever.
    """
    held = weakref.ref(call)

    def on_end() -> None:
        ended = held()
        if ended is None:
            end(grpc.StatusCode.CANCELLED, "the reader dropped the stream")
        else:
            end(ended.code() or grpc.StatusCode.UNKNOWN, ended.details() or "")

    if not call.add_callback(on_end):
        on_end()


def _peer_attributes(address: str) -> dict[str, str | int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return {"server.address": address}
    return {"server.address": host.removeprefix("dns:///").strip("[]"), "server.port": int(port)}
