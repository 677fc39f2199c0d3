"""Who answered a call, what it consumed and where its time went. Knows no one service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypedDict

from aimass.common.v1 import usage_pb2 as pb


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a call, after tokenisation."""

    input_tokens: int
    """Tokens of the prompt or of all texts, special tokens included."""
    output_tokens: int
    """Tokens the model produced, the one that ended the text included."""
    cached_input_tokens: int
    """Input tokens whose computation was reused from an earlier request."""


@dataclass(frozen=True, slots=True)
class Timings:
    """How long each phase of a call took at the server, in milliseconds of wall time."""

    tokenize_ms: float
    queue_ms: float
    compute_ms: float
    """The forward pass, or all decode steps after the first token."""
    total_ms: float
    prefill_ms: float
    """Generation only: computing the prompt, up to the first token."""
    time_to_first_token_ms: float
    """Generation only: from arrival to the first token."""


def usage_of(usage_pb: pb.Usage) -> Usage:
    """Return the message as a value."""
    return Usage(usage_pb.input_tokens, usage_pb.output_tokens, usage_pb.cached_input_tokens)


def timings_of(timings_pb: pb.Timings) -> Timings:
    """Return the message as a value."""
    return Timings(
        tokenize_ms=timings_pb.tokenize_ms,
        queue_ms=timings_pb.queue_ms,
        compute_ms=timings_pb.compute_ms,
        total_ms=timings_pb.total_ms,
        prefill_ms=timings_pb.prefill_ms,
        time_to_first_token_ms=timings_pb.time_to_first_token_ms,
    )


class Reply(Protocol):
    """What the responses on texts have in common."""

    model: str
    model_version: str

    @property
    def usage(self) -> pb.Usage: ...
    @property
    def timings(self) -> pb.Timings: ...


class ReplyFields(TypedDict):
    """The same as fields of a value."""

    model: str
    model_version: str
    usage: Usage
    timings: Timings


def reply_fields(response_pb: Reply) -> ReplyFields:
    """Return who answered, and what it took."""
    return {
        "model": response_pb.model,
        "model_version": response_pb.model_version,
        "usage": usage_of(response_pb.usage),
        "timings": timings_of(response_pb.timings),
    }
