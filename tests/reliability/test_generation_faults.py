"""Faults and crowds: nothing is lost, no slot leaks, and the others' text does not change."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from aimass.errors import error_of
from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.generation.v1.generation_service_pb2_grpc import GenerationServiceStub
from aimass.model.v1.manifest_pb2 import TASK_TEXT_GENERATION
from aimass_decoding.config import EngineConfig
from aimass_decoding.testing import FakeDecoder, hashed_logits
from aimass_generation.engine import GenerationEngine
from aimass_generation.testing import VOCAB_SIZE, fake_generation_engine, fake_plan
from aimass_serving.testing import running_service, write_bundle
from numpy.typing import NDArray

if TYPE_CHECKING:
    from aimass.generation.v1.generation_service_pb2_grpc import GenerationServiceAsyncStub

MODEL = "fake"
BROKEN = ord("!")
"""A token after which the model gives no numbers."""


class Service:
    """A running service on a decoder whose text depends on every token before it."""

    def __init__(self, stub: GenerationServiceAsyncStub, engine: GenerationEngine) -> None:
        self.stub = stub
        self.engine = engine

    def generate(self, prompt: str, **stopping: Any) -> Any:
        fields: Any = {"stopping": {"ignore_eos": True, **stopping}}
        return self.stub.Generate(pb.GenerateRequest(model=MODEL, text=prompt, **fields), timeout=60)

    async def text(self, prompt: str, **stopping: Any) -> str:
        fields: Any = {"stopping": {"ignore_eos": True, **stopping}}
        request = pb.CompleteRequest(model=MODEL, text=prompt, **fields)
        return (await self.stub.Complete(request, timeout=60)).text

    async def becomes_idle(self) -> None:
        while self.engine.stats().num_slots_taken or self.engine.stats().num_waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@pytest_asyncio.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    write_bundle(tmp_path, MODEL, task=TASK_TEXT_GENERATION)
    whole = hashed_logits(VOCAB_SIZE)

    def logits_of(tokens: tuple[int, ...]) -> NDArray[np.float32]:
        return np.full(VOCAB_SIZE, np.nan, np.float32) if BROKEN in tokens[:1] else whole(tokens)

    engine = fake_generation_engine(
        FakeDecoder(logits_of), max_positions=512, engine_config=EngineConfig(max_len=512, max_slots=4)
    )
    async with (
        running_service(fake_plan(engine), tmp_path) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        yield Service(GenerationServiceStub(channel), engine)


async def test_clients_that_come_and_go_at_random_change_nobody_elses_text(service: Service) -> None:
    """Two hundred calls on four slots; most are cancelled at some point, or run into a deadline."""
    moods = random.Random(0)
    alone = {n: await service.text(f"steady {n}", max_new_tokens=60) for n in range(6)}

    async def restless(number: int) -> None:
        call = service.generate(f"restless {number}", max_new_tokens=moods.randrange(1, 200))
        num_read = moods.randrange(0, 30)
        try:
            for _ in range(num_read):
                if await call.read() is grpc.aio.EOF:
                    break
        finally:
            call.cancel()

    async def steady(number: int) -> tuple[int, str]:
        return number, await service.text(f"steady {number}", max_new_tokens=60)

    crowd = [asyncio.create_task(restless(number)) for number in range(200)]
    texts = await asyncio.gather(*(steady(number) for number in alone for _ in range(3)))
    await asyncio.gather(*crowd, return_exceptions=True)
    assert all(text == alone[number] for number, text in texts)
    await service.becomes_idle()
    stats = service.engine.stats()
    ended = sum(stats.num_finished.values()) + stats.num_cancelled + stats.num_refused + stats.num_expired
    assert ended == stats.num_submitted
    assert stats.num_cancelled > 20
    assert (await service.text("steady 0", max_new_tokens=60)) == alone[0]


async def test_model_that_gives_no_numbers_fails_its_own_request_only(service: Service) -> None:
    alone = await service.text("fine", max_new_tokens=80)
    other = asyncio.create_task(service.text("fine", max_new_tokens=80))
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await service.text("! broken", max_new_tokens=8)
    refused = error_of(failed.value, address="here")
    assert (refused.code, refused.reason) == (grpc.StatusCode.INTERNAL, "MODEL_FAILED")
    assert await other == alone
    await service.becomes_idle()


async def test_every_deadline_is_kept_and_every_slot_comes_back(service: Service) -> None:
    calls = [
        service.stub.Complete(
            pb.CompleteRequest(model=MODEL, text=f"late {n}", stopping=_endless()), timeout=0.02 * (n % 5 + 1)
        )
        for n in range(40)
    ]
    results: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
    codes = {result.code() for result in results if isinstance(result, grpc.aio.AioRpcError)}
    assert grpc.StatusCode.DEADLINE_EXCEEDED in codes
    assert codes <= {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
    await service.becomes_idle()
    assert await service.text("after", max_new_tokens=5)


def _endless() -> Any:
    return {"ignore_eos": True, "max_new_tokens": 500}
