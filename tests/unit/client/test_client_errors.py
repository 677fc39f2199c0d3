"""Status and details of a finished call become a typed error."""

from __future__ import annotations

from dataclasses import dataclass, field

import grpc
import pytest
from aimass.common.v1 import error_pb2
from aimass.errors import (
    AdapterNotFound,
    Cancelled,
    DeadlineExceeded,
    Draining,
    FailedPrecondition,
    FieldViolation,
    InputTooLong,
    InvalidRequest,
    MessageTooLarge,
    ModelNotFound,
    ModelNotReady,
    Overloaded,
    ResourceExhausted,
    RpcError,
    ServerFault,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    error_of,
)
from aimass.testing import Fail
from google.rpc import status_pb2

ADDRESS = "host:1"


@dataclass
class EndedCall:
    """A finished gRPC call: the four answers `error_of` asks for."""

    status_code: grpc.StatusCode
    message: str = "words"
    trailers: tuple[tuple[str, str | bytes], ...] = field(default=())

    def code(self) -> grpc.StatusCode:
        return self.status_code

    def details(self) -> str:
        return self.message

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self.trailers


def failed(fail: Fail, *more_trailers: tuple[str, str]) -> RpcError:
    status = status_pb2.Status(code=fail.code.value[0], message=fail.message)
    for detail in fail.details():
        status.details.add().Pack(detail)
    rich = ("grpc-status-details-bin", status.SerializeToString())
    return error_of(EndedCall(fail.code, fail.message, (rich, *more_trailers)), address=ADDRESS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reason", "code", "kind"),
    [
        ("INVALID_FIELD", grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        ("MALFORMED_MESSAGE", grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        ("INPUT_TOO_LONG", grpc.StatusCode.INVALID_ARGUMENT, InputTooLong),
        ("MODEL_NOT_FOUND", grpc.StatusCode.NOT_FOUND, ModelNotFound),
        ("ADAPTER_NOT_FOUND", grpc.StatusCode.NOT_FOUND, AdapterNotFound),
        ("MODEL_NOT_READY", grpc.StatusCode.UNAVAILABLE, ModelNotReady),
        ("DRAINING", grpc.StatusCode.UNAVAILABLE, Draining),
        ("WRONG_TASK", grpc.StatusCode.FAILED_PRECONDITION, FailedPrecondition),
        ("BAD_BUNDLE", grpc.StatusCode.FAILED_PRECONDITION, FailedPrecondition),
        ("DEVICE_UNAVAILABLE", grpc.StatusCode.FAILED_PRECONDITION, FailedPrecondition),
        ("OVERLOADED", grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
        ("DEADLINE_EXCEEDED", grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        ("UNAUTHENTICATED", grpc.StatusCode.UNAUTHENTICATED, Unauthenticated),
        ("MODEL_FAILED", grpc.StatusCode.INTERNAL, ServerFault),
        ("INTERNAL", grpc.StatusCode.INTERNAL, ServerFault),
    ],
)
def test_a_reason_of_the_protocol_becomes_its_own_kind(
    reason: str, code: grpc.StatusCode, kind: type[RpcError]
) -> None:
    error = failed(Fail(code=code, reason=reason, message="words"))

    assert type(error) is kind
    assert (error.reason, error.code, error.address) == (reason, code, ADDRESS)
    assert str(error) == f"{reason}: words"


def test_no_reason_of_the_protocol_is_forgotten() -> None:
    reasons = [name.removeprefix("ERROR_REASON_") for name in error_pb2.ErrorReason.keys()]  # noqa: SIM118

    kinds = {r: type(failed(Fail(code=grpc.StatusCode.ABORTED, reason=r))) for r in reasons[1:]}

    assert [reason for reason, kind in kinds.items() if kind is RpcError] == []


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ResourceExhausted),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.CANCELLED, Cancelled),
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.UNIMPLEMENTED, Unimplemented),
        (grpc.StatusCode.UNKNOWN, ServerFault),
        (grpc.StatusCode.ABORTED, RpcError),
    ],
)
def test_a_bare_status_becomes_the_kind_of_its_code(code: grpc.StatusCode, kind: type[RpcError]) -> None:
    error = error_of(EndedCall(code), address=ADDRESS)  # type: ignore[arg-type]

    assert type(error) is kind
    assert error.reason == code.name


def test_a_reason_newer_than_the_client_keeps_its_name_and_the_kind_of_its_code() -> None:
    error = failed(Fail(code=grpc.StatusCode.INVALID_ARGUMENT, reason="FROM_THE_FUTURE"))

    assert type(error) is InvalidRequest
    assert error.reason == "FROM_THE_FUTURE"


def test_violations_and_request_id_are_carried() -> None:
    violations = {"sampling.top_p": "expected a number above 0, up to 1, got 2"}
    error = failed(
        Fail(
            code=grpc.StatusCode.INVALID_ARGUMENT,
            reason="INVALID_FIELD",
            violations=violations,
            request_id="r-1",
        )
    )

    assert error.violations == (FieldViolation("sampling.top_p", violations["sampling.top_p"]),)
    assert error.request_id == "r-1"


def test_retry_info_wins_over_the_pushback_trailer() -> None:
    fail = Fail(code=grpc.StatusCode.RESOURCE_EXHAUSTED, reason="OVERLOADED", retry_after_s=1.5)

    assert failed(fail, ("grpc-retry-pushback-ms", "9000")).retry_after_s == 1.5


def test_the_pushback_trailer_alone_says_when_to_come_back() -> None:
    call = EndedCall(grpc.StatusCode.RESOURCE_EXHAUSTED, trailers=(("grpc-retry-pushback-ms", "250"),))

    assert error_of(call, address=ADDRESS).retry_after_s == 0.25  # type: ignore[arg-type]


def test_a_pushback_that_is_not_a_number_says_nothing() -> None:
    call = EndedCall(grpc.StatusCode.RESOURCE_EXHAUSTED, trailers=(("grpc-retry-pushback-ms", "-1"),))

    assert error_of(call, address=ADDRESS).retry_after_s is None  # type: ignore[arg-type]


def test_a_message_above_the_limit_is_told_apart_from_overload() -> None:
    message = "Received message larger than max (10485760 vs. 8388608)"
    call = EndedCall(grpc.StatusCode.RESOURCE_EXHAUSTED, message)

    assert type(error_of(call, address=ADDRESS)) is MessageTooLarge  # type: ignore[arg-type]


def test_details_that_contradict_the_status_line_are_not_believed() -> None:
    status = status_pb2.Status(code=grpc.StatusCode.NOT_FOUND.value[0], message="words")
    status.details.add().Pack(next(Fail(code=grpc.StatusCode.NOT_FOUND, reason="MODEL_NOT_FOUND").details()))
    rich = ("grpc-status-details-bin", status.SerializeToString())

    error = error_of(EndedCall(grpc.StatusCode.INTERNAL, "words", (rich,)), address=ADDRESS)  # type: ignore[arg-type]

    assert type(error) is ServerFault


def test_silence_names_the_address() -> None:
    error = error_of(EndedCall(grpc.StatusCode.UNAVAILABLE, "refused"), address=ADDRESS)  # type: ignore[arg-type]

    assert error.message == "no service answers at host:1 (refused)"
