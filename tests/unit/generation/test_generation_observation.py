"""One generation gives one measurement, truthful about how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest
from aimass_generation.engine import GenerationEngine
from aimass_generation.request import ChatMessage, ChatPrompt, GenerationRequest, StoppingOptions, TextPrompt
from aimass_generation.testing import fake_generation_engine, scripted_decoder
from aimass_serving import telemetry
from aimass_serving.errors import InputTooLong
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader

DURATION = "gen_ai.server.request.duration"
FIRST_TOKEN = "gen_ai.server.time_to_first_token"
EACH_TOKEN = "gen_ai.server.time_per_output_token"


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    telemetry.use_meter_provider(provider)
    yield reader
    telemetry.shutdown_telemetry()
    provider.shutdown()


@pytest.fixture
def engine() -> Iterator[GenerationEngine]:
    engine = fake_generation_engine(scripted_decoder({"go": "some text"}), max_positions=64)
    yield engine
    engine.close()


def points(reader: InMemoryMetricReader) -> dict[str, HistogramDataPoint]:
    data: Any = reader.get_metrics_data()
    metrics = [
        m for resource in data.resource_metrics for scope in resource.scope_metrics for m in scope.metrics
    ]
    return {metric.name: metric.data.data_points[0] for metric in metrics}


async def test_finished_generation_is_measured_from_arrival_to_end(
    engine: GenerationEngine, reader: InMemoryMetricReader
) -> None:
    whole = await engine.complete(GenerationRequest(TextPrompt("go")))
    measured = points(reader)
    assert {DURATION, FIRST_TOKEN, EACH_TOKEN} <= measured.keys()
    assert measured[DURATION].attributes == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "aimass",
        "gen_ai.request.model": "fake",
    }
    timings = whole.finish.timings
    assert measured[FIRST_TOKEN].sum == pytest.approx(timings.time_to_first_token_ms / 1000)
    assert measured[EACH_TOKEN].sum == pytest.approx(timings.decode_ms / 1000 / len("some text"))


async def test_conversation_is_a_chat_operation(
    engine: GenerationEngine, reader: InMemoryMetricReader
) -> None:
    await engine.complete(GenerationRequest(ChatPrompt((ChatMessage("user", "hi"),))))
    attributes: Any = points(reader)[DURATION].attributes
    assert attributes["gen_ai.operation.name"] == "chat"


async def test_single_token_has_no_time_between_tokens(
    engine: GenerationEngine, reader: InMemoryMetricReader
) -> None:
    await engine.complete(GenerationRequest(TextPrompt("go"), stopping=StoppingOptions(max_new_tokens=1)))
    measured = points(reader)
    assert FIRST_TOKEN in measured
    assert EACH_TOKEN not in measured


async def test_refused_request_is_measured_with_its_reason(
    engine: GenerationEngine, reader: InMemoryMetricReader
) -> None:
    with pytest.raises(InputTooLong):
        await engine.complete(GenerationRequest(TextPrompt("x" * 64)))
    attributes: Any = points(reader)[DURATION].attributes
    assert attributes["error.type"] == "INPUT_TOO_LONG"
    assert FIRST_TOKEN not in points(reader)


async def test_abandoned_generation_is_measured_as_cancelled(
    engine: GenerationEngine, reader: InMemoryMetricReader
) -> None:
    async with aclosing(engine.generate(GenerationRequest(TextPrompt("go")))) as events:
        await anext(events)
    attributes: Any = points(reader)[DURATION].attributes
    assert attributes["error.type"] == "CANCELLED"


async def test_many_at_once_are_counted_one_by_one(
    engine: GenerationEngine, reader: InMemoryMetricReader
) -> None:
    await asyncio.gather(*(engine.complete(GenerationRequest(TextPrompt("go"))) for _ in range(5)))
    assert points(reader)[DURATION].count == 5
