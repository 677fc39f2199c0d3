"""Spans and metrics of a service, by the standard `OTEL_*` variables. No exporter configured means no work.

One SERVER span for each RPC (`interceptors.telemetry`), one finished child span for each phase. Must not know
what the phases are, nor gRPC.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import Histogram, MeterProvider
from opentelemetry.trace import Link, Span, SpanKind, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from aimass_serving.errors import BadConfig

INSTRUMENTATION_NAME = "aimass"

# Bucket bounds in seconds, as the semantic conventions advise.
CALL_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
GEN_AI_DURATION_BUCKETS = tuple(0.01 * 2**power for power in range(14))
TIME_TO_FIRST_TOKEN_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10
)  # fmt: skip
RELEASE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
TIME_PER_OUTPUT_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)

logger = logging.getLogger(__name__)
_propagator = TraceContextTextMapPropagator()


@dataclass(frozen=True, slots=True)
class GenAiMeasurement:
    """One model request, as the `gen_ai.server.*` histograms see it."""

    operation: str
    """`gen_ai.operation.name`, such as `text_completion`, `chat` or `embeddings`."""
    model: str
    """Name of the model."""
    duration_s: float
    """From arrival at the engine to the end."""
    time_to_first_token_s: float | None = None
    """From arrival to the first token; None when there was none."""
    time_per_output_token_s: float | None = None
    """Mean time of each token after the first; None with fewer than two."""
    error_type: str | None = None
    """Reason of the error it ended with; None when it succeeded."""


@dataclass(slots=True)
class _Instruments:
    call_duration: Histogram
    request_duration: Histogram
    time_to_first_token: Histogram
    time_per_output_token: Histogram
    release_duration: Histogram


@dataclass(slots=True)
class _Telemetry:
    """Where this process sends its telemetry. None: nowhere. Set at start, before any call."""

    tracer: trace.Tracer | None = None
    instruments: _Instruments | None = None
    flush: list[Callable[[], object]] = field(default_factory=list)


_telemetry = _Telemetry()


def configure_telemetry(service_name: str, environ: Mapping[str, str] = os.environ) -> Callable[[], None]:
    """Switch on the exporters that the `OTEL_*` variables ask for; return what flushes and stops them.

    OTLP over gRPC when an OTLP endpoint or `OTEL_TRACES_EXPORTER=otlp` is set, `console` to standard error.
    Raises `BadConfig` for an exporter or protocol that is not supported.
    """
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return lambda: None
    traces, readings = _exporter("TRACES", environ), _exporter("METRICS", environ)
    if traces != "none":
        use_tracer_provider(_sdk_tracer_provider(service_name, traces, environ))
    if readings != "none":
        use_meter_provider(_sdk_meter_provider(service_name, readings, environ))
    return shutdown_telemetry


def shutdown_telemetry() -> None:
    """Send what is buffered and record nothing more. Blocking, for at most the exporters' time limits."""
    _telemetry.tracer = _telemetry.instruments = None
    while _telemetry.flush:
        _telemetry.flush.pop()()


def is_tracing() -> bool:
    """Return whether spans go anywhere."""
    return _telemetry.tracer is not None


def is_recording() -> bool:
    """Return whether spans or measurements go anywhere."""
    return _telemetry.tracer is not None or _telemetry.instruments is not None


def use_tracer_provider(provider: TracerProvider) -> None:
    """Send spans to `provider` from now on."""
    _telemetry.tracer = provider.get_tracer(INSTRUMENTATION_NAME)


def use_meter_provider(provider: MeterProvider) -> None:
    """Send measurements to `provider` from now on."""
    meter = provider.get_meter(INSTRUMENTATION_NAME)

    def histogram(name: str, bounds: Sequence[float]) -> Histogram:
        return meter.create_histogram(name, unit="s", explicit_bucket_boundaries_advisory=bounds)

    _telemetry.instruments = _Instruments(
        histogram("rpc.server.call.duration", CALL_BUCKETS),
        histogram("gen_ai.server.request.duration", GEN_AI_DURATION_BUCKETS),
        histogram("gen_ai.server.time_to_first_token", TIME_TO_FIRST_TOKEN_BUCKETS),
        histogram("gen_ai.server.time_per_output_token", TIME_PER_OUTPUT_TOKEN_BUCKETS),
        histogram("aimass.sequence.release.duration", RELEASE_BUCKETS),
    )


def current_context() -> Context:
    """Return the context of the caller's span, to hand to another task or thread."""
    return otel_context.get_current()


def incoming_context(metadata: Mapping[str, str]) -> Context:
    """Return the caller's trace context from the metadata of a call (W3C `traceparent`, `tracestate`)."""
    return _propagator.extract(metadata)


def start_server_span(method: str, *, parent: Context, start_ns: int) -> Span:
    """Start the SERVER span of an RPC and make it current for the rest of this task. The caller ends it.

    An RPC has a task of its own, so the context is never put back: that has nothing to fail on when the task
    is cancelled.
    """
    if _telemetry.tracer is None:
        return trace.INVALID_SPAN
    span = _telemetry.tracer.start_span(
        method,
        parent,
        SpanKind.SERVER,
        {"rpc.system.name": "grpc", "rpc.method": method},
        start_time=start_ns,
    )
    otel_context.attach(trace.set_span_in_context(span, parent))
    return span


def emit_phase(
    name: str,
    start_ns: int,
    end_ns: int,
    *,
    attributes: Mapping[str, AttributeValue] = {},
    links: Sequence[Link] = (),
    context: Context | None = None,
) -> None:
    """Record a finished phase as a child of the current span, or of the span in `context`.

    Times are `time.time_ns`. A phase that ended before it began is recorded as lasting 0.
    """
    if _telemetry.tracer is None:
        return
    span = _telemetry.tracer.start_span(
        name, context, attributes=attributes, links=links, start_time=start_ns
    )
    span.end(max(start_ns, end_ns))


def annotate(attributes: Mapping[str, AttributeValue]) -> None:
    """Add attributes, such as `gen_ai.request.model`, to the current span."""
    if _telemetry.tracer is not None:
        trace.get_current_span().set_attributes(attributes)


def record_call(method: str, *, status_code: str, duration_s: float, error_type: str | None) -> None:
    """Add one RPC to `rpc.server.call.duration`."""
    if _telemetry.instruments is None:
        return
    attributes = {"rpc.system.name": "grpc", "rpc.method": method, "rpc.response.status_code": status_code}
    if error_type:
        attributes["error.type"] = error_type
    _telemetry.instruments.call_duration.record(duration_s, attributes)


def record_release(duration_ms: float, *, model: str) -> None:
    """Add to `aimass.sequence.release.duration` how long a sequence nobody wants any more kept its slot."""
    if _telemetry.instruments is not None:
        _telemetry.instruments.release_duration.record(duration_ms / 1e3, {"gen_ai.request.model": model})


def record_gen_ai(measurement: GenAiMeasurement) -> None:
    """Add one model request to the `gen_ai.server.*` histograms."""
    instruments = _telemetry.instruments
    if instruments is None:
        return
    attributes = {
        "gen_ai.operation.name": measurement.operation,
        "gen_ai.provider.name": "aimass",
        "gen_ai.request.model": measurement.model,
    }
    if measurement.time_to_first_token_s is not None:
        instruments.time_to_first_token.record(measurement.time_to_first_token_s, attributes)
    if measurement.time_per_output_token_s is not None:
        instruments.time_per_output_token.record(measurement.time_per_output_token_s, attributes)
    failed = {"error.type": measurement.error_type} if measurement.error_type else {}
    instruments.request_duration.record(measurement.duration_s, attributes | failed)


def _exporter(signal: str, environ: Mapping[str, str]) -> str:
    """Return `none`, `otlp` or `console` for the signal `TRACES` or `METRICS`."""
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    default = "otlp" if any(environ.get(name) for name in endpoints) else "none"
    chosen = environ.get(f"OTEL_{signal}_EXPORTER") or default
    if chosen not in ("none", "otlp", "console"):
        raise BadConfig(f"OTEL_{signal}_EXPORTER", expected="otlp, console or none", got=chosen)
    protocol = environ.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL") or environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL"
    )
    if chosen == "otlp" and protocol not in (None, "", "grpc"):
        raise BadConfig("OTEL_EXPORTER_OTLP_PROTOCOL", expected="grpc", got=protocol)
    return chosen


def _resource_attributes(service_name: str, environ: Mapping[str, str]) -> dict[str, str]:
    is_named = "OTEL_SERVICE_NAME" in environ or "service.name=" in environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    return {} if is_named else {"service.name": service_name}


def _sdk_tracer_provider(service_name: str, exporter: str, environ: Mapping[str, str]) -> TracerProvider:
    # Imported here: a service without an exporter never pays for the SDK.
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

    provider = SdkTracerProvider(resource=Resource.create(_resource_attributes(service_name, environ)))
    sink: SpanExporter = ConsoleSpanExporter(out=sys.stderr)
    if exporter == "otlp":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        sink = OTLPSpanExporter()
    provider.add_span_processor(BatchSpanProcessor(sink))
    _telemetry.flush.append(provider.shutdown)
    # Calls made by this process through the client library use the global provider.
    trace.set_tracer_provider(provider)
    return provider


def _sdk_meter_provider(service_name: str, exporter: str, environ: Mapping[str, str]) -> MeterProvider:
    from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
    from opentelemetry.sdk.metrics.export import (
        ConsoleMetricExporter,
        MetricExporter,
        PeriodicExportingMetricReader,
    )
    from opentelemetry.sdk.resources import Resource

    sink: MetricExporter = ConsoleMetricExporter(out=sys.stderr)
    if exporter == "otlp":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

        sink = OTLPMetricExporter()
    provider = SdkMeterProvider(
        [PeriodicExportingMetricReader(sink)],
        resource=Resource.create(_resource_attributes(service_name, environ)),
    )
    _telemetry.flush.append(provider.shutdown)
    metrics.set_meter_provider(provider)
    return provider
