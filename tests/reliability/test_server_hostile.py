"""Peers that do not speak the protocol, or stop speaking it, harm nobody else."""

import asyncio
import os
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from aimass.model.v1.model_service_pb2 import GetModelRequest
from aimass_serving.echo import PLAN, SERVICE_NAME, EchoEngine
from aimass_serving.lifecycle import RunningService
from aimass_serving.testing import running_service, write_bundle

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
EMPTY_SETTINGS = struct.pack("!HBBBI", 0, 0, 4, 0, 0)  # 24-bit length, type SETTINGS, no flags, stream 0
HTTP2_HELLO = HTTP2_PREFACE + EMPTY_SETTINGS


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[RunningService[EchoEngine]]:
    write_bundle(tmp_path, "m")
    async with running_service(PLAN, tmp_path, keepalive_time_s=0.3, keepalive_timeout_s=0.3) as running:
        yield running


async def still_serves(service: RunningService[EchoEngine]) -> bool:
    async with grpc.aio.insecure_channel(service.address) as channel:
        call: Any = channel.unary_unary(f"/{SERVICE_NAME}/UnaryUnary")
        return bool(await call(GetModelRequest(model="hi").SerializeToString(), timeout=10))


@pytest.mark.parametrize(
    "noise",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        os.urandom(4096),
        HTTP2_PREFACE + b"\xff" * 4096,
        HTTP2_HELLO + struct.pack("!HBBBI", 0xFFFF, 0xFF, 1, 0x25, 1) + bytes(1000),
    ],
    ids=["nothing", "http1", "noise", "noise-after-preface", "oversized-frame"],
)
async def test_peer_that_speaks_something_else_is_dropped(
    service: RunningService[EchoEngine], noise: bytes
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(noise)
    await writer.drain()
    assert await still_serves(service)
    writer.close()
    del reader


async def test_peer_that_never_answers_pings_is_closed(service: RunningService[EchoEngine]) -> None:
    """Half-open connections: the socket is open, nobody is there any more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(HTTP2_HELLO)
    async with asyncio.timeout(10):
        while await reader.read(4096):
            pass
    writer.close()


async def test_silent_peers_do_not_keep_others_out(service: RunningService[EchoEngine]) -> None:
    silent = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(50)]
    assert await still_serves(service)
    for _, writer in silent:
        writer.close()


async def test_peer_that_vanishes_in_the_middle_of_a_call_frees_its_place(
    service: RunningService[EchoEngine],
) -> None:
    channel = grpc.aio.insecure_channel(service.address)
    call: Any = channel.unary_unary(f"/{SERVICE_NAME}/UnaryUnary")
    pending = asyncio.ensure_future(call(GetModelRequest(model="sleep 60").SerializeToString()))
    engine = service.registry.get("m").engine
    for _ in range(1000):
        if engine.num_running:
            break
        await asyncio.sleep(0.005)
    assert engine.num_running == 1
    await channel.close(grace=None)
    await asyncio.gather(pending, return_exceptions=True)
    for _ in range(1000):
        if not engine.num_running:
            break
        await asyncio.sleep(0.005)
    assert engine.num_running == 0
