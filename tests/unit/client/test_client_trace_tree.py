"""Spans become trees, and the collector knows when a trace is whole."""

from __future__ import annotations

import io
import json

import pytest
from aimass.trace_collector import PortInUse, TraceCollector, running_collector, spans_of
from aimass.trace_tree import FinishedSpan, SpanNode, print_tree, span_forest, trace_object
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

MS = 1_000_000


def span(
    span_id: str,
    parent: str = "",
    *,
    start_ms: float = 0,
    end_ms: float = 1,
    service: str = "",
    trace_id: str = "t",
    is_error: bool = False,
) -> FinishedSpan:
    return FinishedSpan(
        trace_id=trace_id,
        span_id=span_id,
        parent_span_id=parent,
        name=f"span {span_id}",
        service=service,
        start_ns=int(start_ms * MS),
        end_ns=int(end_ms * MS),
        is_error=is_error,
        attributes={"error.type": "CANCELLED"} if is_error else {},
    )


REQUEST = [
    span("decode", "server", start_ms=30, end_ms=100, service="generation"),
    span("client", end_ms=120.5, service="cli"),
    span("queue", "server", start_ms=10, end_ms=12, service="generation"),
    span("server", "client", start_ms=5, end_ms=110, service="generation"),
]


def printed(root: SpanNode) -> list[str]:
    out = io.StringIO()
    print_tree(root, file=out)
    return out.getvalue().splitlines()


def all_spans(nodes: object) -> list[str]:
    return [s for node in nodes for s in [node.span.span_id, *all_spans(node.children)]]  # type: ignore[attr-defined]


def test_a_request_is_one_tree_in_the_order_of_its_phases() -> None:
    (root,) = span_forest(REQUEST)

    assert printed(root) == [
        "span client  120.5 ms  cli",
        "└── span server  105.0 ms  +5.0  generation",
        "    ├── span queue  2.0 ms  +10.0",
        "    └── span decode  70.0 ms  +30.0",
    ]


def test_an_error_shows_in_the_tree() -> None:
    (root,) = span_forest([span("a", is_error=True)])

    assert printed(root) == ["span a  1.0 ms  CANCELLED"]


def test_square_brackets_in_a_name_are_shown_as_they_are() -> None:
    odd = FinishedSpan(trace_id="t", span_id="a", name="read [bold]x[/]", start_ns=0, end_ns=MS)

    assert printed(span_forest([odd])[0]) == ["read [bold]x[/]  1.0 ms"]


@given(st.permutations(REQUEST))
def test_the_order_of_arrival_does_not_matter(spans: list[FinishedSpan]) -> None:
    assert span_forest(spans) == span_forest(REQUEST)


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(-1, 15)), max_size=16))
def test_no_span_is_lost_or_doubled(edges: list[tuple[int, int]]) -> None:
    """Parents are earlier spans or absent ones: a span cannot start before its parent exists."""
    spans = {
        str(child): span(str(child), str(parent) if parent < child else "gone") for child, parent in edges
    }

    assert sorted(all_spans(span_forest(spans.values()))) == sorted(spans)


def test_a_trace_is_one_json_object() -> None:
    trace = json.loads(json.dumps(trace_object(REQUEST)))

    assert trace["trace_id"] == "t"
    assert trace["duration_ms"] == 120.5
    assert [s["span_id"] for s in trace["spans"]] == ["client", "server", "queue", "decode"]
    assert (trace["spans"][1]["start_ms"], trace["spans"][1]["parent_span_id"]) == (5.0, "client")


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def collector(clock: Clock) -> TraceCollector:
    return TraceCollector(quiet_s=1, orphan_s=10, clock=clock)


def test_a_trace_is_given_once_after_a_quiet_time(collector: TraceCollector, clock: Clock) -> None:
    collector.add(REQUEST[:2])
    clock.now_s = 0.5
    assert collector.take_finished() == ()
    collector.add(REQUEST[2:])
    clock.now_s = 1.25
    assert collector.take_finished() == ()
    clock.now_s = 1.5

    assert collector.take_finished() == (tuple(REQUEST),)
    assert collector.take_finished() == ()


def test_a_trace_without_its_first_span_is_waited_for_longer(collector: TraceCollector, clock: Clock) -> None:
    collector.add([span("b", "never came")])
    clock.now_s = 9.9
    assert collector.take_finished() == ()
    clock.now_s = 10

    assert len(collector.take_finished()) == 1


def test_traces_are_kept_apart(collector: TraceCollector, clock: Clock) -> None:
    collector.add([span("a", trace_id="one"), span("a", trace_id="two")])
    clock.now_s = 1

    assert [[s.trace_id for s in trace] for trace in collector.take_finished()] == [["one"], ["two"]]


def test_taking_all_does_not_wait(collector: TraceCollector) -> None:
    collector.add(REQUEST)

    assert collector.take_all() == (tuple(REQUEST),)
    assert collector.take_all() == ()


def test_otlp_messages_are_read() -> None:
    request = trace_service_pb2.ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    resource_spans.resource.attributes.add(
        key="service.name", value=common_pb2.AnyValue(string_value="generation")
    )
    sent = resource_spans.scope_spans.add().spans.add(
        trace_id=b"\x01" * 16,
        span_id=b"\x02" * 8,
        parent_span_id=b"\x03" * 8,
        name="decode",
        start_time_unix_nano=5,
        end_time_unix_nano=MS + 5,
    )
    sent.status.code = trace_pb2.Status.STATUS_CODE_ERROR
    sent.status.message = "words"
    sent.attributes.add(key="steps", value=common_pb2.AnyValue(int_value=7))
    sent.attributes.add(
        key="ids",
        value=common_pb2.AnyValue(
            array_value=common_pb2.ArrayValue(values=[common_pb2.AnyValue(string_value="a")])
        ),
    )
    sent.links.add(span_id=b"\x04" * 8)

    (read,) = spans_of(request)

    assert read == FinishedSpan(
        trace_id="01" * 16,
        span_id="02" * 8,
        parent_span_id="03" * 8,
        name="decode",
        service="generation",
        start_ns=5,
        end_ns=MS + 5,
        is_error=True,
        error_message="words",
        attributes={"steps": 7, "ids": ["a"]},
        linked_span_ids=("04" * 8,),
    )
    assert read.duration_ms == 1.0


def test_a_port_that_is_taken_is_an_error_of_its_own() -> None:
    with (
        running_collector(TraceCollector(), port=0) as port,
        pytest.raises(PortInUse, match=str(port)),
        running_collector(TraceCollector(), port=port),
    ):
        pass
