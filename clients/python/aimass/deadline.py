"""Passes a deadline on: gRPC in Python forwards neither deadlines nor cancellation to downstream calls.

Knows no service. For code that answers one call by making another.
"""

from __future__ import annotations

from typing import Protocol

import grpc

from aimass.errors import DeadlineExceeded, Failure

DEFAULT_MARGIN_S = 0.05


class HasTimeRemaining(Protocol):
    """The part of an incoming call's context that knows its deadline."""

    def time_remaining(self) -> float | None: ...


def downstream_deadline_s(
    incoming: HasTimeRemaining, *, cap_s: float, margin_s: float = DEFAULT_MARGIN_S
) -> float:
    """Return the deadline to give a call made on behalf of an incoming one, in seconds from now.

    It is what the incoming call has left minus a margin for the way back, and at most `cap_s`. Raises
    `DeadlineExceeded` when nothing is left: the call would be lost work.
    """
    remaining = incoming.time_remaining()
    deadline_s = cap_s if remaining is None else min(cap_s, remaining - margin_s)
    if deadline_s <= 0:
        raise DeadlineExceeded(
            Failure(
                code=grpc.StatusCode.DEADLINE_EXCEEDED,
                message="the incoming call's deadline leaves no time for a call to another service",
                reason="DEADLINE_EXCEEDED",
            )
        )
    return deadline_s
