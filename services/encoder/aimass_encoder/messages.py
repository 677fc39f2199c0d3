"""What the servicers of all tasks share: errors of items, timings and enums as they travel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from aimass.common.v1 import error_pb2, usage_pb2
from aimass_serving.errors import AimassError, InputTooLong, InvalidField, InvalidFields, Violation
from aimass_serving.telemetry import annotate

from aimass_encoder.request import PhaseTimings

Choice = TypeVar("Choice")


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
