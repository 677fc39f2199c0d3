"""Encoder-decoders behind the face of the decoding engine: the prompt is a source, which an encoder reads
first.

What the caller asked to continue becomes the source; the sequence that is decoded begins with the model's
own start tokens and attends to what the encoder made of the source.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, aclosing
from dataclasses import replace

import numpy as np
from aimass.model.v1.manifest_pb2 import Text2TextSpec
from aimass_decoding.cross_attention import SourceEncoder, SourceMemory
from aimass_decoding.engine import DecodingEngine
from aimass_decoding.outlet import Interest
from aimass_decoding.request import SequenceRequest, TokenDelta
from aimass_decoding.stats import EngineStats
from aimass_serving.errors import DeadlineExceeded, Draining, InputTooLong, Overloaded
from aimass_serving.telemetry import emit_phase
from numpy.typing import NDArray

from aimass_generation.detokenizer import Detokenizer, TextDecoder

_RETRY_AFTER_S = 1.0


class SourceEngine:
    """Reads sources one after the other on a thread of its own, and decodes them together.

    Lives on the event loop; `max_waiting` sources may wait to be read.
    """

    def __init__(
        self,
        tokens: DecodingEngine,
        encoder: SourceEncoder,
        spec: Text2TextSpec,
        *,
        permit: AbstractContextManager[object],
        max_waiting: int,
    ) -> None:
        self._tokens = tokens
        self._encoder = encoder
        self._start_ids = np.array(spec.decoder_start_ids, np.int64)
        self._max_source_tokens = spec.max_source_tokens
        self._permit = permit
        self._max_waiting = max_waiting
        self._num_waiting = 0
        self._is_closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")

    @property
    def max_context_tokens(self) -> int:
        """Longest source and longest text together. The text's own start tokens are not counted."""
        return self._max_source_tokens + self._tokens.max_context_tokens - len(self._start_ids)

    @property
    def max_concurrent_sequences(self) -> int:
        """How many sequences advance together."""
        return self._tokens.max_concurrent_sequences

    @property
    def max_beams(self) -> int:
        """Most beams of a request."""
        return self._tokens.max_beams

    @property
    def execution_provider(self) -> str:
        """ONNX Runtime execution provider that runs the model."""
        return self._tokens.execution_provider

    async def generate(
        self, request: SequenceRequest, *, interest: Interest | None = None
    ) -> AsyncGenerator[TokenDelta, None]:
        """Read the source `request.prompt_ids` and give the text's tokens, as `DecodingEngine.generate` does.

        Raises also `InputTooLong` for a source that is too long, `Overloaded` when too many wait.
        """
        source = request.prompt_ids
        if len(source) > self._max_source_tokens:
            raise InputTooLong("prompt", num_tokens=len(source), max_tokens=self._max_source_tokens)
        memory = await self._read(source, request.deadline_s)
        begun = replace(request, prompt_ids=self._start_ids, memory=memory)
        async with aclosing(self._tokens.generate(begun, interest=interest)) as deltas:
            async for delta in deltas:
                yield delta

    def stats(self) -> EngineStats:
        """Return what the decoding engine has done so far."""
        return self._tokens.stats()

    async def drain(self) -> None:
        """Take no new sequences, and return when all have ended."""
        await self._tokens.drain()

    def close(self) -> None:
        """Stop at once. Blocking; may be called twice."""
        self._is_closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._tokens.close()

    async def _read(self, source: NDArray[np.int64], deadline_s: float | None) -> SourceMemory:
        if self._is_closed:
            raise Draining
        if self._num_waiting >= self._max_waiting:
            detail = f"{self._num_waiting} sources wait to be read, the limit"
            raise Overloaded(retry_after_s=_RETRY_AFTER_S, detail=detail)
        self._num_waiting += 1
        started_ns = time.time_ns()
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._encode, source, deadline_s)
        finally:
            self._num_waiting -= 1
            emit_phase("encode", started_ns, time.time_ns())

    def _encode(self, source: NDArray[np.int64], deadline_s: float | None) -> SourceMemory:
        if deadline_s is not None and time.monotonic() > deadline_s:
            raise DeadlineExceeded(phase="encode")
        feeds = {"input_ids": source[np.newaxis], "attention_mask": np.ones((1, len(source)), np.int64)}
        with self._permit:
            return self._encoder.encode(feeds)[0]


class WholeTextDecoder(TextDecoder):
    """Texts that stand by themselves: they do not go on from the prompt's."""

    def detokenizer(self, *, continues_text: bool = True) -> Detokenizer:
        """Return a detokenizer at the beginning of a text."""
        return super().detokenizer(continues_text=False)
