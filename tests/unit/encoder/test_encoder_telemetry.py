"""Phases of a call are children of its span, cancelled or not; shared batches are linked to their calls."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from aimass_encoder.engine import EncoderEngine
from aimass_encoder.request import EmbedRequest
from aimass_encoder.testing import FakeEncoderGraph, fake_engine
from aimass_serving.telemetry import shutdown_telemetry, use_tracer_provider
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext


@pytest.fixture
def provider() -> Iterator[TracerProvider]:
    provider = TracerProvider()
    use_tracer_provider(provider)
    yield provider
    shutdown_telemetry()
    provider.shutdown()


@pytest.fixture
def spans(provider: TracerProvider) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


@pytest.fixture
def graph() -> FakeEncoderGraph:
    return FakeEncoderGraph()


@pytest.fixture
def engine(graph: FakeEncoderGraph) -> Iterator[EncoderEngine]:
    engine = fake_engine(graph)
    yield engine
    graph.open()
    engine.close()


async def embed_in_span(provider: TracerProvider, engine: EncoderEngine, *texts: str) -> SpanContext:
    with provider.get_tracer("test").start_as_current_span("call") as span:
        await engine.embed(EmbedRequest(texts))
    return span.get_span_context()


def children(spans: InMemorySpanExporter, parent: SpanContext) -> dict[str, ReadableSpan]:
    return {
        span.name: span
        for span in spans.get_finished_spans()
        if span.parent and span.parent.span_id == parent.span_id
    }


async def test_phases_are_children_of_the_call_and_follow_one_another(
    provider: TracerProvider, spans: InMemorySpanExporter, engine: EncoderEngine
) -> None:
    phases = children(spans, await embed_in_span(provider, engine, "a b", "c"))
    assert list(phases) == ["tokenize", "queue", "batch"]
    ends = [span.end_time or 0 for span in phases.values()]
    assert ends == sorted(ends)
    assert dict(phases["batch"].attributes or {}) == {"aimass.num_texts": 2, "aimass.num_batches": 1}


async def test_a_cancelled_call_records_its_phases_up_to_the_cancellation(
    provider: TracerProvider, spans: InMemorySpanExporter, engine: EncoderEngine, graph: FakeEncoderGraph
) -> None:
    graph.hold()
    call = asyncio.create_task(embed_in_span(provider, engine, "a b"))
    while not graph.shapes:  # noqa: ASYNC110 - the condition is another thread's
        await asyncio.sleep(0.001)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    (root,) = (span for span in spans.get_finished_spans() if span.name == "call")
    assert root.context is not None
    assert list(children(spans, root.context)) == ["tokenize", "queue", "batch"]


async def test_a_batch_that_calls_share_is_linked_to_all_of_them(
    provider: TracerProvider, spans: InMemorySpanExporter, engine: EncoderEngine, graph: FakeEncoderGraph
) -> None:
    graph.hold()
    first = asyncio.create_task(engine.embed(EmbedRequest(["first"])))
    while not graph.shapes:  # noqa: ASYNC110 - the condition is another thread's
        await asyncio.sleep(0.001)
    calls = [asyncio.create_task(embed_in_span(provider, engine, f"a {word}")) for word in "bcd"]
    while engine.queued_tokens < 12:  # noqa: ASYNC110 - the condition is another thread's
        await asyncio.sleep(0.001)
    graph.open()
    parents = await asyncio.gather(*calls)
    await first
    await asyncio.to_thread(engine.close)  # the span is recorded after the results are handed over
    (batch,) = (span for span in spans.get_finished_spans() if span.name == "encoder.batch")
    assert {link.context.span_id for link in batch.links} == {parent.span_id for parent in parents}
    assert dict(batch.attributes or {})["aimass.num_padded_tokens"] == 12
