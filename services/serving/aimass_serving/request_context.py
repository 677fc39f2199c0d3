"""What a servicer may know of the call it serves, without gRPC's details."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import Any

from aimass_serving.call import check_request_id, current_call


@dataclass(frozen=True, slots=True)
class RequestContext:
    """The call behind a request."""

    request_id: str
    """The caller's name for the request, or one chosen here."""
    deadline_s: float | None
    """On the monotonic clock (`time.monotonic`); None when the caller set none."""
    received_ns: int
    """When the call arrived, on the wall clock (`time.time_ns`)."""


def request_context(grpc_context: Any, request_id_field: str = "") -> RequestContext:
    """Return what the call is known by. `request_id_field` is the field of that name, empty when unset.

    The name then also stands in the log line and in error details. Raises `InvalidField`.
    """
    given = check_request_id(request_id_field) if request_id_field else ""
    call = current_call.get(None)
    if call is None:
        return RequestContext(given or uuid.uuid4().hex, _deadline_s(grpc_context), time.time_ns())
    call.request_id = given or call.request_id
    return RequestContext(call.request_id, call.deadline_s, call.received_ns)


def log_field(name: str, value: str) -> None:
    """Let the log line of the running call say this too. Nothing of what was asked or answered."""
    call = current_call.get(None)
    if call is not None:
        call.log_fields[name] = value


def _deadline_s(grpc_context: Any) -> float | None:
    remaining_s = grpc_context.time_remaining()
    return None if remaining_s is None else time.monotonic() + remaining_s
