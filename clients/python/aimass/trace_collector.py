"""A small OTLP/gRPC collector: takes the spans of any process and gives back whole traces.

For a laptop and for tests: everything is kept in memory until it is taken. Metrics and logs are accepted and
dropped, so that a service that exports them too sees no errors. Knows no aimass service.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from aimass.trace_tree import FinishedSpan

DEFAULT_OTLP_PORT = 4317


class PortInUse(Exception):
    """The collector's address is taken."""


@dataclass(slots=True)
class _OpenTrace:
    last_arrival_s: float
    spans: list[FinishedSpan] = field(default_factory=list)

    @property
    def has_root(self) -> bool:
        return any(not span.parent_span_id for span in self.spans)


class TraceCollector:
    """Spans by trace, until each trace is finished and taken. Guarded by a lock: servers' threads add to it.

    Nothing in OTLP says that a trace is complete. It counts as finished when its first span is here and
    nothing came for `quiet_s`; without a first span (its caller exports elsewhere, or died) after `orphan_s`.
    """

    def __init__(
        self,
        *,
        quiet_s: float = 1.0,
        orphan_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quiet_s = quiet_s
        self._orphan_s = orphan_s
        self._clock = clock
        self._open: dict[str, _OpenTrace] = {}
        self._lock = threading.Lock()

    def add(self, spans: Iterable[FinishedSpan]) -> None:
        """Take in finished spans of any traces."""
        with self._lock:
            now_s = self._clock()
            for span in spans:
                trace = self._open.setdefault(span.trace_id, _OpenTrace(now_s))
                trace.spans.append(span)
                trace.last_arrival_s = now_s

    def take_finished(self) -> Sequence[Sequence[FinishedSpan]]:
        """Return the traces that have become finished, and forget them."""
        with self._lock:
            now_s = self._clock()
            finished = [trace_id for trace_id, trace in self._open.items() if self._is_finished(trace, now_s)]
            return tuple(tuple(self._open.pop(trace_id).spans) for trace_id in finished)

    def take_all(self) -> Sequence[Sequence[FinishedSpan]]:
        """Return every trace as far as it is known, and forget them."""
        with self._lock:
            traces = tuple(tuple(trace.spans) for trace in self._open.values())
            self._open.clear()
            return traces

    def _is_finished(self, trace: _OpenTrace, now_s: float) -> bool:
        wait_s = self._quiet_s if trace.has_root else self._orphan_s
        return now_s - trace.last_arrival_s >= wait_s


@contextmanager
def running_collector(
    collector: TraceCollector, *, host: str = "127.0.0.1", port: int = DEFAULT_OTLP_PORT
) -> Iterator[int]:
    """Receive OTLP/gRPC for the collector and give the port, a free one for 0. Raises `PortInUse`."""
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_Traces(collector), server)  # type: ignore[no-untyped-call]
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(_Metrics(), server)  # type: ignore[no-untyped-call]
    logs_service_pb2_grpc.add_LogsServiceServicer_to_server(_Logs(), server)  # type: ignore[no-untyped-call]
    try:
        bound_port = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise PortInUse(f"{host}:{port} cannot be opened: another collector may listen there") from error
    server.start()
    try:
        yield bound_port
    finally:
        server.stop(grace=1).wait()


def spans_of(request: trace_service_pb2.ExportTraceServiceRequest) -> Iterator[FinishedSpan]:
    """Yield the spans of an OTLP message."""
    for resource_spans in request.resource_spans:
        service = str(_attributes(resource_spans.resource.attributes).get("service.name", ""))
        for scope_spans in resource_spans.scope_spans:
            for span_pb in scope_spans.spans:
                yield _span_of(span_pb, service)


class _Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, collector: TraceCollector) -> None:
        self._collector = collector

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        self._collector.add(spans_of(request))
        return trace_service_pb2.ExportTraceServiceResponse()


class _Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        return metrics_service_pb2.ExportMetricsServiceResponse()


class _Logs(logs_service_pb2_grpc.LogsServiceServicer):
    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        return logs_service_pb2.ExportLogsServiceResponse()


def _span_of(span_pb: trace_pb2.Span, service: str) -> FinishedSpan:
    return FinishedSpan(
        trace_id=span_pb.trace_id.hex(),
        span_id=span_pb.span_id.hex(),
        parent_span_id=span_pb.parent_span_id.hex(),
        name=span_pb.name,
        service=service,
        start_ns=span_pb.start_time_unix_nano,
        end_ns=span_pb.end_time_unix_nano,
        is_error=span_pb.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        error_message=span_pb.status.message,
        attributes=_attributes(span_pb.attributes),
        linked_span_ids=tuple(link.span_id.hex() for link in span_pb.links),
    )


def _attributes(pairs: Iterable[common_pb2.KeyValue]) -> dict[str, object]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value_pb: common_pb2.AnyValue) -> object:
    match value_pb.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            return [_value(each) for each in value_pb.array_value.values]
        case "kvlist_value":
            return _attributes(value_pb.kvlist_value.values)
        case "bytes_value":
            return value_pb.bytes_value.hex()
        case kind:
            return getattr(value_pb, kind)
