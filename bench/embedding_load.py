"""Embeddings under an open load of one-text calls, and one long call beside as many short ones."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from functools import partial

import grpc
from aimass.embedding.v1 import embedding_service_pb2 as pb
from aimass.embedding.v1 import embedding_service_pb2_grpc as pb_grpc

from bench.load import Call, LoadRun
from bench.load_client import MAX_CALLS, Send, add_load_options, peak_and_loads
from bench.load_report import goodput_panel, goodput_table, latency_panel, latency_table
from bench.machine import describe_machine
from bench.models import MINILM, PRECISIONS
from bench.service import ServiceProcess
from bench.study import Study
from bench.table import Table
from bench.texts import sentences_and_reviews

NUM_CALLERS = 64
NUM_TEXTS = 1024
UNIT = "texts/s"
BULK_DEADLINE_S = 120.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this part."""
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--bulk", type=int, default=1000, help="texts of the long call; 0 leaves it out")
    add_load_options(parser)


def run(options: argparse.Namespace, *, command: str) -> Study:
    """Measure the capacity, put the loads on, and return the report."""
    machine, name = describe_machine(), MINILM.served_name(options.precision)
    texts = sentences_and_reviews(NUM_TEXTS)
    with ServiceProcess("encoder", store=str(MINILM.store(options.precision)), model=name) as service:
        peak, runs, bulk = asyncio.run(_measure(service.address, name, texts, options))
    latencies = {r.name: [c.finished_s - c.due_s for c in r.calls if c.is_good] for r in runs}
    tables = [
        goodput_table(runs, peak, unit=UNIT),
        latency_table("Latency of the calls that ended well", latencies),
    ]
    return Study(
        f"embedding-load-{options.precision}",
        f"Sentence embeddings under load: {MINILM.title}, {options.precision}, one text a call over gRPC",
        command,
        machine,
        {
            "deadline": f"{options.deadline:.2f} s",
            "seconds a load": f"{options.load_seconds:g}, or as long as {MAX_CALLS} calls take to come",
            "callers of the closed loop": NUM_CALLERS,
        },
        [*tables, bulk] if options.bulk else tables,
        [goodput_panel(runs, peak, unit=UNIT), latency_panel("latency", latencies)],
        ["The client, asyncio over gRPC, runs on the same cores as the service"],
    )


async def _measure(
    address: str, model: str, texts: Sequence[str], options: argparse.Namespace
) -> tuple[LoadRun, list[LoadRun], Table]:
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = pb_grpc.EmbeddingServiceStub(channel)
        peak, runs = await peak_and_loads(
            partial(_sender, stub, model, texts), options, num_callers=NUM_CALLERS
        )
        return peak, runs, await _bulk_table(stub, model, [*texts, *texts][: options.bulk])


def _sender(
    stub: pb_grpc.EmbeddingServiceAsyncStub, model: str, texts: Sequence[str], deadline_s: float
) -> Send:
    """Return the function that embeds one text."""

    async def send(index: int, due_s: float) -> Call:
        request = pb.EmbedRequest(model=model, texts=[texts[index % len(texts)]])
        status = "OK"
        try:
            await stub.Embed(request, timeout=max(due_s + deadline_s - time.perf_counter(), 0.001))
        except grpc.aio.AioRpcError as error:
            status = error.code().name
        return Call(due_s, time.perf_counter(), int(status == "OK"), status)

    return send


async def _bulk_table(stub: pb_grpc.EmbeddingServiceAsyncStub, model: str, texts: Sequence[str]) -> Table:
    """Embed the texts in one call, then in calls of one each, many in flight."""
    start = time.perf_counter()
    if texts:
        await stub.Embed(pb.EmbedRequest(model=model, texts=texts), timeout=BULK_DEADLINE_S)
    one_call_s = time.perf_counter() - start
    gate = asyncio.Semaphore(NUM_CALLERS)

    async def embed(text: str) -> None:
        async with gate:
            await stub.Embed(pb.EmbedRequest(model=model, texts=[text]), timeout=BULK_DEADLINE_S)

    start = time.perf_counter()
    await asyncio.gather(*(embed(text) for text in texts))
    many_calls_s = time.perf_counter() - start
    rows: list[list[str | float]] = [
        [f"one call of {len(texts)} texts", one_call_s, len(texts) / one_call_s],
        [f"{len(texts)} calls of one text, {NUM_CALLERS} in flight", many_calls_s, len(texts) / many_calls_s],
    ]
    return Table("One long call, and as many short ones", ["", "seconds", UNIT], rows)
