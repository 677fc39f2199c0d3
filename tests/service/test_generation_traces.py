"""One request is one connected tree of spans, also when it is cancelled or refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from aimass import ConnectionOptions, GenerationClient, GenerationOptions
from aimass.errors import InvalidRequest
from aimass.model.v1.manifest_pb2 import TASK_TEXT_GENERATION
from aimass_decoding.config import EngineConfig
from aimass_generation.testing import fake_generation_engine, fake_plan, scripted_decoder
from aimass_serving import telemetry
from aimass_serving.testing import running_service, write_bundle
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

PHASES = ["tokenize", "queue", "prefill", "decode"]


class Traces:
    """What client and server of this process have exported."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    async def tree(self) -> dict[str, ReadableSpan]:
        """Wait for client and server span, and return the spans by `client`, `server` or the phase's name."""
        kinds = {SpanKind.CLIENT: "client", SpanKind.SERVER: "server"}
        while True:
            spans = {kinds.get(span.kind, span.name): span for span in self._exporter.get_finished_spans()}
            if {"client", "server"} <= spans.keys():
                assert len(spans) == len(self._exporter.get_finished_spans())
                return spans
            await asyncio.sleep(0.005)


@pytest.fixture
def traces() -> Iterator[Traces]:
    traces = Traces()
    telemetry.use_tracer_provider(traces.provider)
    yield traces
    telemetry.shutdown_telemetry()
    traces.provider.shutdown()


@pytest_asyncio.fixture
async def client(tmp_path: Path, traces: Traces) -> AsyncIterator[GenerationClient]:
    write_bundle(tmp_path, "fake", task=TASK_TEXT_GENERATION)
    decoder = scripted_decoder({"go": "some text", "on": "x" * 8000})
    engine = fake_generation_engine(decoder, max_positions=8192, engine_config=EngineConfig(max_len=8192))
    async with running_service(fake_plan(engine), tmp_path) as service:
        options = ConnectionOptions(tracer_provider=traces.provider)
        with GenerationClient(service.address, options) as client:
            yield client


def assert_connected(spans: dict[str, ReadableSpan]) -> None:
    """Client above server above every phase, in one trace, each phase within the server's time."""
    client, server = spans["client"], spans["server"]
    assert client.parent is None
    assert server.parent is not None
    assert server.parent.span_id == client.context.span_id
    for name, span in spans.items():
        assert span.context.trace_id == client.context.trace_id
        if name not in ("client", "server"):
            assert span.parent is not None
            assert span.parent.span_id == server.context.span_id
            assert server.start_time is not None
            assert span.start_time is not None
            assert span.start_time >= server.start_time


async def test_finished_request_makes_one_tree_with_every_phase_in_order(
    client: GenerationClient, traces: Traces
) -> None:
    whole = await asyncio.to_thread(client.complete, "go", model="fake")
    assert whole.text == "some text"
    spans = await traces.tree()
    assert spans.keys() == {"client", "server", *PHASES}
    assert_connected(spans)
    starts = [spans[phase].start_time or 0 for phase in PHASES]
    assert starts == sorted(starts)


async def test_server_span_tells_model_usage_and_finish_reason_but_no_text(
    client: GenerationClient, traces: Traces
) -> None:
    await asyncio.to_thread(client.complete, "go", model="fake")
    attributes = dict((await traces.tree())["server"].attributes or {})
    expected = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.model": "fake",
        "gen_ai.usage.input_tokens": 2,
        "gen_ai.usage.output_tokens": len("some text") + 1,
        "gen_ai.response.finish_reasons": ("eos",),
    }
    assert expected.items() <= attributes.items()
    assert not any("some text" in str(value) or value == "go" for value in attributes.values())


async def test_cancelled_stream_makes_the_same_tree(client: GenerationClient, traces: Traces) -> None:
    def read_a_little() -> None:
        options = GenerationOptions(max_new_tokens=8000)
        with client.generate("on", model="fake", options=options) as stream:
            next(stream)

    await asyncio.to_thread(read_a_little)
    spans = await traces.tree()
    assert spans.keys() == {"client", "server", *PHASES}
    assert_connected(spans)
    attributes = dict(spans["server"].attributes or {})
    assert attributes["rpc.response.status_code"] == "CANCELLED"


async def test_refused_request_still_makes_a_tree(client: GenerationClient, traces: Traces) -> None:
    with pytest.raises(InvalidRequest):
        await asyncio.to_thread(
            client.complete, "go", model="fake", options=GenerationOptions(max_new_tokens=8192)
        )
    spans = await traces.tree()
    assert spans.keys() == {"client", "server", "tokenize"}
    assert_connected(spans)
    assert dict(spans["server"].attributes or {})["aimass.error.reason"] == "INVALID_FIELD"
