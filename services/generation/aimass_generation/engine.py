"""Text in, text out: tokenises, runs a sequence on the decoding engine, gives its text as it becomes final.

Knows no wire. All on the event loop but the tokenising of prompts and the compiling of constraints, which
have threads of their own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import numpy as np
from aimass.model.v1.model_service_pb2 import ModelLimits
from aimass_decoding.outlet import Interest
from aimass_decoding.request import SequenceRequest, SequenceTimings, TokenDelta, TokenMask
from aimass_decoding.stats import EngineStats
from aimass_serving.errors import AimassError, Draining, InvalidField, InvalidFields, Overloaded
from aimass_serving.telemetry import emit_phase
from numpy.typing import NDArray

from aimass_generation.assembler import TextAssembler
from aimass_generation.config import GenerationConfig
from aimass_generation.detokenizer import TextDecoder
from aimass_generation.guidance import Guidance, GuidanceCompiler
from aimass_generation.observation import Observation
from aimass_generation.prompt import PromptEncoder
from aimass_generation.request import (
    ChatPrompt,
    GenerationRequest,
    Prompt,
    prompt_violations,
)
from aimass_generation.resolver import ModelProfile, RequestResolver, check_token_ids
from aimass_generation.result import (
    Completion,
    Continuation,
    FinishReason,
    GenerationEvent,
    GenerationFinish,
    PromptInfo,
    TextDelta,
    Timings,
    Usage,
)
from aimass_generation.stopping import StopMatcher

T = TypeVar("T")

_NOT_STARTED = SequenceTimings(submitted_ns=0)


class TokenEngine(Protocol):
    """What is needed of the decoding engine: token ids in, token ids out."""

    @property
    def max_context_tokens(self) -> int:
        """Longest sequence, prompt and text together."""

    @property
    def max_concurrent_sequences(self) -> int:
        """How many sequences advance together."""

    @property
    def max_beams(self) -> int:
        """Most beams of a request; 0 where it cannot search with beams."""

    @property
    def execution_provider(self) -> str:
        """ONNX Runtime execution provider that runs the model."""

    def generate(
        self, request: SequenceRequest, *, interest: Interest | None = None
    ) -> AsyncGenerator[TokenDelta, None]:
        """Give the tokens of a request's sequences as they come; closing the generator gives them up."""

    def stats(self) -> EngineStats:
        """What the engine has done so far."""

    async def drain(self) -> None:
        """Take no new work and return when all work is done."""

    def close(self) -> None:
        """Stop at once. Blocking."""


@dataclass(slots=True)
class _Run:
    """One request on its way. Times are `time.time_ns`."""

    request: GenerationRequest
    sequence: SequenceRequest
    arrived_ns: int
    tokenized_ns: int
    assemblers: Sequence[TextAssembler]
    """One for each sequence."""
    phases: dict[int, SequenceTimings] = field(default_factory=dict)
    """What each sequence has told of its phases so far."""

    def timings(self, phases: SequenceTimings) -> Timings:
        """Return where the time went; a sequence that was given up ends now."""
        return Timings.of(
            phases,
            arrived_ns=self.arrived_ns,
            tokenized_ns=self.tokenized_ns,
            finished_ns=phases.finished_ns or time.time_ns(),
        )


class GenerationEngine:
    """Generates texts with one model. Lives on the event loop; owns the threads that tokenise.

    `generate` and `complete` take any number of requests at once. Whoever leaves `generate` early gives the
    sequence up: its slot is free by the model's next step.
    """

    def __init__(
        self,
        tokens: TokenEngine,
        prompts: PromptEncoder,
        text: TextDecoder,
        profile: ModelProfile,
        config: GenerationConfig,
        *,
        guidance: GuidanceCompiler,
    ) -> None:
        self._tokens = tokens
        self._prompts = prompts
        self._text = text
        self._guidance = guidance
        self._profile = profile
        self._config = config
        self._resolver = RequestResolver(profile)
        self._num_in_threads = 0
        self._is_closed = False
        self._threads = ThreadPoolExecutor(config.num_tokenizer_threads, thread_name_prefix="tokenizer")

    @property
    def limits(self) -> ModelLimits:
        """What a request must stay within."""
        return ModelLimits(
            max_tokens=self._tokens.max_context_tokens,
            max_concurrent_sequences=self._tokens.max_concurrent_sequences,
            max_batch_items=1,
        )

    @property
    def execution_provider(self) -> str:
        """ONNX Runtime execution provider that runs the model."""
        return self._tokens.execution_provider

    def stats(self) -> EngineStats:
        """Return what the decoding engine has done so far, in numbers."""
        return self._tokens.stats()

    async def drain(self) -> None:
        """Take no new work and return when all work is done."""
        await self._tokens.drain()

    def close(self) -> None:
        """Stop at once and free everything. Blocking; may be called twice."""
        self._is_closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._tokens.close()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """Yield one PromptInfo, TextDeltas as text becomes final, and one GenerationFinish a sequence.

        The PromptInfo comes with the first tokens: a request that is refused has sent nothing, so that a
        caller may try again. Raises `InvalidFields`, `InputTooLong`, `Overloaded`, `DeadlineExceeded`,
        `Draining`, `ModelFailed`, `AdapterNotFound`.
        """
        observation = Observation(request, model=self._profile.name)
        try:
            async with aclosing(self._generate(request)) as events:
                async for event in events:
                    if isinstance(event, GenerationFinish):
                        observation.finished(event)
                    yield event
        except AimassError as error:
            observation.failed(error.reason)
            raise
        finally:
            observation.record()

    async def complete(self, request: GenerationRequest) -> Completion:
        """Return a whole generation: what `generate` yields, joined. Raises as `generate` does."""
        infos: list[PromptInfo] = []
        deltas: list[list[TextDelta]] = [[] for _ in range(request.num_sequences)]
        finishes: dict[int, GenerationFinish] = {}
        async with aclosing(self.generate(request)) as events:
            async for event in events:
                match event:
                    case PromptInfo():
                        infos.append(event)
                    case TextDelta():
                        deltas[event.index].append(event)
                    case GenerationFinish():
                        finishes[event.index] = event
        first, *further = (Continuation.of(pieces, finishes[i]) for i, pieces in enumerate(deltas))
        return Completion(infos[0], first.text, first.token_ids, first.logprobs, first.finish, tuple(further))

    async def tokenize(self, prompt: Prompt | None) -> tuple[int, ...]:
        """Return the token ids of a prompt as `generate` sees them. Raises `InvalidFields`, `Overloaded`."""
        refused = tuple(prompt_violations(prompt))
        if refused or prompt is None:
            raise InvalidFields(refused)
        return tuple((await self._encode(prompt)).tolist())

    async def detokenize(self, token_ids: Sequence[int], *, keep_special_tokens: bool = False) -> str:
        """Return the text of token ids. Raises `InvalidField`, `Overloaded`."""
        if not token_ids:
            raise InvalidField("token_ids", expected="at least one token id", got=[])
        check_token_ids(tuple(token_ids), vocab_size=self._profile.vocab_size, field="token_ids")
        return await self._in_thread(
            lambda: self._text.decode(token_ids, keep_special_tokens=keep_special_tokens)
        )

    async def _generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        run = await self._prepare(request)
        interest = Interest()
        deltas = self._tokens.generate(run.sequence, interest=interest)
        num_running = request.num_sequences
        is_first = True
        async with aclosing(deltas):
            async for delta in deltas:
                text, finish = _advance(run, delta)
                if finish is not None:
                    num_running -= 1
                    interest.lose(delta.index)  # The slot must not wait for a slow reader of the last words.
                if is_first:
                    yield _prompt_info(run, delta)
                    is_first = False
                if text.text or text.token_ids or text.logprobs:
                    yield text
                if finish is not None:
                    yield finish
                if num_running == 0:
                    return

    async def _prepare(self, request: GenerationRequest) -> _Run:
        arrived_ns, arrived_s = time.time_ns(), time.monotonic()
        assert request.prompt is not None  # A request without one does not exist.
        prompt_ids = await self._encode(request.prompt)
        sequence = self._resolver.resolve(request, request.prompt, prompt_ids, arrived_s=arrived_s)
        if request.guidance is not None:
            sequence = replace(sequence, new_mask=await self._compile(request.guidance))
        assemblers = [self._assembler(request, index) for index in range(request.num_sequences)]
        return _Run(request, sequence, arrived_ns, time.time_ns(), assemblers)

    async def _encode(self, prompt: Prompt) -> NDArray[np.int64]:
        started_ns = time.time_ns()
        try:
            return await self._in_thread(lambda: self._prompts.encode(prompt))
        finally:
            emit_phase("tokenize", started_ns, time.time_ns())

    async def _compile(self, guidance: Guidance) -> Callable[[], TokenMask]:
        started_ns = time.time_ns()
        try:
            return await self._in_thread(lambda: self._guidance.compile(guidance))
        finally:
            emit_phase("compile_guidance", started_ns, time.time_ns())

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._is_closed:
            raise Draining
        if self._num_in_threads >= self._config.max_waiting_prompts:
            raise Overloaded(
                retry_after_s=self._config.overload_retry_after_s,
                detail=f"{self._num_in_threads} prompts wait to be tokenised, the limit",
            )
        self._num_in_threads += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._num_in_threads -= 1

    def _assembler(self, request: GenerationRequest, index: int) -> TextAssembler:
        # An answer in a chat begins a text of its own; every other continuation goes on from the prompt's.
        detokenizer = self._text.detokenizer(continues_text=not isinstance(request.prompt, ChatPrompt))
        stopping = request.stopping
        matcher = StopMatcher(stopping.stop_strings, include_stop_string=stopping.include_stop_string)
        wants_token_ids = request.output.wants_token_ids
        return TextAssembler(detokenizer, matcher, index=index, wants_token_ids=wants_token_ids)


def _advance(run: _Run, delta: TokenDelta) -> tuple[TextDelta, GenerationFinish | None]:
    """Return the text that a delta makes final, and the end of its sequence if this is it."""
    if delta.timings is not None:
        run.phases[delta.index] = delta.timings
    assembler = run.assemblers[delta.index]
    text = assembler.push(delta.token_ids, delta.logprobs)
    if delta.finish is not None and assembler.stop_string is None:
        text = _joined(text, assembler.finish())
    return text, _finish(run, assembler, delta)


def _joined(first: TextDelta, last: TextDelta) -> TextDelta:
    text, token_ids = first.text + last.text, first.token_ids + last.token_ids
    return TextDelta(text, token_ids, first.logprobs + last.logprobs, first.index)


def _finish(run: _Run, assembler: TextAssembler, delta: TokenDelta) -> GenerationFinish | None:
    end = delta.finish
    if end is None and assembler.stop_string is None:
        return None
    phases = end.timings if end else run.phases.get(delta.index, _NOT_STARTED)
    if assembler.stop_string is not None:
        reason, num_output_tokens = FinishReason.STOP_STRING, assembler.num_tokens
    else:
        assert end is not None, "a text ends by a stop string, or with its sequence"
        reason, num_output_tokens = FinishReason(end.reason.value), end.num_output_tokens
    return GenerationFinish(
        reason,
        Usage(len(run.sequence.prompt_ids), num_output_tokens, phases.num_reused_prompt_tokens),
        run.timings(phases),
        stop_string=assembler.stop_string,
        stop_token_id=end.stop_token_id if end is not None and assembler.stop_string is None else None,
        index=delta.index,
    )


def _prompt_info(run: _Run, first: TokenDelta) -> PromptInfo:
    sampling, prompt_ids = run.sequence.sampling, tuple(run.sequence.prompt_ids.tolist())
    seed = None if sampling.is_greedy else sampling.seed
    return PromptInfo(prompt_ids, seed, first.prompt_logprobs, run.request.adapter)
