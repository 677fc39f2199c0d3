"""What a failed call raises: one tree, built from the status and the `google.rpc` details a server sends.

    RpcError
    ├── InvalidRequest       a field outside its range; `violations` names each
    │   └── InputTooLong     more tokens than fit
    ├── ModelNotFound
    ├── AdapterNotFound      the model has no adapter of that name
    ├── FailedPrecondition   wrong task, bad bundle, device not there
    ├── ResourceExhausted
    │   ├── Overloaded       come back after `retry_after_s`
    │   └── MessageTooLarge  a message above a size limit, here or at the server
    ├── DeadlineExceeded
    ├── Cancelled
    ├── Unavailable          nobody answers at `address`, or the connection broke
    │   ├── ModelNotReady    loading, or failed to load
    │   └── Draining         shutting down; retry elsewhere
    ├── Unauthenticated
    ├── Unimplemented        the server does not know the call
    └── ServerFault          a fault of the server; its log has the cause under `request_id`

Knows gRPC status and nothing of any one service.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

ERROR_DOMAIN = "aimass"
PUSHBACK_TRAILER = "grpc-retry-pushback-ms"

DetailT = TypeVar("DetailT", bound=Message)


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One refused field: its path in the request, and what was expected and got."""

    field: str
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The facts of one failed call, as an `RpcError` carries them."""

    code: grpc.StatusCode
    message: str
    reason: str
    """Stable cause such as `MODEL_NOT_FOUND`; the name of the status code when the server gave no reason."""
    address: str = ""
    violations: Sequence[FieldViolation] = ()
    retry_after_s: float | None = None
    """When to come back, in seconds; None when the server did not say."""
    request_id: str = ""
    """The server's name for the call in its logs and traces; empty when it did not say."""


class RpcError(Exception):
    """A call failed. Carries the server's own words: `code`, `reason`, `violations`, `retry_after_s`."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.reason}: {failure.message}")
        self.failure = failure

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC status code."""
        return self.failure.code

    @property
    def reason(self) -> str:
        """The stable cause, such as `MODEL_NOT_FOUND`."""
        return self.failure.reason

    @property
    def message(self) -> str:
        """One sentence for people."""
        return self.failure.message

    @property
    def address(self) -> str:
        """Where the call went; empty when it was refused before it left."""
        return self.failure.address

    @property
    def violations(self) -> Sequence[FieldViolation]:
        """The fields that were refused."""
        return self.failure.violations

    @property
    def retry_after_s(self) -> float | None:
        """When to come back, in seconds; None when the server did not say."""
        return self.failure.retry_after_s

    @property
    def request_id(self) -> str:
        """The server's name for the call in its logs; empty when it did not say."""
        return self.failure.request_id


class InvalidRequest(RpcError):
    """A field has a value outside its documented range or form, or the message does not parse."""

    @classmethod
    def of_field(cls, field: str, description: str) -> InvalidRequest:
        """Return the refusal of one field that never left this process."""
        return cls(
            Failure(
                code=grpc.StatusCode.INVALID_ARGUMENT,
                message=f"{field}: {description}",
                reason="INVALID_FIELD",
                violations=(FieldViolation(field, description),),
            )
        )


class InputTooLong(InvalidRequest):
    """A prompt or text has more tokens than fit."""


class ModelNotFound(RpcError):
    """No model of that name, or no such version, is served there."""


class AdapterNotFound(RpcError):
    """The model has no adapter of that name; the message names those it has."""


class FailedPrecondition(RpcError):
    """The model serves another task, its bundle is bad, or its device is not there."""


class ResourceExhausted(RpcError):
    """Something limited ran out."""


class Overloaded(ResourceExhausted):
    """The server's queue is full: come back after `retry_after_s`."""


class MessageTooLarge(ResourceExhausted):
    """A message is above the size limit of this side or of the server."""


class DeadlineExceeded(RpcError):
    """The deadline passed before the work was done."""


class Cancelled(RpcError):
    """The call was cancelled, here or on the way."""


class Unavailable(RpcError):
    """Nobody answers at the address, or the connection broke."""


class ModelNotReady(Unavailable):
    """The model is loading, or failed to load."""


class Draining(Unavailable):
    """The server is shutting down and takes no new work."""


class Unauthenticated(RpcError):
    """The server wants credentials this call did not have."""


class Unimplemented(RpcError):
    """The server does not know this call: another service, or an older version, listens there."""


class ServerFault(RpcError):
    """A fault of the server. Its log has the cause under `request_id`."""


_BY_REASON: Mapping[str, type[RpcError]] = {
    "INVALID_FIELD": InvalidRequest,
    "MALFORMED_MESSAGE": InvalidRequest,
    "INPUT_TOO_LONG": InputTooLong,
    "MODEL_NOT_FOUND": ModelNotFound,
    "ADAPTER_NOT_FOUND": AdapterNotFound,
    "MODEL_NOT_READY": ModelNotReady,
    "WRONG_TASK": FailedPrecondition,
    "BAD_BUNDLE": FailedPrecondition,
    "DEVICE_UNAVAILABLE": FailedPrecondition,
    "MESSAGE_TOO_LARGE": MessageTooLarge,
    "OVERLOADED": Overloaded,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "DRAINING": Draining,
    "UNAUTHENTICATED": Unauthenticated,
    "MODEL_FAILED": ServerFault,
    "INTERNAL": ServerFault,
}

_BY_CODE: Mapping[grpc.StatusCode, type[RpcError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.INTERNAL: ServerFault,
    grpc.StatusCode.UNKNOWN: ServerFault,
    grpc.StatusCode.DATA_LOSS: ServerFault,
}


def error_of(failed: grpc.RpcError | grpc.Call, *, address: str) -> RpcError:
    """Return the error of a call that ended with a status other than OK."""
    failure = _failure_of(cast(grpc.Call, failed), address)  # what gRPC raises is the call
    by_code = _BY_CODE.get(failure.code, RpcError)
    if by_code is ResourceExhausted and "larger than max" in failure.message:
        return MessageTooLarge(failure)
    return _BY_REASON.get(failure.reason, by_code)(failure)


def incomplete_stream(*, address: str) -> ServerFault:
    """Return the error of a stream that ended with OK but without its last message."""
    message = "the stream ended without its last message"
    return ServerFault(
        Failure(code=grpc.StatusCode.UNKNOWN, message=message, reason="INTERNAL", address=address)
    )


def _failure_of(call: grpc.Call, address: str) -> Failure:
    code, details = call.code() or grpc.StatusCode.UNKNOWN, call.details() or ""
    status = _rich_status(call)
    info = _detail(status, error_details_pb2.ErrorInfo)
    reason = info.reason if info is not None and info.domain == ERROR_DOMAIN else ""
    return Failure(
        code=code,
        message=details if reason or code is not grpc.StatusCode.UNAVAILABLE else _silence(address, details),
        reason=reason or code.name,
        address=address,
        violations=_violations(status),
        retry_after_s=_retry_after_s(status, call),
        request_id=_request_id(status, info),
    )


def _silence(address: str, details: str) -> str:
    return f"no service answers at {address} ({details})"


def _rich_status(call: grpc.Call) -> status_pb2.Status:
    try:
        return rpc_status.from_call(call) or status_pb2.Status()
    except ValueError:  # the details contradict the status line: believe the line
        return status_pb2.Status()


def _detail(status: status_pb2.Status, kind: type[DetailT]) -> DetailT | None:
    for packed in status.details:
        detail = kind()
        if packed.Is(kind.DESCRIPTOR) and packed.Unpack(detail):
            return detail
    return None


def _violations(status: status_pb2.Status) -> tuple[FieldViolation, ...]:
    refused = _detail(status, error_details_pb2.BadRequest)
    found = refused.field_violations if refused is not None else ()
    return tuple(FieldViolation(v.field, v.description) for v in found)


def _retry_after_s(status: status_pb2.Status, call: grpc.Call) -> float | None:
    retry = _detail(status, error_details_pb2.RetryInfo)
    if retry is not None:
        return float(retry.retry_delay.ToTimedelta().total_seconds())
    pushback = _trailer(call, PUSHBACK_TRAILER)
    return int(pushback) / 1000 if pushback.isdecimal() else None


def _request_id(status: status_pb2.Status, info: error_details_pb2.ErrorInfo | None) -> str:
    request = _detail(status, error_details_pb2.RequestInfo)
    if request is not None:
        return str(request.request_id)
    return str(info.metadata.get("request_id", "")) if info is not None else ""


def _trailer(call: grpc.Call, key: str) -> str:
    for name, value in call.trailing_metadata() or ():
        if name == key and isinstance(value, str):
            return value
    return ""
