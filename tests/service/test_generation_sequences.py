"""Several sequences of a prompt, shared prompts and the newer sampling options, over a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aimass
import grpc
import pytest
import pytest_asyncio
from aimass.errors import error_of
from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.generation.v1.generation_service_pb2_grpc import GenerationServiceStub
from aimass_decoding.config import EngineConfig
from aimass_generation.__main__ import PLAN
from aimass_generation.engine import GenerationEngine
from aimass_serving.testing import running_service

if TYPE_CHECKING:
    from aimass.generation.v1.generation_service_pb2_grpc import GenerationServiceAsyncStub

TINY = "tiny-llama"
CHUNK = 8
SAMPLED = {"temperature": 1.0, "seed": 11}
PROMPT = "a small model reads the river again and again"


class Service:
    """A running service on a real graph, and its engine."""

    def __init__(self, address: str, stub: GenerationServiceAsyncStub, engine: GenerationEngine) -> None:
        self.address = address
        self.stub = stub
        self.engine = engine

    async def complete(self, **fields: Any) -> pb.CompleteResponse:
        asked = {"model": TINY, "text": PROMPT, "stopping": {"max_new_tokens": 16}} | fields
        return await self.stub.Complete(pb.CompleteRequest(**asked), timeout=60)

    async def stream(self, **fields: Any) -> list[pb.GenerateResponse]:
        asked = {"model": TINY, "text": PROMPT, "stopping": {"max_new_tokens": 16}} | fields
        return [event async for event in self.stub.Generate(pb.GenerateRequest(**asked), timeout=60)]


@pytest_asyncio.fixture
async def service(tiny_llama_store: Path) -> AsyncIterator[Service]:
    config = EngineConfig(max_prefill_tokens_per_step=CHUNK)
    async with (
        running_service(PLAN, tiny_llama_store, extra=[config]) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        yield Service(running.address, GenerationServiceStub(channel), running.registry.get(TINY).engine)


async def test_several_sequences_are_those_of_the_following_seeds(service: Service) -> None:
    whole = await service.complete(sampling=SAMPLED, num_sequences=3)
    texts = [whole.text, *(further.text for further in whole.further)]
    for index, text in enumerate(texts):
        alone = await service.complete(sampling=SAMPLED | {"seed": 11 + index}, cache_salt=f"{index}")
        assert alone.text == text
    assert len(set(texts)) == 3


async def test_streams_of_several_sequences_carry_their_index_and_each_ends_once(service: Service) -> None:
    fields: dict[str, Any] = {"sampling": SAMPLED, "num_sequences": 3, "output": {"token_ids": True}}
    events = await service.stream(**fields)
    whole = await service.complete(**fields)
    texts, finishes = ["", "", ""], []
    for event in events:
        texts[event.delta.sequence_index] += event.delta.text
        if event.WhichOneof("event") == "finish":
            finishes.append(event.finish.sequence_index)
    assert texts == [whole.text, *(further.text for further in whole.further)]
    assert sorted(finishes) == [0, 1, 2]
    assert [event.WhichOneof("event") for event in events].count("prompt_info") == 1
    assert events[-1].WhichOneof("event") == "finish"


async def test_a_stop_string_ends_its_own_sequence_only(service: Service) -> None:
    plain = await service.complete(sampling=SAMPLED, num_sequences=2)
    stop = next(char for char in plain.text if char not in plain.further[0].text)
    stopping = {"max_new_tokens": 16, "stop_strings": [stop]}
    stopped = await service.complete(sampling=SAMPLED, num_sequences=2, stopping=stopping)
    assert stopped.finish.stop_string == stop
    assert stopped.text == plain.text[: plain.text.index(stop)]
    assert stopped.further[0].text == plain.further[0].text
    await service.engine.drain()
    assert service.engine.stats().num_slots_taken == 0


async def test_prompts_that_start_alike_say_how_much_was_reused_and_give_the_same_text(
    service: Service,
) -> None:
    first = await service.complete()
    assert first.finish.usage.cached_input_tokens == 0
    again = await service.complete()
    assert again.finish.usage.cached_input_tokens == again.finish.usage.input_tokens
    assert again.text == first.text
    longer = await service.complete(text=f"{PROMPT} once more")
    elsewhere = await service.complete(text=f"{PROMPT} once more", cache_salt="other tenant")
    reused = longer.finish.usage.cached_input_tokens
    assert reused > 0
    assert reused % CHUNK == 0
    assert elsewhere.finish.usage.cached_input_tokens == 0
    assert elsewhere.text == longer.text


@pytest.mark.parametrize(
    "sampling",
    [
        {"typical_p": 0.3},
        {"frequency_penalty": 2.0},
        {"presence_penalty": 2.0},
        {"logit_bias": {65: 100.0}},
        {"allowed_token_ids": list(range(60, 70))},
    ],
)
async def test_each_option_changes_the_text(service: Service, sampling: dict[str, Any]) -> None:
    stopping = {"max_new_tokens": 64, "ignore_eos": True}
    how = {"temperature": 1.3, "seed": 5}
    plain = await service.complete(sampling=how, stopping=stopping)
    assert (await service.complete(sampling=how | sampling, stopping=stopping)).text != plain.text


async def test_only_allowed_tokens_are_generated(service: Service) -> None:
    allowed = [65, 70, 75]
    whole = await service.complete(
        sampling=SAMPLED | {"allowed_token_ids": allowed},
        stopping={"max_new_tokens": 20, "ignore_eos": True},
        output={"token_ids": True},
    )
    assert set(whole.token_ids) <= set(allowed)
    assert len(whole.token_ids) == 20


@pytest.mark.parametrize(
    ("fields", "field_name"),
    [
        ({"num_sequences": 2}, "num_sequences"),
        ({"num_sequences": 17, "sampling": SAMPLED}, "num_sequences"),
        ({"num_sequences": -1, "sampling": SAMPLED}, "num_sequences"),
        ({"cache_salt": "s" * 257}, "cache_salt"),
        ({"sampling": {"typical_p": 0.0}}, "sampling.typical_p"),
        ({"sampling": {"frequency_penalty": 2.5}}, "sampling.frequency_penalty"),
        ({"sampling": {"presence_penalty": float("nan")}}, "sampling.presence_penalty"),
        ({"sampling": {"logit_bias": {3: 101.0}}}, "sampling.logit_bias[3]"),
        ({"sampling": {"logit_bias": {99999: 1.0}}}, "sampling.logit_bias[99999]"),
        ({"sampling": {"allowed_token_ids": [1, -1]}}, "sampling.allowed_token_ids[1]"),
    ],
)
async def test_bad_values_name_their_field(service: Service, fields: dict[str, Any], field_name: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await service.complete(**fields)
    error = error_of(failed.value, address="here")
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in error.violations] == [field_name]


async def test_the_python_client_tells_the_sequences_apart(service: Service) -> None:
    def ask() -> tuple[list[str], list[str]]:
        options = aimass.GenerationOptions(temperature=1.0, seed=11, max_new_tokens=16, num_sequences=2)
        with aimass.GenerationClient(service.address) as client:
            whole = client.complete(PROMPT, model=TINY, options=options)
            with client.generate(PROMPT, model=TINY, options=options) as stream:
                for _ in stream:
                    pass
                assert stream.finish_of(1).sequence_index == 1
                streamed = [stream.text_of(0), stream.text_of(1)]
        return [whole.text, *(further.text for further in whole.further)], streamed

    whole, streamed = await asyncio.to_thread(ask)
    assert whole == streamed
    assert len(set(whole)) == 2
