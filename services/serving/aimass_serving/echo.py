"""A service without a model: it answers what it is asked, in all four kinds of RPC, and fails on request.

For tests of everything around a service, and for trying out a deployment. Needs no proto of its own: requests
are `GetModelRequest`, whose `model` says what to do, and replies are `GetModelResponse`:

    anything            comes back as `model.name`
    sleep <seconds>     comes back after that time
    count <n>           comes back n times (response streams)
    raise <reason>      fails with the error of that reason, `raise bug` with an unexpected one
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import grpc
from aimass.model.v1.manifest_pb2 import TASK_EMBEDDING
from aimass.model.v1.model_service_pb2 import GetModelRequest, GetModelResponse, Model, ModelLimits

from aimass_serving import errors
from aimass_serving.bundle import Bundle
from aimass_serving.plan import LoadContext, ServicePlan
from aimass_serving.registry import ModelRegistry
from aimass_serving.request_context import request_context
from aimass_serving.service import run_service

SERVICE_NAME = "aimass.serving.Echo"
DEFAULT_PORT = 50059

ERRORS: Mapping[str, Callable[[], Exception]] = {
    "INVALID_FIELD": lambda: errors.InvalidField("model", expected="a name", got="raise INVALID_FIELD"),
    "INPUT_TOO_LONG": lambda: errors.InputTooLong("text", num_tokens=9, max_tokens=8),
    "MALFORMED_MESSAGE": lambda: errors.MalformedMessage("GetModelRequest", detail="bad UTF-8"),
    "MESSAGE_TOO_LARGE": lambda: errors.MessageTooLarge("GetModelRequest", num_bytes=9, max_bytes=8),
    "MODEL_NOT_FOUND": lambda: errors.ModelNotFound("m", available=["n"]),
    "ADAPTER_NOT_FOUND": lambda: errors.AdapterNotFound("a", model="m", available=["b"]),
    "MODEL_NOT_READY": lambda: errors.ModelNotReady("m", state="loading"),
    "WRONG_TASK": lambda: errors.WrongTask("m", expected="embedding", got="text generation"),
    "MODEL_FAILED": lambda: errors.ModelFailed("m", detail="not a number"),
    "OVERLOADED": lambda: errors.Overloaded(retry_after_s=1.5, detail="the queue is full"),
    "DEADLINE_EXCEEDED": lambda: errors.DeadlineExceeded(phase="queue"),
    "DRAINING": errors.Draining,
    "UNAUTHENTICATED": lambda: errors.Unauthenticated(detail="no key"),
    "BAD_BUNDLE": lambda: errors.BadBundle("m@1", detail="altered"),
    "DEVICE_UNAVAILABLE": lambda: errors.DeviceUnavailable("cuda", available=["CPUExecutionProvider"]),
    "INTERNAL": lambda: errors.AimassError("a fault"),
    "bug": lambda: ValueError("secret=hunter2"),
}


class EchoEngine:
    """An engine that counts what runs through it. Lives on the event loop."""

    limits = ModelLimits(max_tokens=1)
    execution_provider = "none"

    def __init__(self) -> None:
        self.num_running = 0
        """Replies in progress: what a real engine's slots would be."""
        self.num_closed = 0
        """Replies that are over, whatever their end."""
        self.num_closed_elsewhere = 0
        """Those of them that were not closed by the task that served the call."""
        self.is_closed = False

    async def drain(self) -> None:
        return

    def close(self) -> None:
        self.is_closed = True

    async def reply(self, command: str) -> AsyncGenerator[str, None]:
        """Do what the command says, once for each reply."""
        word, _, rest = command.partition(" ")
        task = asyncio.current_task()
        self.num_running += 1
        try:
            if word == "raise":
                raise ERRORS[rest]()
            if word == "sleep":
                await asyncio.sleep(float(rest))
            for _ in range(int(rest) if word == "count" else 1):
                yield command
        finally:
            self.num_running -= 1
            self.num_closed += 1
            self.num_closed_elsewhere += task is not asyncio.current_task()


class EchoServicer:
    """One method for each kind of RPC."""

    def __init__(self, registry: ModelRegistry[EchoEngine]) -> None:
        self._registry = registry

    async def unary_unary(self, request: GetModelRequest, context: Any) -> GetModelResponse:
        """Return the last reply."""
        request_context(context)
        return _response([text async for text in self._engine.reply(request.model)][-1])

    async def unary_stream(self, request: GetModelRequest, context: Any) -> AsyncIterator[GetModelResponse]:
        """Return every reply."""
        # `async for` alone does not close what it iterates when it is left early: only the collector would.
        async with aclosing(self._engine.reply(request.model)) as texts:
            async for text in texts:
                yield _response(text)

    async def stream_unary(self, requests: AsyncIterator[GetModelRequest], context: Any) -> GetModelResponse:
        """Return the replies to all requests, joined by spaces."""
        replies = [text async for request in requests async for text in self._engine.reply(request.model)]
        return _response(" ".join(replies))

    async def stream_stream(
        self, requests: AsyncIterator[GetModelRequest], context: Any
    ) -> AsyncIterator[GetModelResponse]:
        """Return the replies to each request."""
        async for request in requests:
            async with aclosing(self._engine.reply(request.model)) as texts:
                async for text in texts:
                    yield _response(text)

    @property
    def _engine(self) -> EchoEngine:
        return next(served.engine for served in self._registry.models() if served.is_ready)


def register(server: grpc.aio.Server, registry: ModelRegistry[EchoEngine]) -> Sequence[str]:
    """Add the servicer; return its name."""
    servicer, parse, encode = EchoServicer(registry), GetModelRequest.FromString, _encode
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "UnaryUnary": grpc.unary_unary_rpc_method_handler(servicer.unary_unary, parse, encode),
        "UnaryStream": grpc.unary_stream_rpc_method_handler(servicer.unary_stream, parse, encode),
        "StreamUnary": grpc.stream_unary_rpc_method_handler(servicer.stream_unary, parse, encode),
        "StreamStream": grpc.stream_stream_rpc_method_handler(servicer.stream_stream, parse, encode),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE_NAME, methods)])
    return [SERVICE_NAME]


def load_engine(bundle: Bundle, context: LoadContext) -> EchoEngine:
    """Return an engine; there is nothing to load."""
    return EchoEngine()


PLAN: ServicePlan[EchoEngine] = ServicePlan(
    name="echo", default_port=DEFAULT_PORT, task=TASK_EMBEDDING, load=load_engine, register=register
)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop; return the exit code."""
    return run_service(PLAN, argv)


def _response(text: str) -> GetModelResponse:
    return GetModelResponse(model=Model(name=text))


def _encode(response: GetModelResponse) -> bytes:
    return response.SerializeToString()


if __name__ == "__main__":
    sys.exit(main())
