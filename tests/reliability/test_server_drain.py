"""How a service ends, and what callers see of it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from aimass.model.v1.model_service_pb2 import GetModelRequest
from aimass_serving.echo import PLAN, SERVICE_NAME, EchoEngine
from aimass_serving.lifecycle import RunningService
from aimass_serving.testing import running_service, write_bundle
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
Service = RunningService[EchoEngine]


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    write_bundle(tmp_path, "m")
    async with running_service(PLAN, tmp_path) as running:
        yield running


@pytest.fixture
async def channel(service: Service) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(service.address) as opened:
        yield opened


def ask(channel: grpc.aio.Channel, command: str) -> Any:
    call: Any = channel.unary_unary(f"/{SERVICE_NAME}/UnaryUnary")
    return call(GetModelRequest(model=command).SerializeToString())


async def started(service: Service, num_calls: int) -> None:
    for _ in range(1000):
        if service.num_running == num_calls:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"{service.num_running} calls in progress, expected {num_calls}")


async def test_drain_tells_health_then_refuses_then_finishes_then_stops(
    service: Service, channel: grpc.aio.Channel
) -> None:
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="aimass.model/m"))
    assert (await watch.read()).status == SERVING
    in_progress = asyncio.ensure_future(ask(channel, "sleep 1"))
    await started(service, 1)

    drain = asyncio.ensure_future(service.drain(delay_s=0.3, grace_s=10))
    assert (await watch.read()).status == NOT_SERVING
    assert await ask(channel, "served while health is being noticed")

    async def keep_asking() -> None:
        for _ in range(200):
            await ask(channel, "sleep 0.01")

    with pytest.raises(grpc.aio.AioRpcError, match="shutting down") as caught:
        await keep_asking()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not in_progress.done()
    assert await in_progress
    await drain
    assert service.registry.get("m").engine.is_closed
    watch.cancel()


async def test_drain_ends_as_soon_as_nothing_is_in_progress(service: Service) -> None:
    async with asyncio.timeout(2):
        await service.drain(delay_s=0, grace_s=60)


async def test_call_that_outlives_the_grace_is_cut(service: Service, channel: grpc.aio.Channel) -> None:
    endless = asyncio.ensure_future(ask(channel, "sleep 60"))
    await started(service, 1)
    async with asyncio.timeout(5):
        await service.drain(delay_s=0, grace_s=0.2)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await endless
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert service.registry.get("m").engine.num_running == 0


async def test_health_watcher_that_never_reads_does_not_hold_up_the_drain(
    service: Service, channel: grpc.aio.Channel
) -> None:
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
    assert (await watch.read()).status == SERVING
    async with asyncio.timeout(3):
        await service.drain(delay_s=0, grace_s=1)


async def test_drain_with_a_stream_nobody_reads_ends_after_the_grace(
    service: Service, channel: grpc.aio.Channel
) -> None:
    call: Any = channel.unary_stream(f"/{SERVICE_NAME}/UnaryStream")
    unread = call(GetModelRequest(model="count 10000000").SerializeToString())
    await started(service, 1)
    async with asyncio.timeout(5):
        await service.drain(delay_s=0, grace_s=0.2)
    unread.cancel()
    assert service.registry.get("m").engine.num_running == 0
