"""Runs as a process of its own, for `test_generation_memory.py`: mixed requests to a service, and its memory.

Prints one JSON object: resident bytes after every hundred requests of a service that keeps nothing, and then
of one in which something of every request is kept.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import grpc
from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.generation.v1.generation_service_pb2_grpc import GenerationServiceStub
from aimass_generation.__main__ import PLAN
from aimass_serving.testing import running_service

NUM_AT_ONCE, NUM_IN_BLOCK = 8, 100
NUM_WARM_BLOCKS, NUM_BLOCKS, NUM_KEEPING_BLOCKS = 8, 10, 4
KEPT_BYTES = 5_000
"""What a request of the control leaves behind: about as much as one forgotten request with its events."""
KINDS: list[dict[str, Any]] = [
    {"text": "the river"},
    {"text": "every evening the keeper climbed the stairs " * 3, "sampling": {"temperature": 1.0, "seed": 1}},
    {"chat": {"messages": [{"role": "user", "content": "is it warm?"}]}, "output": {"logprobs": True}},
    {"text": "numbers", "beams": {"num_beams": 2}},
    {"text": "a name: ", "guidance": {"regex": "[a-z]{3,12}"}},
    {"text": "words", "sampling": {"temperature": 1.0, "seed": 2}, "num_sequences": 3},
    {"text": "lamp", "output": {"prompt_logprobs": True}},
    {"text": "bad", "stopping": {"max_new_tokens": 0}},
]


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def ask(stub: Any, number: int) -> None:
    fields = {"model": "tiny-llama", "stopping": {"max_new_tokens": 2 + number % 7}} | KINDS[
        number % len(KINDS)
    ]
    call = stub.Generate(pb.GenerateRequest(**fields))
    try:
        async for _ in call:
            if number % 11 == 0:
                return  # cancelled in the middle
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
            raise
    finally:
        call.cancel()


async def block(stub: Any) -> None:
    places = asyncio.Semaphore(NUM_AT_ONCE)

    async def one(number: int) -> None:
        async with places:
            await ask(stub, number)

    await asyncio.gather(*(one(number) for number in range(NUM_IN_BLOCK)))


async def measure(store: Path) -> dict[str, list[int]]:
    async with running_service(PLAN, store) as service, grpc.aio.insecure_channel(service.address) as channel:
        stub: Any = GenerationServiceStub(channel)
        for _ in range(NUM_WARM_BLOCKS):
            await block(stub)
        clean = [resident_bytes()]
        for _ in range(NUM_BLOCKS):
            await block(stub)
            clean.append(resident_bytes())
        kept: list[bytes] = []
        keeping = [resident_bytes()]
        for _ in range(NUM_KEEPING_BLOCKS):
            await block(stub)
            kept += [os.urandom(KEPT_BYTES) for _ in range(NUM_IN_BLOCK)]
            keeping.append(resident_bytes())
    return {"clean": clean, "keeping": keeping}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(measure(Path(sys.argv[1])))))
