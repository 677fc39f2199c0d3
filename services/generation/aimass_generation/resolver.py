"""Makes of a request and its tokens what the decoding engine runs: the model's defaults and bounds applied.

Pure but for the seed it draws. Knows no text beyond its length in tokens.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from aimass_decoding.request import BeamParams, SamplingParams, SequenceRequest
from aimass_serving.errors import AdapterNotFound, InputTooLong, InvalidField
from numpy.typing import NDArray

from aimass_generation.request import GenerationRequest, OutputOptions, Prompt, SamplingOptions

_SEED_BITS = 64


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """What a bundle and its engine say of a model, as far as requests depend on it."""

    name: str
    vocab_size: int
    max_context_tokens: int
    """Longest sequence, prompt and text together."""
    eos_token_ids: frozenset[int]
    sampling_defaults: SamplingOptions
    default_max_new_tokens: int
    beam_defaults: BeamParams = field(default_factory=BeamParams)
    """How the model wants to be searched; one beam, and no rule about runs, is greedy."""
    default_min_new_tokens: int = 0
    can_echo_logprobs: bool = False
    """Whether the graph gives the logits of every prompt token."""
    reads_source: bool = False
    """Whether the prompt is a source that an encoder reads."""
    adapters: tuple[str, ...] = ()
    """Names of the adapters beside the weights, in the order of their numbers, which begin at 1."""


def check_token_ids(token_ids: tuple[int, ...], *, vocab_size: int, field: str) -> None:
    """Raise `InvalidField` for the first id outside the vocabulary, as `field[index]`."""
    for index, token_id in enumerate(token_ids):
        if not 0 <= token_id < vocab_size:
            expected = f"a token id from 0 to {vocab_size - 1}"
            raise InvalidField(f"{field}[{index}]", expected=expected, got=token_id)


class RequestResolver:
    """Sequences for one model. Stateless but for the generator of seeds."""

    def __init__(
        self, profile: ModelProfile, *, new_seed: Callable[[], int] = lambda: secrets.randbits(_SEED_BITS)
    ) -> None:
        self._profile = profile
        self._new_seed = new_seed

    def resolve(
        self, request: GenerationRequest, prompt: Prompt, prompt_ids: NDArray[np.int64], *, arrived_s: float
    ) -> SequenceRequest:
        """Return the sequence to run for prompt ids [num_tokens]; `arrived_s` is on `time.monotonic`.

        Raises `InputTooLong` when the prompt leaves no room, `InvalidField` for what this model cannot do,
        `AdapterNotFound`.
        """
        stopping, output = request.stopping, request.output
        adapter = self._adapter(request.adapter)
        self._refuse_echo(output)
        beams = self._beams(request)
        vocab_size = self._profile.vocab_size
        check_token_ids(stopping.stop_token_ids, vocab_size=vocab_size, field="stopping.stop_token_ids")
        check_token_ids(
            request.sampling.allowed_token_ids or (),
            vocab_size=vocab_size,
            field="sampling.allowed_token_ids",
        )
        for token_id in request.sampling.logit_bias or {}:
            if not 0 <= token_id < vocab_size:
                expected = f"a token id from 0 to {vocab_size - 1}"
                raise InvalidField(f"sampling.logit_bias[{token_id}]", expected=expected, got=token_id)
        max_new_tokens = self._max_new_tokens(request, prompt, num_prompt_tokens=len(prompt_ids))
        return SequenceRequest(
            request_id=request.request_id,
            prompt_ids=prompt_ids,
            max_new_tokens=max_new_tokens,
            sampling=self._sampling(request.sampling, beams),
            num_sequences=request.num_sequences,
            cache_salt=request.cache_salt,
            min_new_tokens=min(
                stopping.min_new_tokens or self._profile.default_min_new_tokens, max_new_tokens
            ),
            eos_token_ids=frozenset() if stopping.ignore_eos else self._profile.eos_token_ids,
            stop_token_ids=frozenset(stopping.stop_token_ids),
            wants_logprobs=output.wants_logprobs,
            num_top_logprobs=output.num_top_logprobs,
            priority=request.priority,
            deadline_s=request.deadline_s,
            time_limit_at_s=None if request.time_limit_s is None else arrived_s + request.time_limit_s,
            beams=beams,
            wants_prompt_logprobs=output.wants_prompt_logprobs,
            adapter=adapter,
        )

    def _adapter(self, name: str) -> int:
        """Return the number of an adapter; 0 when none is asked for."""
        profile = self._profile
        if not name:
            return 0
        if not profile.adapters:
            raise InvalidField("adapter", expected=f"none: {profile.name} has no adapters", got=name)
        if name not in profile.adapters:
            raise AdapterNotFound(name, model=profile.name, available=profile.adapters)
        return profile.adapters.index(name) + 1

    def _max_new_tokens(self, request: GenerationRequest, prompt: Prompt, *, num_prompt_tokens: int) -> int:
        """Return the caller's bound, which must fit the context, or the default.

        A default may be more than fits: the text then ends because the context is full, and says so.
        """
        context = self._profile.max_context_tokens
        room = context - num_prompt_tokens
        if room < 1:
            raise InputTooLong(prompt.FIELD, num_tokens=num_prompt_tokens, max_tokens=context - 1)
        wanted = request.stopping.max_new_tokens
        if wanted is None:
            return max(self._profile.default_max_new_tokens, request.stopping.min_new_tokens)
        if wanted > room:
            expected = f"1 to {room}: a context of {context} tokens less the prompt's {num_prompt_tokens}"
            raise InvalidField("stopping.max_new_tokens", expected=expected, got=wanted)
        return wanted

    def _refuse_echo(self, output: OutputOptions) -> None:
        if output.wants_prompt_logprobs and not self._profile.can_echo_logprobs:
            name = self._profile.name
            expected = (
                f"false for {name}: its graph gives no logits of the prompt; export it again to have them"
            )
            if self._profile.reads_source:
                expected = f"false for {name}: its prompt is a source, which it reads and does not write"
            raise InvalidField("output.prompt_logprobs", expected=expected, got=True)

    def _beams(self, request: GenerationRequest) -> BeamParams | None:
        """Return how to search; None for the greedy or drawn text.

        A search that only the model's defaults ask for gives way to what no search can do.
        """
        params = request.beams.params(self._profile.beam_defaults)
        if params.is_greedy or any(True for _ in request.unsearchable()):
            return None
        return params

    def _sampling(self, options: SamplingOptions, beams: BeamParams | None) -> SamplingParams:
        if beams is not None:
            penalty = options.params(self._profile.sampling_defaults).repetition_penalty
            return SamplingParams(repetition_penalty=penalty)
        vocab_size = self._profile.vocab_size
        if options.top_k is not None and options.top_k > vocab_size:
            expected = f"a number from 0 to {vocab_size}, the size of the vocabulary"
            raise InvalidField("sampling.top_k", expected=expected, got=options.top_k)
        params = options.params(self._profile.sampling_defaults)
        if params.is_greedy or options.seed is not None:
            return params
        return replace(params, seed=self._new_seed())
