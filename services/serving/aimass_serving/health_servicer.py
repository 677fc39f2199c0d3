"""`grpc.health.v1.Health` for the process, each gRPC service and each model (`aimass.model/<name>`).

Own servicer: the published one holds a lock while it writes to a watcher, so that one watcher that never
reads would stop every later change, and with it the drain. Lives on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVICE_NAME = "grpc.health.v1.Health"
OVERALL = ""
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def model_health_name(model: str) -> str:
    """Return the name under which the health of a model is asked for."""
    return f"aimass.model/{model}"


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # untyped package
    """Answers probes and tells watchers of every change. Everything is NOT_SERVING until said otherwise."""

    def __init__(self) -> None:
        self._is_serving: dict[str, bool] = {OVERALL: False}
        self._is_draining = False
        self._changed = asyncio.Event()

    def update(self, states: Mapping[str, bool]) -> None:
        """Set whether each named service is serving."""
        self._is_serving.update(states)
        self._announce()

    def drain(self) -> None:
        """Everything is NOT_SERVING from now on."""
        self._is_draining = True
        self._announce()

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:  # noqa: N802
        """Return the state of one service; NOT_FOUND for one nobody named."""
        if request.service not in self._is_serving:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service or model")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def Watch(  # noqa: N802
        self, request: Any, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Send the state of one service now and after each change, until the caller goes."""
        last_status = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != last_status:
                yield health_pb2.HealthCheckResponse(status=status)
            last_status = status
            await changed.wait()

    def _status(self, service: str) -> health_pb2.HealthCheckResponse.ServingStatus.ValueType:
        if service not in self._is_serving:
            return SERVICE_UNKNOWN
        return SERVING if self._is_serving[service] and not self._is_draining else NOT_SERVING

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
