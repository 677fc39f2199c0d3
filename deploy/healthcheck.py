"""Ask a gRPC server for its overall health: exit code 0 when it is SERVING. For the images' HEALTHCHECK.

Knows the standard health protocol only, not what the server serves.
"""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S = 4.0


def main(address: str) -> int:
    """Print the state of the server at `address` (host:port) and return the exit code."""
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            status = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S).status
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)  # noqa: PT017 - a failed call is its own error
            print(f"{address}: {error.code().name}, {error.details()}")
            return 1
    print(f"{address}: {health_pb2.HealthCheckResponse.ServingStatus.Name(status)}")
    return 0 if status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
