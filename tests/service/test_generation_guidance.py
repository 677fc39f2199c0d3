"""Texts held to a form over a real server: random weights speak JSON, and a real model makes sense."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import pytest_asyncio
from aimass.errors import error_of
from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.generation.v1.generation_service_pb2_grpc import GenerationServiceStub
from aimass_generation.__main__ import PLAN
from aimass_serving.testing import running_service

if TYPE_CHECKING:
    from aimass.generation.v1.generation_service_pb2_grpc import GenerationServiceAsyncStub

TINY, SMOLLM2 = "tiny-llama", "smollm2-135m-instruct"
ORDER = {
    "type": "object",
    "properties": {
        "size": {"enum": ["small", "large"]},
        "count": {"type": "integer", "minimum": 1, "maximum": 20},
        "note": {"type": "string", "maxLength": 6},
    },
    "required": ["size", "count", "note"],
    "additionalProperties": False,
}
ORDER_FORM = {"json_schema": json.dumps(ORDER)}
CAPITAL = {
    "type": "object",
    "properties": {"country": {"type": "string"}, "capital": {"type": "string"}},
    "required": ["country", "capital"],
    "additionalProperties": False,
}
GREEDY = {"temperature": 0}


class Service:
    """A running service and one of its models."""

    def __init__(self, stub: GenerationServiceAsyncStub, model: str) -> None:
        self.stub = stub
        self.model = model

    async def complete(self, **fields: Any) -> pb.CompleteResponse:
        asked = {"model": self.model, "stopping": {"max_new_tokens": 160}} | fields
        return await self.stub.Complete(pb.CompleteRequest(**asked), timeout=120)

    async def streamed(self, **fields: Any) -> str:
        asked = {"model": self.model, "stopping": {"max_new_tokens": 160}} | fields
        events = self.stub.Generate(pb.GenerateRequest(**asked), timeout=120)
        return "".join([event.delta.text async for event in events])


@pytest_asyncio.fixture
async def tiny(tiny_llama_store: Path) -> AsyncIterator[Service]:
    async with (
        running_service(PLAN, tiny_llama_store) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        yield Service(GenerationServiceStub(channel), TINY)


@pytest_asyncio.fixture
async def smollm2(smollm2_store: Path) -> AsyncIterator[Service]:
    async with (
        running_service(PLAN, smollm2_store) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        yield Service(GenerationServiceStub(channel), SMOLLM2)


def is_order(text: str) -> bool:
    order = json.loads(text)
    return (
        sorted(order) == ["count", "note", "size"]
        and order["size"] in ("small", "large")
        and type(order["count"]) is int
        and 1 <= order["count"] <= 20
        and len(order["note"]) <= 6
    )


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_model_of_random_weights_gives_json_of_the_schema(tiny: Service, seed: int) -> None:
    sampling = {"temperature": 1.0, "seed": seed}
    whole = await tiny.complete(text="order", sampling=sampling, guidance=ORDER_FORM)
    assert is_order(whole.text), whole.text
    assert whole.finish.reason == pb.FINISH_REASON_EOS
    assert await tiny.streamed(text="order", sampling=sampling, guidance=ORDER_FORM) == whole.text


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"regex": "[0-9]{4}-[0-9]{2}"}, "[0-9]{4}-[0-9]{2}"),
        ({"choice": {"texts": ["yes", "no", "perhaps"]}}, "yes|no|perhaps"),
        ({"grammar": 'start: "a"~2..4 "!"'}, "a{2,4}!"),
    ],
)
async def test_greedy_text_of_random_weights_matches(tiny: Service, form: Any, pattern: str) -> None:
    whole = await tiny.complete(text="say", sampling=GREEDY, guidance=form)
    assert re.fullmatch(pattern, whole.text), whole.text
    assert await tiny.streamed(text="say", sampling=GREEDY, guidance=form) == whole.text


async def test_eight_guided_and_free_streams_say_what_they_say_alone(tiny: Service) -> None:
    forms: list[Any] = [ORDER_FORM, None, {"regex": "[a-z ]{30}"}, None] * 2
    asked = [
        {
            "text": f"line {i}",
            "guidance": form,
            "sampling": {"temperature": 1.0, "seed": i},
            "stopping": {"max_new_tokens": 60},
        }
        for i, form in enumerate(forms, start=1)
    ]
    alone = [await tiny.streamed(**fields) for fields in asked]
    assert await asyncio.gather(*(tiny.streamed(**fields) for fields in asked)) == alone


@pytest.mark.parametrize(
    ("form", "field"),
    [
        ({}, "guidance"),
        ({"json_schema": "not json"}, "guidance.json_schema"),
        ({"json_schema": '{"type": "string", "minLength": 3, "maxLength": 1}'}, "guidance.json_schema"),
        ({"json_schema": '{"type": "array", "minItems": 1, "items": {"$ref": "#"}}'}, "guidance.json_schema"),
        ({"regex": "("}, "guidance.regex"),
        ({"regex": "((a{100}){100}){100}"}, "guidance.regex"),
        ({"grammar": "start: missing"}, "guidance.grammar"),
        ({"choice": {}}, "guidance.choice.texts"),
        ({"json_object": False}, "guidance.json_object"),
    ],
)
async def test_bad_form_is_an_invalid_field_and_the_next_request_is_served(
    tiny: Service, form: Any, field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await tiny.complete(text="order", guidance=form)
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    error = error_of(failed.value, address="here")
    assert error.reason == "INVALID_FIELD"
    assert [violation.field for violation in error.violations] == [field]
    whole = await tiny.complete(text="say", guidance={"choice": {"texts": ["yes"]}})
    assert whole.text == "yes"


@pytest.mark.timeout(3600)
async def test_real_model_answers_in_the_form_it_is_held_to(smollm2: Service) -> None:
    def question(content: str) -> Any:
        return {"messages": [{"role": "user", "content": content}]}

    capital = question("What is the capital of France? Answer as JSON with the keys country and capital.")
    form, cities = {"json_schema": json.dumps(CAPITAL)}, {"texts": [" Berlin", " Madrid", " Rome"]}
    whole, streamed, choice = await asyncio.gather(
        smollm2.complete(chat=capital, sampling=GREEDY, guidance=form),
        smollm2.streamed(chat=capital, sampling=GREEDY, guidance=form),
        smollm2.complete(text="The capital of Italy is", sampling=GREEDY, guidance={"choice": cities}),
    )
    answer = json.loads(whole.text)
    assert sorted(answer) == ["capital", "country"]
    assert (answer["country"].title(), answer["capital"]) == ("France", "Paris")
    assert streamed == whole.text
    assert choice.text == " Rome"
