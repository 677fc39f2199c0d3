"""What the servicers of all tasks share: what every reply ends with, errors of items and enums, as they
travel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypedDict, TypeVar

from aimass.common.v1 import error_pb2, usage_pb2
from aimass_serving.errors import AimassError, InputTooLong, InvalidField, InvalidFields, Violation
from aimass_serving.registry import ServedModel
from aimass_serving.telemetry import annotate

from aimass_encoder.request import PhaseTimings
from aimass_encoder.task_engine import TaskEngine

Choice = TypeVar("Choice")


class TextReply(Protocol):
    """What an engine says of every call on texts."""

    @property
    def num_tokens(self) -> int:
        """Tokens the model saw."""

    @property
    def timings(self) -> PhaseTimings:
        """How long the phases took."""


class ReplyFields(TypedDict):
    """Fields that every response on texts has."""

    model: str
    model_version: str
    usage: usage_pb2.Usage
    timings: usage_pb2.Timings


def reply_fields(reply: TextReply, served: ServedModel[TaskEngine]) -> ReplyFields:
    """Return who answered, and what it took."""
    return {
        "model": served.name,
        "model_version": served.version,
        "usage": usage_pb2.Usage(input_tokens=reply.num_tokens),
        "timings": timings_pb(reply.timings),
    }


def item_error_pb(error: AimassError) -> error_pb2.ItemError:
    """Return an error as one item's result."""
    violations: Sequence[Violation] = ()
    if isinstance(error, InvalidFields):
        violations = error.violations
    if isinstance(error, InputTooLong):
        violations = [Violation(error.field, error.description)]
    return error_pb2.ItemError(
        reason=error_pb2.ErrorReason.Value(f"ERROR_REASON_{error.reason}"),
        message=str(error),
        violations=[error_pb2.FieldViolation(field=v.field, description=v.description) for v in violations],
    )


def timings_pb(timings: PhaseTimings) -> usage_pb2.Timings:
    """Return the phases' durations as they travel."""
    return usage_pb2.Timings(
        tokenize_ms=timings.tokenize_ms,
        queue_ms=timings.queue_ms,
        compute_ms=timings.compute_ms,
        total_ms=timings.total_ms,
    )


def annotate_call(operation: str, model: str, num_tokens: int) -> None:
    """Say on the call's span what it used."""
    annotate(
        {
            "gen_ai.operation.name": operation,
            "gen_ai.request.model": model,
            "gen_ai.usage.input_tokens": num_tokens,
        }
    )


def chosen(choices: Mapping[int, Choice], number: int, field: str, enum: Any) -> Choice:
    """Return what an enum's number stands for. Raises `InvalidField` for one this server does not know."""
    if number not in choices:
        names = ", ".join(enum.Name(choice) for choice in choices)
        raise InvalidField(field, expected=f"one of {names}", got=number)
    return choices[number]
