"""Bad requests and crowds over a real server: typed errors, nothing lost, and the others' text as it was."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from aimass.errors import error_of
from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.generation.v1.generation_service_pb2_grpc import GenerationServiceStub
from aimass.model.v1.manifest_pb2 import TASK_TEXT_GENERATION
from aimass_decoding.config import EngineConfig
from aimass_decoding.testing import FakeDecoder, hashed_logits
from aimass_generation.__main__ import PLAN
from aimass_generation.engine import GenerationEngine
from aimass_generation.testing import VOCAB_SIZE, fake_generation_engine, fake_plan
from aimass_serving.testing import running_service, write_bundle

if TYPE_CHECKING:
    from aimass.generation.v1.generation_service_pb2_grpc import GenerationServiceAsyncStub

NUM_CLIENTS, NUM_AT_ONCE = 500, 50
UNSATISFIABLE = '{"allOf": [{"type": "string"}, {"type": "integer"}]}'
BAD: dict[str, dict[str, Any]] = {
    "guidance.json_schema": {"guidance": {"json_schema": UNSATISFIABLE}},
    "guidance.regex": {"guidance": {"regex": "((a{100}){100}){100}"}},
    "stopping.stop_strings": {"stopping": {"stop_strings": [f"stop {n}" for n in range(100)]}},
    "stopping.max_new_tokens": {"stopping": {"max_new_tokens": 64}},
    "text": {"text": "lamp " * 500},
    "beams.num_beams": {"beams": {"num_beams": 99}},
    "chat.tools[0]": {"chat": {"messages": [{"role": "user", "content": "a"}], "tools": ["no object"]}},
}


def asked(model: str, **fields: Any) -> pb.CompleteRequest:
    prompt = {} if "text" in fields or "chat" in fields or "token_ids" in fields else {"text": "the old mill"}
    return pb.CompleteRequest(**({"model": model} | prompt | fields))


async def read_some(call: Any, num_events: int | None) -> str:
    """Read so many events, None for all, and go away; return what became of the call."""
    num_read = 0
    try:
        while num_events is None or num_read < num_events:
            if await call.read() is grpc.aio.EOF:
                return "whole"
            num_read += 1
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    finally:
        call.cancel()
    return "gave up"


async def becomes_idle(engine: GenerationEngine) -> None:
    async with asyncio.timeout(30):
        while engine.stats().num_slots_taken or engine.stats().num_waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_bad_requests_are_named_and_change_nobody_elses_text(tiny_llama_store: Path) -> None:
    config = EngineConfig(max_len=64, max_slots=3)
    async with (
        running_service(PLAN, tiny_llama_store, extra=[config]) as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        stub: GenerationServiceAsyncStub = GenerationServiceStub(channel)
        steady = asked("tiny-llama", stopping={"max_new_tokens": 40, "ignore_eos": True})
        alone = (await stub.Complete(steady)).text

        async def refused(fields: dict[str, Any]) -> list[str]:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Complete(asked("tiny-llama", **fields), timeout=60)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            return [v.field for v in error_of(caught.value, address=service.address).violations]

        async def text() -> str:
            return (await stub.Complete(steady)).text

        beside = [asyncio.create_task(text()) for _ in range(4)]
        named = await asyncio.gather(*(refused(fields) for fields in BAD.values()))
        assert named == [[field] for field in BAD]
        assert {await task for task in beside} == {alone}
        await becomes_idle(service.registry.get("tiny-llama").engine)


async def test_a_prompt_of_special_tokens_and_a_full_context_are_answers(tiny_llama_store: Path) -> None:
    async with (
        running_service(PLAN, tiny_llama_store, extra=[EngineConfig(max_len=64)]) as service,
        grpc.aio.insecure_channel(service.address) as channel,
    ):
        stub: GenerationServiceAsyncStub = GenerationServiceStub(channel)
        special = "<|im_start|><|im_start|><|endoftext|><|im_end|>"
        ids = (await stub.Tokenize(pb.TokenizeRequest(model="tiny-llama", text=special))).token_ids
        assert max(ids) <= 2  # nothing else
        for prompt in ({"text": special}, {"token_ids": {"ids": list(ids)}}):
            answer = await stub.Complete(asked("tiny-llama", **prompt, stopping={"ignore_eos": True}))
            # No bound was given: the text goes on until the context is full, and says so.
            assert answer.finish.reason == pb.FINISH_REASON_CONTEXT_FULL
            usage = answer.finish.usage
            assert usage.input_tokens + usage.output_tokens == 64
            assert usage.input_tokens == len(ids)


async def test_five_hundred_clients_that_connect_and_cancel_at_random_leave_nothing_behind(
    tmp_path: Path,
) -> None:
    """Each with a connection of its own; most go away before, while, or after their text is written."""
    write_bundle(tmp_path, "fake", task=TASK_TEXT_GENERATION)
    config = EngineConfig(max_len=256, max_slots=4)
    engine = fake_generation_engine(
        FakeDecoder(hashed_logits(VOCAB_SIZE)), max_positions=256, engine_config=config
    )
    chance, at_once, outcomes = random.Random(4), asyncio.Semaphore(NUM_AT_ONCE), Counter[str]()
    async with running_service(fake_plan(engine), tmp_path) as service:
        own: Any = (("grpc.use_local_subchannel_pool", 1),)

        async def text(stub: GenerationServiceAsyncStub, number: int) -> str:
            stopping = {"max_new_tokens": 30, "ignore_eos": True}
            return (await stub.Complete(asked("fake", text=f"steady {number}", stopping=stopping))).text

        async def restless(number: int) -> None:
            async with at_once, grpc.aio.insecure_channel(service.address, options=own) as channel:
                stub: GenerationServiceAsyncStub = GenerationServiceStub(channel)
                fields: Any = {"stopping": {"max_new_tokens": 200, "ignore_eos": True}}
                call: Any = stub.Generate(
                    pb.GenerateRequest(model="fake", text=f"restless {number}", **fields)
                )
                outcomes[await read_some(call, chance.choice((0, 1, 2, 4, None)))] += 1

        async with grpc.aio.insecure_channel(service.address) as channel:
            stub: GenerationServiceAsyncStub = GenerationServiceStub(channel)
            alone = [await text(stub, number) for number in range(5)]
            storm = [asyncio.create_task(restless(number)) for number in range(NUM_CLIENTS)]
            for _ in range(3):
                assert await asyncio.gather(*(text(stub, number) for number in range(5))) == alone
            await asyncio.gather(*storm)
            await becomes_idle(engine)
            assert [await text(stub, number) for number in range(5)] == alone
        stats = engine.stats()
    assert outcomes.total() == NUM_CLIENTS
    assert set(outcomes) == {"whole", "gave up"}
    assert outcomes["gave up"] > 100
    assert outcomes["whole"] > 20
    ended = sum(stats.num_finished.values()) + stats.num_cancelled + stats.num_refused
    assert (ended, stats.num_failed, stats.num_expired) == (stats.num_submitted, 0, 0)
    assert stats.num_cancelled == stats.release_ms["count"] > 20
