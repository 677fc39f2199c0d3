"""The one place that knows gRPC's four kinds of RPC: it runs the same layers around each of them.

Messages are decoded and encoded inside the layers, so that a broken message is an error like any other, and
authentication comes before parsing. A servicer's async generator is iterated here, in a coroutine that uses
`context.write`: a cancelled call then always arrives as `CancelledError`, and the generator is closed in the
same task and context (grpc.aio itself leaves a generator that waits in `yield` to the garbage collector).
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
from aimass_serving.errors import MalformedMessage, MessageTooLarge

Proceed: TypeAlias = Callable[[], Awaitable[None]]
ServicerContext: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Layer: TypeAlias = Callable[[Call, ServicerContext, Proceed], Awaitable[None]]
"""Runs `proceed` once, or raises instead; sees every end of it, `CancelledError` included."""

Req = TypeVar("Req")
Res = TypeVar("Res")
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

# by whether the request is a stream
_STREAMING = (grpc.unary_stream_rpc_method_handler, grpc.stream_stream_rpc_method_handler)
_UNARY = (grpc.unary_unary_rpc_method_handler, grpc.stream_unary_rpc_method_handler)

EXEMPT_SERVICES = ("/grpc.health.v1.Health/",)
"""Probes: they carry no key, must not be refused under load, and would drown the log."""


class LayeredInterceptor(grpc.aio.ServerInterceptor):
    """Runs layers, outermost first, around every RPC but the health checks."""

    def __init__(self, layers: Sequence[Layer], *, max_message_bytes: int) -> None:
        self._layers = tuple(layers)
        self._max_message_bytes = max_message_bytes
        self._wrapped: dict[str, Handler] = {}

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
        self._wrapped[method] = self._wrap(handler, method.removeprefix("/"))
        return self._wrapped[method]

    def _wrap(self, handler: Handler, method: str) -> Handler:
        return wrap_handler(handler, method, layers=self._layers, max_message_bytes=self._max_message_bytes)


def wrap_handler(
    handler: Handler, method: str, *, layers: Sequence[Layer], max_message_bytes: int
) -> Handler:
    """Return a handler of the same kind that runs `layers` around `handler`.

    A servicer is an async function or an async generator, and takes a request stream by iterating it.
    """
    behaviour, encode = _behaviour(handler), handler.response_serializer or bytes
    decode = _decoder(handler, max_message_bytes)
    read = functools.partial(_RequestStream, decode=decode) if handler.request_streaming else decode

    async def unary(incoming: Any, context: ServicerContext) -> bytes:
        replies: list[bytes] = []

        async def serve() -> None:
            replies.append(encode(await behaviour(read(incoming), context)))

        await _run(layers, _call_of(context, method), context, serve)
        return replies[0]

    async def streaming(incoming: Any, context: ServicerContext) -> None:
        async def serve() -> None:
            await _write_all(behaviour(read(incoming), context), context)

        await _run(layers, _call_of(context, method), context, serve)

    if handler.response_streaming:
        return _STREAMING[handler.request_streaming](streaming, None, handler.response_serializer)
    return _UNARY[handler.request_streaming](unary, None, None)


async def _run(layers: Sequence[Layer], call: Call, context: ServicerContext, serve: Proceed) -> None:
    current_call.set(call)
    for layer in reversed(layers):
        serve = functools.partial(layer, call, context, serve)
    await serve()


def _behaviour(handler: Handler) -> Callable[..., Any]:
    behaviours = (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
    return next(behaviour for behaviour in behaviours if behaviour is not None)


def _decoder(handler: Handler, max_bytes: int) -> Callable[[bytes], Any]:
    parse = handler.request_deserializer or bytes
    message_name = getattr(getattr(parse, "__self__", None), "__name__", "message")

    def decode(message: bytes) -> Any:
        if len(message) > max_bytes:
            raise MessageTooLarge(message_name, num_bytes=len(message), max_bytes=max_bytes)
        try:
            return parse(message)
        except DecodeError as error:
            # The parser's text names the type and the kind of fault, never the content.
            raise MalformedMessage(message_name, detail=str(error)) from error

    return decode


class _RequestStream:
    """The decoded messages of a request stream. Not a generator: nothing to close when it is left early."""

    def __init__(self, incoming: AsyncIterator[bytes], decode: Callable[[bytes], Any]) -> None:
        self._incoming = aiter(incoming)
        self._decode = decode

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        return self._decode(await anext(self._incoming))


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
    remaining_s, now_s = context.time_remaining(), time.monotonic()
    return Call(
        method,
        metadata,
        context.peer(),
        received_ns=time.time_ns(),
        received_s=now_s,
        deadline_s=None if remaining_s is None else now_s + remaining_s,
    )
