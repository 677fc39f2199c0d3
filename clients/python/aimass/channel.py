"""The one place that opens connections: limits, keepalive, retries, TLS, credentials, deadlines, tracing.

Knows no service. Every call of every client goes through `Connection.call`, `open_stream` or
`open_live_stream`, which give it its deadline, turn its failure into an `RpcError`, and cancel it when its
caller leaves.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import grpc
from opentelemetry.trace import TracerProvider

from aimass.closing import Closing
from aimass.errors import error_of
from aimass.response_stream import ResponseStream
from aimass.tracing import TracingInterceptor

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")

API_KEY_METADATA = "authorization"
SPANS_END_WITHIN_S = 1.0

_IDEMPOTENT_METHODS = {
    "aimass.generation.v1.GenerationService": ("Complete", "Tokenize", "Detokenize"),
    "aimass.classification.v1.ClassificationService": (
        "ClassifyText",
        "ClassifyZeroShot",
        "ClassifyTokens",
        "FillMask",
        "PredictNextSentence",
        "ClassifyImage",
        "ClassifyFeatures",
        "AnswerQuestion",
    ),
    "aimass.embedding.v1.EmbeddingService": ("Embed", "EmbedSparse", "EmbedTokens", "Similarity", "Rerank"),
    "aimass.model.v1.ModelService": ("ListModels", "GetModel"),
    "aimass.speech.v1.SpeechSynthesisService": ("ListVoices",),
    "grpc.health.v1.Health": ("Check",),
}
"""Unary calls, safe to repeat: none of them changes anything at the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How to encrypt the connection and, with a certificate of one's own, how to prove who calls."""

    root_certificates: bytes | None = None
    """PEM certificates to trust; None trusts those gRPC ships with."""
    certificate_chain: bytes | None = None
    """PEM certificate of this client, for servers that ask for one (mTLS)."""
    private_key: bytes | None = field(default=None, repr=False)
    """PEM key of that certificate."""
    server_name: str | None = None
    """Name to expect in the server's certificate, where it is not the host of the address."""

    @classmethod
    def from_files(
        cls,
        *,
        root_certificates: Path | None = None,
        certificate_chain: Path | None = None,
        private_key: Path | None = None,
        server_name: str | None = None,
    ) -> Self:
        """Read the PEM files that are named."""
        return cls(
            root_certificates=_bytes_of(root_certificates),
            certificate_chain=_bytes_of(certificate_chain),
            private_key=_bytes_of(private_key),
            server_name=server_name,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOptions:
    """How a client connects, and what holds for each of its calls."""

    deadline_s: float = 60.0
    """Deadline of a call that answers with one message."""
    stream_deadline_s: float = 600.0
    """Deadline of a call that answers one message with a stream, from its start to its last message. Calls
    that send a stream, such as live speech, have none unless it is given: they last as long as they send."""
    tls: Tls | None = None
    """None connects in the clear."""
    api_key: str | None = field(default=None, repr=False)
    """Sent with each call as `authorization: Bearer <key>`."""
    max_message_bytes: int = 64 * 1024 * 1024
    """Longest message to send or to accept."""
    max_attempts: int = 4
    """Times a unary call is tried while the server is UNAVAILABLE; 1 never retries. gRPC allows at most 5."""
    keepalive_time_s: float = 60.0
    """A ping after this long without traffic, while a call runs. Servers refuse who pings too often."""
    keepalive_timeout_s: float = 20.0
    """A ping unanswered for this long ends the connection."""
    has_own_connection: bool = False
    """Open a connection of its own. Otherwise the equal channels of a process share one, and so all reach the
    same server process."""
    tracer_provider: TracerProvider | None = None
    """Where the spans of calls go; None takes the process-wide provider."""


class Connection(Closing):
    """One channel to one address. May be shared by clients and threads; close it when the last is done."""

    def __init__(self, address: str, options: ConnectionOptions | None = None) -> None:
        self.address = address
        self.options = options or ConnectionOptions()
        self._tracing = TracingInterceptor(address, tracer_provider=self.options.tracer_provider)
        self._raw_channel = _open_channel(address, self.options)
        self._starting = threading.Lock()
        self._is_closed = False
        self.channel: grpc.Channel = grpc.intercept_channel(self._raw_channel, self._tracing)

    def call(
        self,
        method: grpc.UnaryUnaryMultiCallable[RequestT, ResponseT],
        request: RequestT,
        *,
        deadline_s: float | None = None,
    ) -> ResponseT:
        """Return the answer of a unary call. Leaving early, such as by Ctrl-C, cancels the call."""
        timeout_s = self.options.deadline_s if deadline_s is None else deadline_s
        future: grpc._CallFuture[ResponseT] = self._start(method.future, request, timeout_s)
        try:
            return future.result()
        except grpc.FutureCancelledError:
            raise error_of(future, address=self.address) from None
        except grpc.RpcError as error:
            raise error_of(error, address=self.address) from None
        finally:
            future.cancel()

    def open_stream(
        self,
        method: Callable[..., Any],
        request: object,
        *,
        deadline_s: float | None = None,
    ) -> ResponseStream[Any]:
        """Start a call that answers one message with a stream."""
        timeout_s = self.options.stream_deadline_s if deadline_s is None else deadline_s
        return ResponseStream(self._start(method, request, timeout_s), address=self.address)

    def open_live_stream(
        self,
        method: Callable[..., Any],
        requests: Iterator[Any],
        *,
        deadline_s: float | None = None,
    ) -> ResponseStream[Any]:
        """Start a call whose requests come as they come: it has no deadline but the one that is given.

        It lasts as long as its caller sends. That the other side is gone, keepalive finds out.
        """
        return ResponseStream(self._start(method, requests, deadline_s), address=self.address)

    def close(self) -> None:
        """Close the channel, cancel what still runs on it, and see its spans ended. Safe to repeat."""
        with self._starting:
            self._is_closed = True
            self._raw_channel.close()
        self._tracing.wait_until_ended(timeout_s=SPANS_END_WITHIN_S)

    def _start(self, method: Callable[..., Any], request: object, timeout_s: float | None) -> Any:
        # Starting a call on an intercepted channel that is closed, or is being closed, crashes the process
        # (grpcio 1.85).
        with self._starting:
            if self._is_closed:
                raise ValueError(f"the connection to {self.address} is closed")
            return method(request, timeout=timeout_s, metadata=self._metadata())

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        key = self.options.api_key
        return () if key is None else ((API_KEY_METADATA, f"Bearer {key}"),)


class ServiceClient(Closing):
    """What the clients have in common: a connection, their own or shared. Their own ends with them."""

    DEFAULT_ADDRESS: ClassVar[str] = "localhost:50051"

    def __init__(
        self, target: str | Connection | None = None, options: ConnectionOptions | None = None
    ) -> None:
        self._owns_connection = not isinstance(target, Connection)
        self._connection = (
            target if isinstance(target, Connection) else Connection(target or self.DEFAULT_ADDRESS, options)
        )

    @property
    def address(self) -> str:
        """Where the calls go."""
        return self._connection.address

    def close(self) -> None:
        """Close the connection, unless it was given by the caller. Safe to repeat."""
        if self._owns_connection:
            self._connection.close()


def _open_channel(address: str, options: ConnectionOptions) -> grpc.Channel:
    arguments = list(_channel_arguments(options))
    if _is_this_machine(address):
        arguments.append(("grpc.enable_http_proxy", 0))
    if options.tls is None:
        return grpc.insecure_channel(address, options=arguments)
    credentials = grpc.ssl_channel_credentials(
        options.tls.root_certificates, options.tls.private_key, options.tls.certificate_chain
    )
    return grpc.secure_channel(address, credentials, options=arguments)


def _is_this_machine(address: str) -> bool:
    """Whether the address is a loopback one: a proxy of the environment would look for it on its own host."""
    host = address.rpartition(":")[0].strip("[]")
    return host == "localhost" or host.startswith("127.") or host == "::1"


def _channel_arguments(options: ConnectionOptions) -> Iterator[tuple[str, object]]:
    keepalive_timeout_ms = int(options.keepalive_timeout_s * 1000)
    yield "grpc.max_send_message_length", options.max_message_bytes
    yield "grpc.max_receive_message_length", options.max_message_bytes
    yield "grpc.keepalive_time_ms", int(options.keepalive_time_s * 1000)
    yield "grpc.keepalive_timeout_ms", keepalive_timeout_ms
    # Without this one a peer that holds the socket open but answers no ping is never given up.
    yield "grpc.http2.ping_timeout_ms", keepalive_timeout_ms
    yield "grpc.keepalive_permit_without_calls", 0
    yield "grpc.use_local_subchannel_pool", int(options.has_own_connection)
    yield "grpc.service_config", json.dumps(retry_config(_IDEMPOTENT_METHODS.items(), options.max_attempts))
    if options.tls is not None and options.tls.server_name:
        yield "grpc.ssl_target_name_override", options.tls.server_name


def retry_config(methods: Iterable[tuple[str, Iterable[str]]], max_attempts: int) -> dict[str, Any]:
    """Return the gRPC service config that retries the given methods while the server is UNAVAILABLE.

    gRPC itself honours `grpc-retry-pushback-ms` (gRFC A6). Streams are never retried: their reader may have
    acted on the first messages.
    """
    if max_attempts < 2:
        return {}
    policy = {
        "maxAttempts": max_attempts,
        "initialBackoff": "0.1s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    names = [{"service": service, "method": method} for service, each in methods for method in each]
    return {"methodConfig": [{"name": names, "retryPolicy": policy}]}


def _bytes_of(file: Path | None) -> bytes | None:
    return None if file is None else file.read_bytes()
