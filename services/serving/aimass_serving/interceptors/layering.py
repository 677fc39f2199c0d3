"""The one place that knows gRPC's four kinds of RPC: it runs the same layers around each of them.

Messages are decoded and encoded inside the layers, so that a broken message is an error like any other, and
authentication comes before parsing. A servicer's async generator is iterated here, in a coroutine that uses
`context.write`: a cancelled call then always arrives as `CancelledError`, and the generator is closed in the
same task and context (grpc/grpc#36193, measured).
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError

from aimass_serving.call import Call, current_call
from aimass_serving.errors import MalformedMessage

Proceed: TypeAlias = Callable[[], Awaitable[None]]
ServicerContext: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Layer: TypeAlias = Callable[[Call, ServicerContext, Proceed], Awaitable[None]]
"""Runs `proceed` once, or raises instead; sees every end of it, `CancelledError` included."""

Req = TypeVar("Req")
Res = TypeVar("Res")

EXEMPT_SERVICES = ("/grpc.health.v1.Health/",)
"""Probes: they carry no key, must not be refused under load, and would drown the log."""


class LayeredInterceptor(grpc.aio.ServerInterceptor):
    """Runs layers, outermost first, around every RPC but the health checks."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = tuple(layers)
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Req, Res] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Req, Res] | None:
        """Return the method's handler with the layers around it; unknown methods stay unknown."""
        method = handler_call_details.method
        if method in self._wrapped:
            return self._wrapped[method]
        handler = await continuation(handler_call_details)
        if handler is None or method.startswith(EXEMPT_SERVICES):
            return handler
        self._wrapped[method] = wrap_handler(handler, method.removeprefix("/"), self._layers)
        return self._wrapped[method]


def wrap_handler(
    handler: grpc.RpcMethodHandler[Any, Any], method: str, layers: Sequence[Layer]
) -> grpc.RpcMethodHandler[Any, Any]:
    """Return a handler of the same kind that runs `layers` around `handler`."""
    behaviour = _behaviour(handler)
    read = _read_stream if handler.request_streaming else _read_message

    encode = handler.response_serializer or bytes

    async def unary(incoming: Any, context: ServicerContext) -> bytes:
        replies: list[bytes] = []

        async def serve() -> None:
            replies.append(encode(await behaviour(read(incoming, handler), context)))

        await _run(layers, _call_of(context, method), context, serve)
        return replies[0]

    async def streaming(incoming: Any, context: ServicerContext) -> None:
        async def serve() -> None:
            await _write_all(behaviour(read(incoming, handler), context), context)

        await _run(layers, _call_of(context, method), context, serve)

    if handler.response_streaming:
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        return make(streaming, None, handler.response_serializer)
    make_unary = (
        grpc.stream_unary_rpc_method_handler
        if handler.request_streaming
        else grpc.unary_unary_rpc_method_handler
    )
    return make_unary(unary, None, None)


async def _run(layers: Sequence[Layer], call: Call, context: ServicerContext, serve: Proceed) -> None:
    current_call.set(call)
    for layer in reversed(layers):
        serve = functools.partial(layer, call, context, serve)
    await serve()


def _behaviour(handler: grpc.RpcMethodHandler[Any, Any]) -> Callable[..., Any]:
    behaviours = (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
    return next(b for b in behaviours if b is not None)


def _read_message(incoming: bytes, handler: grpc.RpcMethodHandler[Any, Any]) -> Any:
    try:
        return handler.request_deserializer(incoming) if handler.request_deserializer else incoming
    except DecodeError as error:
        # The parser's text names the type and the kind of fault, never the content.
        raise MalformedMessage(_message_name(handler), detail=str(error)) from error


async def _read_stream(
    incoming: AsyncIterator[bytes], handler: grpc.RpcMethodHandler[Any, Any]
) -> AsyncIterator[Any]:
    async for message in incoming:
        yield _read_message(message, handler)


def _message_name(handler: grpc.RpcMethodHandler[Any, Any]) -> str:
    message = getattr(handler.request_deserializer, "__self__", None)
    return str(getattr(message, "__name__", "message"))


async def _write_all(replies: Any, context: ServicerContext) -> None:
    if not inspect.isasyncgen(replies):
        await replies  # a servicer that writes by itself
        return
    try:
        async for reply in replies:
            await context.write(reply)
    finally:
        await replies.aclose()


def _call_of(context: ServicerContext, method: str) -> Call:
    metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    remaining_s = context.time_remaining()
    deadline_s = None if remaining_s is None else time.monotonic() + remaining_s
    return Call(method, metadata, context.peer(), time.time_ns(), deadline_s)
