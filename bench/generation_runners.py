"""Our contenders of the generation benchmark: the service over gRPC, and its engine in this process.

Greedy, a fixed number of new tokens; timed from prompts in to all tokens out. Prompts that were kept from an
earlier run are not used: the peers compute every prompt, and so do we.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import grpc
import numpy as np
from aimass.generation.v1 import generation_service_pb2 as pb

from bench.measurement import Outcome
from bench.service import ServiceProcess
from bench.workload import Work, Workload

GENERATE = "/aimass.generation.v1.GenerationService/Generate"
CALL_DEADLINE_S = 600.0
NO_KEPT_PREFIXES = {"AIMASS_GENERATION_MAX_KEPT_PREFIXES": "0"}
NO_DRAFTS = {"AIMASS_GENERATION_MAX_DRAFT_TOKENS": "0"}
OUTSIDE_GRAPH = "outside_graph"
"""Name of the share of a run's time that the engine spends beside runs of the graph."""
Timed = tuple[list[int], list[float]]
"""New tokens of a stream, and when each message of it arrived."""


class Served:
    """Our service in its own process, one call a stream, token by token over gRPC.

    Its callers run elsewhere; here they share its cores. So the client is the least that reads every message
    of every call when it comes: one event loop, and messages are parsed when the clock has stopped.
    """

    def __init__(
        self,
        *,
        store: str,
        model: str,
        workload: Mapping[str, Any],
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._model, self._workload = model, Workload(**workload)
        every = {**NO_KEPT_PREFIXES, **(settings or {})}
        self._service = ServiceProcess("generation", store=store, model=model, settings=every)
        self._loop = asyncio.Runner()
        self._channel = self._loop.run(_connect(self._service.address))
        self._generate: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(GENERATE)

    def run(self, scenario: str) -> Outcome:
        work = self._workload.of(scenario)
        requests = [self._request(prompt, work.new_tokens) for prompt in work.prompts]
        return self._loop.run(self._run_all(work, requests))

    async def _run_all(self, work: Work, requests: Sequence[bytes]) -> Outcome:
        start = time.perf_counter()
        streams = await asyncio.gather(*map(self._receive, requests))
        seconds = time.perf_counter() - start
        return _outcome(work, start, [_timed(messages) for messages in streams], seconds)

    async def _receive(self, request: bytes) -> list[tuple[bytes, float]]:
        """Return the messages of one call as they travel, and when each came."""
        messages = list[tuple[bytes, float]]()
        call = self._generate(request, timeout=CALL_DEADLINE_S)
        async for message in call:
            messages.append((message, time.perf_counter()))
        return messages

    def _request(self, prompt: Sequence[int], new_tokens: int) -> bytes:
        request = pb.GenerateRequest(model=self._model)
        request.token_ids.ids.extend(prompt)
        request.sampling.temperature = 0
        request.sampling.repetition_penalty = 1
        request.stopping.max_new_tokens = request.stopping.min_new_tokens = new_tokens
        request.output.token_ids = True
        return request.SerializeToString()

    def close(self) -> None:
        self._loop.run(self._channel.close())
        self._loop.close()
        self._service.close()


async def _connect(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])


def _timed(messages: Sequence[tuple[bytes, float]]) -> Timed:
    """Return the tokens of a call's messages, and when each message with some came."""
    deltas = [(pb.GenerateResponse.FromString(message).delta, at_s) for message, at_s in messages]
    ids = [token_id for delta, _ in deltas for token_id in delta.token_ids]
    return ids, [at_s for delta, at_s in deltas if delta.token_ids]


class InProcess:
    """The decoding engine of the same service, called in this process: the rest is gRPC and text."""

    def __init__(
        self, *, store: str, model: str, workload: Mapping[str, Any], is_drafted: bool = True
    ) -> None:
        from aimass_decoding.config import EngineConfig
        from aimass_decoding.engine import DecodingEngine
        from aimass_decoding.runner import DECODER_ROLE, geometry_of
        from aimass_generation.loader import open_draft_session
        from aimass_serving.adaptive_session import open_adaptive_session
        from aimass_serving.compute import ComputePermit
        from aimass_serving.session import SessionConfig
        from aimass_serving.store import open_store

        self._workload = Workload(**workload)
        models = open_store(store)
        bundle = models.open(max((r for r in models.list() if r.name == model), key=lambda r: int(r.version)))
        session = open_adaptive_session(
            bundle.graph(DECODER_ROLE), SessionConfig(), precision=bundle.manifest.precision
        )
        geometry = geometry_of(bundle.manifest.decoder)
        self._eos_ids = frozenset(bundle.manifest.decoder.eos_token_ids)
        config = EngineConfig(max_kept_prefixes=0)
        if not is_drafted:
            config = replace(config, max_draft_tokens=0)
        self._engine = DecodingEngine(
            session,
            geometry,
            config,
            model=model,
            permit=ComputePermit(),
            draft_session=open_draft_session(bundle, SessionConfig()) if is_drafted else None,
        )
        self._engine.start()

    def run(self, scenario: str) -> Outcome:
        return asyncio.run(self._generate_all(self._workload.of(scenario)))

    async def _generate_all(self, work: Work) -> Outcome:
        start, graph_s = time.perf_counter(), self._engine.stats().graph_s
        streams = await asyncio.gather(
            *(self._generate(i, ids, work.new_tokens) for i, ids in enumerate(work.prompts))
        )
        seconds = time.perf_counter() - start
        outcome = _outcome(work, start, streams, seconds)
        outcome.details[OUTSIDE_GRAPH] = 1 - (self._engine.stats().graph_s - graph_s) / seconds
        return outcome

    async def _generate(self, index: int, prompt: Sequence[int], new_tokens: int) -> Timed:
        from aimass_decoding.request import SequenceRequest

        request = SequenceRequest(
            f"bench-{index}",
            np.asarray(prompt, np.int64),
            new_tokens,
            min_new_tokens=new_tokens,
            eos_token_ids=self._eos_ids,
        )
        ids, times = list[int](), list[float]()
        async for delta in self._engine.generate(request):
            ids += delta.token_ids
            times.append(time.perf_counter())
        return ids, times

    def close(self) -> None:
        self._engine.close()


def _outcome(work: Work, start: float, streams: Sequence[Timed], seconds: float) -> Outcome:
    return work.outcome(
        [ids for ids, _ in streams], seconds, _latencies(start, [times for _, times in streams])
    )


def _latencies(start: float, arrivals: Sequence[Sequence[float]]) -> dict[str, float]:
    """Time to the first message of each stream, and the gaps between the later ones, as the client saw."""
    first_ms = [1e3 * (times[0] - start) for times in arrivals]
    gaps_ms = [1e3 * (b - a) for times in arrivals for a, b in pairwise(times)] or [0.0]
    return {
        "ttft_p50_ms": float(np.median(first_ms)),
        "ttft_max_ms": max(first_ms),
        "gap_mean_ms": float(np.mean(gaps_ms)),
        "gap_p50_ms": float(np.percentile(gaps_ms, 50)),
        "gap_p95_ms": float(np.percentile(gaps_ms, 95)),
    }
