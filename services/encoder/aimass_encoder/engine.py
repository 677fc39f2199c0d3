"""Texts in, vectors out: checks and tokenises texts, has them encoded, and finishes the vectors.

Must not know the wire. One bad text fails its own result; what concerns the whole call is raised.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import numpy as np
from aimass.model.v1.model_service_pb2 import ModelLimits
from aimass_serving.errors import AimassError, InputTooLong, InvalidField
from aimass_serving.telemetry import GenAiMeasurement, emit_phase, record_gen_ai
from numpy.typing import NDArray

from aimass_encoder.config import EncoderConfig
from aimass_encoder.head import PoolingHead
from aimass_encoder.pipeline import BatchPipeline, EncodeTimes, PipelineStats
from aimass_encoder.pooling import l2_normalize
from aimass_encoder.request import (
    EmbeddedText,
    EmbedOptions,
    EmbedReply,
    EmbedRequest,
    PhaseTimings,
    Truncation,
)
from aimass_encoder.runner import EncoderRunner
from aimass_encoder.spec import EmbeddingSpec
from aimass_encoder.tokenization import TokenizedText, Tokenizer, TokenizerPool

A = TypeVar("A")
B = TypeVar("B")

_NS_PER_MS = 1e6


class EncoderEngine:
    """One embedding model. Lives on the event loop; tokenising and computing run in threads of its own."""

    def __init__(
        self,
        runner: EncoderRunner,
        tokenizer: Tokenizer,
        spec: EmbeddingSpec,
        *,
        model: str,
        config: EncoderConfig,
        permit: AbstractContextManager[None],
    ) -> None:
        self._spec = spec
        self._config = config
        self._model = model
        self._execution_provider = runner.execution_provider
        self._head = PoolingHead(spec.pooling, model)
        self._tokenizers = TokenizerPool(
            tokenizer, num_threads=config.num_tokenizer_threads, max_waiting_chars=config.max_tokenizing_chars
        )
        limits = config.batch_limits(runner.execution_provider, max_tokens=spec.max_tokens)
        self._pipeline = BatchPipeline(runner, limits, model=model, permit=permit)

    @property
    def limits(self) -> ModelLimits:
        """What a request must stay within."""
        return ModelLimits(
            max_tokens=self._spec.max_tokens,
            max_batch_items=self._config.max_batch_items,
            dimensions=self._spec.hidden_size,
        )

    @property
    def execution_provider(self) -> str:
        """ONNX Runtime execution provider that runs the model."""
        return self._execution_provider

    @property
    def stream_window(self) -> int:
        """Texts of one stream that may be in work at once."""
        return self._config.stream_window

    def stats(self) -> PipelineStats:
        """Return the counters of what was computed and what was dropped."""
        return self._pipeline.stats()

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait for a batch."""
        return self._pipeline.queued_tokens

    def start(self) -> None:
        """Start the compute thread."""
        self._pipeline.start()

    async def drain(self) -> None:
        """Take no new work and return when all work is done."""
        await self._pipeline.drain()

    def close(self) -> None:
        """Stop at once: work that waits fails. Blocking; may be called twice."""
        self._pipeline.close()
        self._tokenizers.close()

    def check_options(self, options: EmbedOptions) -> None:
        """Raise `InvalidField` when this model cannot make such vectors."""
        if options.dimensions is not None and options.dimensions > self._spec.hidden_size:
            raise InvalidField(
                "options.dimensions",
                expected=f"a number from 1 to {self._spec.hidden_size}",
                got=options.dimensions,
            )
        if options.prompt_name and options.prompt_name not in self._spec.prompts:
            names = ", ".join(sorted(self._spec.prompts)) or "no name: this model has no prompts"
            raise InvalidField("options.prompt_name", expected=f"one of: {names}", got=options.prompt_name)

    async def embed(self, request: EmbedRequest) -> EmbedReply:
        """Return one result for each text, in order; a bad text has an error in its place.

        Vectors are the same, up to rounding, whatever else runs at the time. Raises `InvalidField` for
        options this model does not have or too many texts, `Overloaded`, `DeadlineExceeded`, `Draining`.
        """
        with self._measured():
            arrived_ns = time.time_ns()
            self.check_options(request.options)
            self._check_num_texts(request)
            self._pipeline.check_admission(deadline_s=request.deadline_s)
            tokenized = await self._tokenize(request)
            pooled, times = await self._encode(tokenized, request)
            results = self._finish(pooled, tokenized, request.options)
            return EmbedReply(
                results=results,
                dimensions=request.options.dimensions or self._spec.hidden_size,
                timings=_timings(arrived_ns, times, time.time_ns()),
            )

    def _check_num_texts(self, request: EmbedRequest) -> None:
        if len(request.texts) > self._config.max_batch_items:
            raise InvalidField(
                "texts", expected=f"at most {self._config.max_batch_items} texts", got=len(request.texts)
            )

    async def _tokenize(self, request: EmbedRequest) -> Sequence[TokenizedText | AimassError]:
        start_ns = time.time_ns()
        checked = [
            self._check_text(text, request.field_of(i)) or self._prompted(text, request.options)
            for i, text in enumerate(request.texts)
        ]
        try:
            tokenized = await self._tokenizers.tokenize(_good(checked), request.options.truncation)
        finally:
            emit_phase("tokenize", start_ns, time.time_ns())
        return [
            item if isinstance(item, AimassError) else self._check_tokens(item, request, i) or item
            for i, item in enumerate(_merged(checked, tokenized))
        ]

    def _prompted(self, text: str, options: EmbedOptions) -> str:
        return self._spec.prompts[options.prompt_name] + text if options.prompt_name else text

    def _check_text(self, text: str, field: str) -> AimassError | None:
        if not text:
            return InvalidField(field, expected="a text that is not empty", got=text)
        if len(text) > self._config.max_text_chars:
            expected = f"at most {self._config.max_text_chars} characters"
            return InvalidField(field, expected=expected, got=len(text))
        return None

    def _check_tokens(self, text: TokenizedText, request: EmbedRequest, index: int) -> AimassError | None:
        field = request.field_of(index)
        if text.num_truncated_tokens and request.options.truncation is Truncation.NONE:
            num_tokens = len(text.token_ids) + text.num_truncated_tokens
            return InputTooLong(field, num_tokens=num_tokens, max_tokens=self._spec.max_tokens)
        if not len(text.token_ids):
            return InvalidField(field, expected="a text with at least one token", got=request.texts[index])
        return None

    async def _encode(
        self, tokenized: Sequence[TokenizedText | AimassError], request: EmbedRequest
    ) -> tuple[Sequence[NDArray[np.float32] | AimassError], EncodeTimes]:
        """Return each text's pooled vector."""
        rows = [text.token_ids for text in _good(tokenized)]
        if not rows:
            return [item for item in tokenized if isinstance(item, AimassError)], EncodeTimes.none()
        pooled, times = await self._pipeline.run(rows, self._head, deadline_s=request.deadline_s)
        return _merged(tokenized, pooled), times

    def _finish(
        self,
        pooled: Sequence[NDArray[np.float32] | AimassError],
        tokenized: Sequence[TokenizedText | AimassError],
        options: EmbedOptions,
    ) -> Sequence[EmbeddedText | AimassError]:
        vectors = self._shaped(_good(pooled), options)
        return [_embedded(v, t) for v, t in zip(_merged(pooled, vectors), tokenized, strict=True)]

    def _shaped(
        self, vectors: Sequence[NDArray[np.float32]], options: EmbedOptions
    ) -> Sequence[NDArray[np.float32]]:
        """Cut vectors to the asked-for dimensions, then scale them."""
        if not vectors:
            return []
        cut = np.stack(vectors)[:, : options.dimensions]  # [texts, dimensions]
        wants_unit = self._spec.normalize if options.normalize is None else options.normalize
        return list(l2_normalize(cut) if wants_unit else cut)

    @contextmanager
    def _measured(self) -> Iterator[None]:
        start_s, error_type = time.monotonic(), None
        try:
            yield
        except AimassError as error:
            error_type = error.reason
            raise
        except asyncio.CancelledError:
            error_type = "CANCELLED"
            raise
        finally:
            record_gen_ai(
                GenAiMeasurement(
                    operation="embeddings",
                    model=self._model,
                    duration_s=time.monotonic() - start_s,
                    error_type=error_type,
                )
            )


def _good(items: Sequence[A | AimassError]) -> list[A]:
    return [item for item in items if not isinstance(item, AimassError)]


def _merged(items: Sequence[A | AimassError], results: Sequence[B]) -> list[B | AimassError]:
    """Put the results of the good items in their places, and leave errors where they are."""
    remaining = iter(results)
    return [item if isinstance(item, AimassError) else next(remaining) for item in items]


def _embedded(
    vector: NDArray[np.float32] | AimassError, text: TokenizedText | AimassError
) -> EmbeddedText | AimassError:
    if isinstance(vector, AimassError):
        return vector
    assert isinstance(text, TokenizedText), "only tokenised texts were encoded"
    return EmbeddedText(vector, len(text.token_ids), text.num_truncated_tokens)


def _timings(arrived_ns: int, times: EncodeTimes, now_ns: int) -> PhaseTimings:
    return PhaseTimings(
        tokenize_ms=(times.submitted_ns - arrived_ns) / _NS_PER_MS,
        queue_ms=(times.started_ns - times.submitted_ns) / _NS_PER_MS,
        compute_ms=(times.finished_ns - times.started_ns) / _NS_PER_MS,
        total_ms=(now_ns - arrived_ns) / _NS_PER_MS,
    )
