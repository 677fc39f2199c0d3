"""What a generation returns, as plain values. Knows messages and no call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from aimass.generation.v1 import generation_service_pb2 as pb
from aimass.usage import Timings, Usage, timings_of, usage_of
from aimass.wire import enum_word


class FinishReason(StrEnum):
    """Why a text ended."""

    UNSPECIFIED = "unspecified"
    """The server did not say, or gave a reason newer than this client."""
    EOS = "eos"
    STOP_STRING = "stop_string"
    STOP_TOKEN = "stop_token"  # noqa: S105 - not a secret
    MAX_NEW_TOKENS = "max_new_tokens"
    CONTEXT_FULL = "context_full"
    TIME_LIMIT = "time_limit"


@dataclass(frozen=True, slots=True)
class PromptInfo:
    """What the server understood of the request."""

    request_id: str
    model: str
    model_version: str
    prompt_tokens: int
    """Tokens of the prompt, special tokens included."""
    seed: int | None
    """The seed in use; None when decoding is greedy."""
    prompt_token_ids: Sequence[int] = ()
    """Empty unless asked for."""
    prompt_logprobs: Sequence[TokenLogprob] = ()
    """Empty unless asked for; one entry for each token of the prompt but the first."""
    adapter: str = ""
    """The adapter in use; empty for the base model alone."""


@dataclass(frozen=True, slots=True)
class TokenCandidate:
    """One of the most probable tokens at a place."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How probable the model found a token, before temperature and filters."""

    token_id: int
    logprob: float
    """Natural logarithm of its probability; at most 0."""
    candidates: Sequence[TokenCandidate] = ()
    """The most probable tokens at this place, best first."""


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of a text. It never ends inside a character or inside a possible stop string."""

    text: str
    token_ids: Sequence[int] = ()
    """Empty unless asked for."""
    logprobs: Sequence[TokenLogprob] = ()
    """Empty unless asked for; one entry a token."""
    sequence_index: int = 0
    """Which of the request's sequences this is of."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Why a text ended, and what it cost."""

    reason: FinishReason
    stop_string: str | None
    """The stop string that appeared, for STOP_STRING."""
    stop_token_id: int | None
    """The token that ended the text, for EOS and STOP_TOKEN."""
    usage: Usage
    timings: Timings
    sequence_index: int = 0
    """Which of the request's sequences ended."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """One of several sequences of a prompt, without the prompt."""

    text: str
    finish: Finish
    token_ids: Sequence[int] = ()
    """Empty unless asked for."""
    logprobs: Sequence[TokenLogprob] = ()
    """Empty unless asked for; one entry a token."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole continuation, without the prompt."""

    text: str
    finish: Finish
    prompt_info: PromptInfo
    token_ids: Sequence[int] = ()
    """Empty unless asked for."""
    logprobs: Sequence[TokenLogprob] = ()
    """Empty unless asked for; one entry a token."""
    further: Sequence[Continuation] = ()
    """The sequences after the first, when several were asked for."""


def prompt_info_of(info_pb: pb.PromptInfo) -> PromptInfo:
    """Return the message as a value."""
    return PromptInfo(
        request_id=info_pb.request_id,
        model=info_pb.model,
        model_version=info_pb.model_version,
        prompt_tokens=info_pb.prompt_tokens,
        seed=info_pb.seed if info_pb.HasField("seed") else None,
        prompt_token_ids=tuple(info_pb.prompt_token_ids),
        prompt_logprobs=tuple(_logprob_of(entry) for entry in info_pb.prompt_logprobs),
        adapter=info_pb.adapter,
    )


def delta_of(delta_pb: pb.Delta) -> Delta:
    """Return the message as a value."""
    return Delta(
        delta_pb.text,
        tuple(delta_pb.token_ids),
        tuple(_logprob_of(entry) for entry in delta_pb.logprobs),
        delta_pb.sequence_index,
    )


def finish_of(finish_pb: pb.Finish) -> Finish:
    """Return the message as a value."""
    matched = finish_pb.WhichOneof("matched")
    return Finish(
        reason=FinishReason(enum_word(pb.FinishReason, "FINISH_REASON_", finish_pb.reason)),
        stop_string=finish_pb.stop_string if matched == "stop_string" else None,
        stop_token_id=finish_pb.stop_token_id if matched == "stop_token_id" else None,
        usage=usage_of(finish_pb.usage),
        timings=timings_of(finish_pb.timings),
        sequence_index=finish_pb.sequence_index,
    )


def completion_of(response_pb: pb.CompleteResponse) -> Completion:
    """Return the message as a value."""
    return Completion(
        text=response_pb.text,
        finish=finish_of(response_pb.finish),
        prompt_info=prompt_info_of(response_pb.prompt_info),
        token_ids=tuple(response_pb.token_ids),
        logprobs=tuple(_logprob_of(entry) for entry in response_pb.logprobs),
        further=tuple(_continuation_of(continuation) for continuation in response_pb.further),
    )


def _continuation_of(continuation_pb: pb.Continuation) -> Continuation:
    return Continuation(
        text=continuation_pb.text,
        finish=finish_of(continuation_pb.finish),
        token_ids=tuple(continuation_pb.token_ids),
        logprobs=tuple(_logprob_of(entry) for entry in continuation_pb.logprobs),
    )


def _logprob_of(entry_pb: pb.TokenLogprob) -> TokenLogprob:
    candidates = tuple(TokenCandidate(c.token_id, c.logprob) for c in entry_pb.candidates)
    return TokenLogprob(entry_pb.token_id, entry_pb.logprob, candidates)
