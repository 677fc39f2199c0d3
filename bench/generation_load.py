"""Text generation under an open load: Poisson arrivals at parts of the measured capacity, and at twice it.

Each call has a deadline, which the service knows; what ends after it is worth nothing. Prompts and lengths
are ragged.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import grpc
from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.generation.v1 import generation_service_pb2_grpc as pb_grpc
from tokenizers import Tokenizer

from bench import peers
from bench.generation_runners import NO_KEPT_PREFIXES
from bench.load import Call, LoadRun
from bench.load_client import MAX_CALLS, Send, add_load_options, peak_and_loads
from bench.load_report import goodput_panel, goodput_table, latency_panel, latency_table
from bench.machine import describe_machine
from bench.models import LANGUAGE_MODELS, PRECISIONS, SMOLLM2
from bench.service import ServiceProcess
from bench.study import Study
from bench.texts import prompt_ids

FEWEST_NEW_TOKENS, MOST_NEW_TOKENS = 8, 48
NUM_CALLERS = 16
"""Of the closed loop: as many as the engine has slots."""
UNIT = "tokens/s"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this part."""
    parser.add_argument("--model", choices=LANGUAGE_MODELS, default=SMOLLM2.name)
    parser.add_argument("--precision", choices=PRECISIONS, default="int8")
    add_load_options(parser)


def run(options: argparse.Namespace, *, command: str) -> Study:
    """Measure the capacity, put the loads on, and return the report."""
    model, machine = LANGUAGE_MODELS[options.model], describe_machine()
    tokenizer = Tokenizer.from_file(str(peers.causal_lm_folder(model.find()) / "tokenizer.json"))
    served_name, store = model.served_name(options.precision), str(model.store(options.precision))
    with ServiceProcess("generation", store=store, model=served_name, settings=NO_KEPT_PREFIXES) as service:
        sender = Sender(served_name, prompt_ids(tokenizer))
        peak, runs = asyncio.run(_measure(service.address, sender, options))
    first = {r.name: [c.first_s - c.due_s for c in r.calls if c.is_good and c.first_s] for r in runs}
    gaps = {r.name: [gap for c in r.calls if c.is_good for gap in c.gaps_s] for r in runs}
    tables = [
        goodput_table(runs, peak, unit=UNIT),
        latency_table("Time to the first token, of the calls that ended well", first),
        latency_table("Time between tokens, of the calls that ended well", gaps),
    ]
    panels = [
        goodput_panel(runs, peak, unit=UNIT),
        latency_panel("time to the first token", first),
        latency_panel("time between tokens", gaps),
    ]
    settings = {
        "prompt tokens": f"{min(map(len, sender.prompts))} to {max(map(len, sender.prompts))}",
        "new tokens": f"{FEWEST_NEW_TOKENS} to {MOST_NEW_TOKENS}",
        "deadline": f"{options.deadline:.1f} s",
        "seconds a load": f"{options.load_seconds:g}, or as long as {MAX_CALLS} calls take to come",
        "callers of the closed loop": NUM_CALLERS,
    }
    return Study(
        f"generation-load-{options.precision}",
        f"Text generation under load: {model.title}, {options.precision}, over gRPC",
        command,
        machine,
        settings,
        tables,
        panels,
        ["The client, asyncio over gRPC, runs on the same cores as the service"],
    )


class Sender:
    """Makes calls with ragged prompts and lengths, the same ones in every run."""

    def __init__(self, model: str, prompts: Sequence[Sequence[int]]) -> None:
        self.prompts, self._model = prompts, model

    def over(self, stub: pb_grpc.GenerationServiceAsyncStub, deadline_s: float) -> Send:
        """Return the function that makes one call."""

        async def send(index: int, due_s: float) -> Call:
            remaining_s = due_s + deadline_s - time.perf_counter()
            arrivals: list[float] = []
            stream = stub.Generate(self._request(index), timeout=max(remaining_s, 0.001))
            status = "OK"
            try:
                async for response in stream:
                    if response.WhichOneof("event") == "delta":
                        arrivals.append(time.perf_counter())  # noqa: PERF401  # kept when the stream fails
            except grpc.aio.AioRpcError as error:
                status = error.code().name
            gaps = tuple(later - earlier for earlier, later in pairwise(arrivals))
            units = self._num_new_tokens(index) if status == "OK" else 0
            return Call(due_s, time.perf_counter(), units, status, arrivals[0] if arrivals else None, gaps)

        return send

    def _request(self, index: int) -> pb.GenerateRequest:
        request = pb.GenerateRequest(model=self._model)
        request.token_ids.ids.extend(self.prompts[index % len(self.prompts)])
        request.sampling.temperature = 0
        request.sampling.repetition_penalty = 1
        request.stopping.max_new_tokens = self._num_new_tokens(index)
        request.stopping.ignore_eos = True
        request.output.token_ids = True
        return request

    @staticmethod
    def _num_new_tokens(index: int) -> int:
        return random.Random(index).randint(FEWEST_NEW_TOKENS, MOST_NEW_TOKENS)


async def _measure(
    address: str, sender: Sender, options: argparse.Namespace
) -> tuple[LoadRun, list[LoadRun]]:
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = pb_grpc.GenerationServiceStub(channel)
        return await peak_and_loads(partial(sender.over, stub), options, num_callers=NUM_CALLERS)
