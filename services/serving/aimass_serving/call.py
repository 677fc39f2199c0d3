"""One RPC on its way through the layers: what they learn of it and what it ended with.

Must not know gRPC: `interceptors.layering` builds it.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from aimass_serving.errors import InvalidField

MAX_REQUEST_ID_CHARS = 128
_REQUEST_ID = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,126}[\x21-\x7e])?")
REQUEST_ID_METADATA = "x-request-id"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended, in gRPC's words and ours."""

    status_code: str = "OK"
    """Name of the gRPC status code."""
    reason: str = ""
    """Reason of the error; empty when there was none."""


@dataclass(slots=True)
class Call:
    """One RPC. Owned by its task."""

    method: str
    """`package.Service/Method`."""
    metadata: Mapping[str, str]
    """Text metadata, keys in lower case."""
    peer: str
    """Address of the caller."""
    received_ns: int
    """On the wall clock (`time.time_ns`)."""
    received_s: float
    """The same moment on the monotonic clock (`time.monotonic`)."""
    deadline_s: float | None
    """On the monotonic clock."""
    request_id: str = ""
    outcome: Outcome = field(default_factory=Outcome)
    log_fields: dict[str, str] = field(default_factory=dict)
    """What the service adds to the call's log line."""

    def __post_init__(self) -> None:
        """Take the caller's name for the request from the metadata, or choose one."""
        given = self.metadata.get(REQUEST_ID_METADATA, "")
        self.request_id = self.request_id or (given if is_request_id(given) else uuid.uuid4().hex)


current_call: ContextVar[Call] = ContextVar("aimass_call")
"""The RPC that the running task serves."""


def is_request_id(text: str) -> bool:
    """Return whether `text` can name a request: 1 to 128 printable ASCII characters, no space at the ends."""
    return bool(_REQUEST_ID.fullmatch(text))


def check_request_id(text: str, *, field_name: str = "request_id") -> str:
    """Return `text`, or raise `InvalidField`."""
    if not is_request_id(text):
        raise InvalidField(
            field_name, expected=f"1 to {MAX_REQUEST_ID_CHARS} printable ASCII characters", got=text
        )
    return text
