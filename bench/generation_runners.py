"""The contenders of the generation benchmark: the same weights, ragged prompts, greedy, as many new tokens.

A scenario is a number of streams that start together. Peers that cannot mix lengths pad on the left. Timed is
from prompts in to all tokens out; loading, conversion and (for the peers) tokenisation are not.
"""

from __future__ import annotations

import asyncio
import hashlib
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bench.measurement import Outcome
from bench.service import ServiceProcess


def digest(token_ids: Iterable[int]) -> str:
    """Return a short name of a sequence of tokens."""
    return hashlib.sha256(np.asarray(list(token_ids), np.int64).tobytes()).hexdigest()[:16]


def outcome_of(
    rows: Sequence[Sequence[int]], seconds: float, details: dict[str, float] | None = None
) -> Outcome:
    """Return the outcome of a run that gave these new tokens, one row a stream."""
    return Outcome(sum(map(len, rows)), seconds, tuple(digest(row) for row in rows), details or {})


class Served:
    """Our service in its own process, one client thread a stream, token by token over gRPC."""

    def __init__(self, *, store: str, model: str, texts: Sequence[str], new_tokens: int) -> None:
        from aimass import GenerationClient, GenerationOptions

        self._model, self._texts = model, texts
        self._service = ServiceProcess("generation", store=store, model=model)
        self._client = GenerationClient(self._service.address)
        self._options = GenerationOptions(
            temperature=0,
            repetition_penalty=1,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            wants_token_ids=True,
        )

    def run(self, scenario: str) -> Outcome:
        texts = self._texts[: int(scenario)]
        with ThreadPoolExecutor(len(texts)) as pool:
            start = time.perf_counter()
            streams = list(pool.map(self._stream, texts))
            seconds = time.perf_counter() - start
        return outcome_of(
            [ids for ids, _ in streams], seconds, _latencies(start, [times for _, times in streams])
        )

    def _stream(self, text: str) -> tuple[list[int], list[float]]:
        ids, times = list[int](), list[float]()
        with self._client.generate(text, model=self._model, options=self._options) as stream:
            for delta in stream:
                ids += delta.token_ids
                times.append(time.perf_counter())
        return ids, times

    def close(self) -> None:
        self._client.close()
        self._service.close()


def _latencies(start: float, arrivals: Sequence[Sequence[float]]) -> dict[str, float]:
    """Time to the first message of each stream, and the gaps between the later ones, as the client saw."""
    first = [times[0] - start for times in arrivals]
    gaps = [b - a for times in arrivals for a, b in pairwise(times)]
    return {
        "ttft_p50_ms": 1e3 * statistics.median(first),
        "ttft_max_ms": 1e3 * max(first),
        "gap_p50_ms": 1e3 * float(np.percentile(gaps, 50)),
        "gap_p95_ms": 1e3 * float(np.percentile(gaps, 95)),
    }


class InProcess:
    """The decoding engine of the same service, called in this process: the rest is gRPC and text."""

    def __init__(self, *, store: str, model: str, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
        from aimass_decoding.config import EngineConfig
        from aimass_decoding.engine import DecodingEngine
        from aimass_decoding.runner import geometry_of
        from aimass_serving.adaptive_session import open_adaptive_session
        from aimass_serving.compute import ComputePermit
        from aimass_serving.session import SessionConfig
        from aimass_serving.store import open_store

        self._prompts, self._new_tokens = prompts, new_tokens
        models = open_store(store)
        bundle = models.open(max((r for r in models.list() if r.name == model), key=lambda r: int(r.version)))
        session = open_adaptive_session(bundle.graph("decoder"), SessionConfig())
        geometry = geometry_of(bundle.manifest.decoder)
        self._eos_ids = frozenset(bundle.manifest.decoder.eos_token_ids)
        config = EngineConfig(max_kept_prefixes=0)  # peers compute every prompt, and so do we
        self._engine = DecodingEngine(session, geometry, config, model=model, permit=ComputePermit())
        self._engine.start()

    def run(self, scenario: str) -> Outcome:
        return asyncio.run(self._generate_all(self._prompts[: int(scenario)]))

    async def _generate_all(self, prompts: Sequence[Sequence[int]]) -> Outcome:
        start = time.perf_counter()
        rows = await asyncio.gather(*(self._generate(i, ids) for i, ids in enumerate(prompts)))
        return outcome_of(rows, time.perf_counter() - start)

    async def _generate(self, index: int, prompt: Sequence[int]) -> list[int]:
        from aimass_decoding.request import SequenceRequest

        request = SequenceRequest(
            f"bench-{index}",
            np.asarray(prompt, np.int64),
            self._new_tokens,
            min_new_tokens=self._new_tokens,
            eos_token_ids=self._eos_ids,
        )
        return [
            token for delta in [d async for d in self._engine.generate(request)] for token in delta.token_ids
        ]

    def close(self) -> None:
        self._engine.close()


class Transformers:
    """`transformers` generate on PyTorch, eager attention."""

    def __init__(
        self, *, folder: str, prompts: Sequence[Sequence[int]], new_tokens: int, num_threads: int
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(num_threads)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        self._generate = _hf_generate(model, prompts, new_tokens)

    def run(self, scenario: str) -> Outcome:
        return self._generate(int(scenario))

    def close(self) -> None:
        pass


class Optimum:
    """optimum's `ORTModelForCausalLM` on ONNX Runtime's CPU provider."""

    def __init__(
        self, *, folder: str, prompts: Sequence[Sequence[int]], new_tokens: int, num_threads: int
    ) -> None:
        import onnxruntime as ort
        from optimum.onnxruntime import ORTModelForCausalLM

        options = ort.SessionOptions()
        options.intra_op_num_threads = num_threads
        model = ORTModelForCausalLM.from_pretrained(
            folder, session_options=options, provider="CPUExecutionProvider"
        )
        self._generate = _hf_generate(model, prompts, new_tokens)

    def run(self, scenario: str) -> Outcome:
        return self._generate(int(scenario))

    def close(self) -> None:
        pass


def _hf_generate(model: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> Callable[[int], Outcome]:
    """Return a function that generates for the first n prompts in one left-padded batch."""
    import torch

    pad_id = model.generation_config.pad_token_id or 0

    def generate(num_streams: int) -> Outcome:
        rows = prompts[:num_streams]
        longest = max(map(len, rows))
        ids = torch.tensor(
            [[pad_id] * (longest - len(row)) + list(row) for row in rows]
        )  # [streams, longest]
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        start = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
                pad_token_id=pad_id,
            )
        seconds = time.perf_counter() - start
        return outcome_of(out[:, longest:].tolist(), seconds)

    return generate


class CTranslate2:
    """CTranslate2's generator, float32, batched by itself."""

    def __init__(
        self, *, folder: str, tokens: Sequence[Sequence[str]], new_tokens: int, num_threads: int
    ) -> None:
        import ctranslate2

        self._tokens, self._new_tokens = tokens, new_tokens
        self._generator = ctranslate2.Generator(
            folder, device="cpu", compute_type="float32", inter_threads=1, intra_threads=num_threads
        )

    def run(self, scenario: str) -> Outcome:
        start = time.perf_counter()
        results = self._generator.generate_batch(
            [list(row) for row in self._tokens[: int(scenario)]],
            min_length=self._new_tokens,
            max_length=self._new_tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        return outcome_of([result.sequences_ids[0] for result in results], time.perf_counter() - start)

    def close(self) -> None:
        self._generator.unload_model()


def read_tokens(folder: Path, prompts: Sequence[Sequence[int]]) -> list[list[str]]:
    """Return the prompts as the texts of their tokens, which is what CTranslate2 reads."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [[tokenizer.id_to_token(i) for i in row] for row in prompts]
