"""Maps every error to a gRPC status with `google.rpc` details, once. An unexpected one tells callers nothing.

Also the place that knows how a call ended, cancelled and expired ones included: outer layers read
`Call.outcome`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from aimass_serving.call import Call, Outcome
from aimass_serving.errors import AimassError, InputTooLong, InvalidFields, Overloaded
from aimass_serving.interceptors.layering import Proceed, ServicerContext

DOMAIN = "aimass"
DETAILS_METADATA = "grpc-status-details-bin"
PUSHBACK_METADATA = "grpc-retry-pushback-ms"

STATUS_OF_REASON: Mapping[str, grpc.StatusCode] = {
    "INVALID_FIELD": grpc.StatusCode.INVALID_ARGUMENT,
    "INPUT_TOO_LONG": grpc.StatusCode.INVALID_ARGUMENT,
    "MALFORMED_MESSAGE": grpc.StatusCode.INVALID_ARGUMENT,
    "MESSAGE_TOO_LARGE": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "MODEL_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "ADAPTER_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "MODEL_NOT_READY": grpc.StatusCode.UNAVAILABLE,
    "DRAINING": grpc.StatusCode.UNAVAILABLE,
    "WRONG_TASK": grpc.StatusCode.FAILED_PRECONDITION,
    "BAD_BUNDLE": grpc.StatusCode.FAILED_PRECONDITION,
    "DEVICE_UNAVAILABLE": grpc.StatusCode.FAILED_PRECONDITION,
    "OVERLOADED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "DEADLINE_EXCEEDED": grpc.StatusCode.DEADLINE_EXCEEDED,
    "UNAUTHENTICATED": grpc.StatusCode.UNAUTHENTICATED,
    "MODEL_FAILED": grpc.StatusCode.INTERNAL,
    "INTERNAL": grpc.StatusCode.INTERNAL,
}

# Status and details travel in trailers, which clients cap at 8 KiB: a larger one would hide the real error.
MAX_MESSAGE_CHARS = 512
MAX_VIOLATIONS = 8
MAX_DESCRIPTION_CHARS = 200

logger = logging.getLogger(__name__)


async def translate(call: Call, context: ServicerContext, proceed: Proceed) -> None:
    """Turn errors into statuses and note the outcome. `CancelledError` passes."""
    try:
        await proceed()
    except asyncio.CancelledError:
        call.outcome = _cut_short(call)
        raise
    except grpc.aio.AbortError:
        call.outcome = Outcome(context.code().name)
        raise
    except AimassError as error:
        await _abort(call, context, error)
    except Exception:
        logger.exception("request %s of %s failed", call.request_id, call.method)
        await _abort(
            call, context, AimassError(f"internal error; the log has it as request {call.request_id}")
        )


def status_of(error: AimassError, *, request_id: str) -> status_pb2.Status:
    """Return the `google.rpc.Status` of an error: ErrorInfo, RequestInfo, and what its kind adds."""
    code = STATUS_OF_REASON[error.reason]
    details = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN), *_details(error)]
    details.append(error_details_pb2.RequestInfo(request_id=request_id))
    return status_pb2.Status(
        code=code_pb2.Code.Value(code.name),
        message=_cut(str(error), MAX_MESSAGE_CHARS),
        details=[_packed(detail) for detail in details],
    )


async def _abort(call: Call, context: ServicerContext, error: AimassError) -> None:
    status = status_of(error, request_id=call.request_id)
    code = STATUS_OF_REASON[error.reason]
    call.outcome = Outcome(code.name, error.reason)
    trailers: list[tuple[str, str | bytes]] = [(DETAILS_METADATA, status.SerializeToString())]
    if isinstance(error, Overloaded):
        trailers.append((PUSHBACK_METADATA, str(round(error.retry_after_s * 1000))))
    await context.abort(code, status.message, tuple(trailers))


def _cut_short(call: Call) -> Outcome:
    """Tell a deadline from a cancel: gRPC reports both as a cancelled task.

    A caller's deadline reaches the server rounded up by as much as 1 %, so its end comes a little early.
    """
    if call.deadline_s is None:
        return Outcome("CANCELLED")
    slack_s = 0.005 + 0.015 * (call.deadline_s - call.received_s)
    if time.monotonic() < call.deadline_s - slack_s:
        return Outcome("CANCELLED")
    return Outcome("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")


def _details(error: AimassError) -> Iterator[Message]:
    if isinstance(error, InvalidFields):
        yield _bad_request([(v.field, v.description) for v in error.violations[:MAX_VIOLATIONS]])
    if isinstance(error, InputTooLong):
        yield _bad_request([(error.field, error.description)])
    if isinstance(error, Overloaded):
        delay = Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1000))
        yield error_details_pb2.RetryInfo(retry_delay=delay)


def _bad_request(violations: list[tuple[str, str]]) -> error_details_pb2.BadRequest:
    return error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(
                field=_cut(field, MAX_DESCRIPTION_CHARS), description=_cut(description, MAX_DESCRIPTION_CHARS)
            )
            for field, description in violations
        ]
    )


def _packed(detail: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(detail)
    return packed


def _cut(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"
