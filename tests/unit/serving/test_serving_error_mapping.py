"""Every error has one status and says enough, and no more."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import grpc
import pytest
from aimass.common.v1.error_pb2 import ErrorReason
from aimass_serving import errors
from aimass_serving.echo import ERRORS
from aimass_serving.errors import AimassError, InvalidFields, StartFailure, Violation
from aimass_serving.interceptors.errors import STATUS_OF_REASON, status_of
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

D = TypeVar("D", bound=Message)

EXPECTED: Mapping[str, grpc.StatusCode] = {
    "INVALID_FIELD": grpc.StatusCode.INVALID_ARGUMENT,
    "INPUT_TOO_LONG": grpc.StatusCode.INVALID_ARGUMENT,
    "MALFORMED_MESSAGE": grpc.StatusCode.INVALID_ARGUMENT,
    "MODEL_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "ADAPTER_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "MODEL_NOT_READY": grpc.StatusCode.UNAVAILABLE,
    "DRAINING": grpc.StatusCode.UNAVAILABLE,
    "WRONG_TASK": grpc.StatusCode.FAILED_PRECONDITION,
    "BAD_BUNDLE": grpc.StatusCode.FAILED_PRECONDITION,
    "DEVICE_UNAVAILABLE": grpc.StatusCode.FAILED_PRECONDITION,
    "OVERLOADED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "MESSAGE_TOO_LARGE": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "DEADLINE_EXCEEDED": grpc.StatusCode.DEADLINE_EXCEEDED,
    "UNAUTHENTICATED": grpc.StatusCode.UNAUTHENTICATED,
    "MODEL_FAILED": grpc.StatusCode.INTERNAL,
    "INTERNAL": grpc.StatusCode.INTERNAL,
}


def subclasses(root: type[AimassError]) -> Iterable[type[AimassError]]:
    for kind in root.__subclasses__():
        if kind.__module__.startswith("aimass_serving") and not issubclass(kind, StartFailure):
            yield kind
            yield from subclasses(kind)


def detail(status: status_pb2.Status, kind: type[D]) -> D | None:
    for packed in status.details:
        found = kind()
        if packed.Unpack(found):
            return found
    return None


def test_every_reason_of_the_protos_has_its_status() -> None:
    in_protos = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.DESCRIPTOR.values_by_name} - {
        "UNSPECIFIED"
    }
    assert in_protos == set(STATUS_OF_REASON)
    assert dict(STATUS_OF_REASON) == EXPECTED


def test_every_error_has_a_reason_of_the_protos() -> None:
    kinds = list(subclasses(AimassError))
    assert len(kinds) >= 14
    assert {kind.reason for kind in kinds} <= set(STATUS_OF_REASON)


def test_tree_in_the_docstring_names_every_error() -> None:
    for kind in (*subclasses(AimassError), StartFailure):
        if kind.__module__ == errors.__name__:
            assert f"── {kind.__name__} " in (errors.__doc__ or ""), kind


@pytest.mark.parametrize("reason", sorted(EXPECTED))
def test_status_carries_reason_domain_and_request(reason: str) -> None:
    error = ERRORS[reason]()
    assert isinstance(error, AimassError)
    status = status_of(error, request_id="r1")
    assert status.code == EXPECTED[reason].value[0]
    info, request = detail(status, error_details_pb2.ErrorInfo), detail(status, error_details_pb2.RequestInfo)
    assert info is not None
    assert (info.reason, info.domain) == (reason, "aimass")
    assert request is not None
    assert request.request_id == "r1"


def test_refused_fields_are_named() -> None:
    status = status_of(InvalidFields([Violation("a.b", "bad"), Violation("c", "worse")]), request_id="r")
    refused = detail(status, error_details_pb2.BadRequest)
    assert refused is not None
    assert [(v.field, v.description) for v in refused.field_violations] == [("a.b", "bad"), ("c", "worse")]


def test_too_long_input_names_its_field() -> None:
    refused = detail(status_of(ERRORS["INPUT_TOO_LONG"](), request_id="r"), error_details_pb2.BadRequest)  # type: ignore[arg-type] # an AimassError
    assert refused is not None
    assert refused.field_violations[0].field == "text"


def test_overload_says_when_to_come_back() -> None:
    retry = detail(status_of(ERRORS["OVERLOADED"](), request_id="r"), error_details_pb2.RetryInfo)  # type: ignore[arg-type] # an AimassError
    assert retry is not None
    assert retry.retry_delay.ToMilliseconds() == 1500


def test_status_fits_into_trailers_whatever_was_refused() -> None:
    many = InvalidFields(Violation(f"texts[{n}]" + "x" * 500, "😀" * 500) for n in range(1000))
    assert status_of(many, request_id="r" * 128).ByteSize() < 12_000
