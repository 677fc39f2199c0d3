"""Whether a service takes calls, by the standard gRPC health protocol. Knows no one service."""

from __future__ import annotations

from enum import StrEnum

from grpc_health.v1 import health_pb2, health_pb2_grpc

from aimass.channel import Connection, ConnectionOptions


class HealthStatus(StrEnum):
    """What a service says of itself."""

    UNKNOWN = "unknown"
    SERVING = "serving"
    NOT_SERVING = "not_serving"
    SERVICE_UNKNOWN = "service_unknown"


def health(
    target: str | Connection,
    *,
    service: str = "",
    options: ConnectionOptions | None = None,
    deadline_s: float = 5.0,
) -> HealthStatus:
    """Return what the server at the address says of a service; "" asks for the server as a whole.

    Raises `aimass.errors.Unavailable` when nobody answers, `RpcError` with NOT_FOUND for an unknown service.
    """
    if isinstance(target, Connection):
        return _check(target, service, deadline_s)
    with Connection(target, options) as connection:
        return _check(connection, service, deadline_s)


def _check(connection: Connection, service: str, deadline_s: float) -> HealthStatus:
    stub = health_pb2_grpc.HealthStub(connection.channel)
    request = health_pb2.HealthCheckRequest(service=service)
    number = connection.call(stub.Check, request, deadline_s=deadline_s).status
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(number)
    return HealthStatus(name.lower())
