"""The one place that builds a gRPC server: options, layers, address, transport security.

Must not know which services are added to it.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection

from aimass_serving.config import ServerConfig
from aimass_serving.errors import PortUnavailable
from aimass_serving.interceptors.layering import Layer, LayeredInterceptor
from aimass_serving.tls import server_credentials

CORE_LIMIT_FACTOR = 4
"""The C core refuses messages of this many times the limit, with an error of its own that has no details.
Below that the layers check the limit, and answer with a reason."""


def build_server(config: ServerConfig, layers: Sequence[Layer], *, max_receive_bytes: int) -> grpc.aio.Server:
    """Return a server with these layers around every RPC, outermost first. It has no port yet."""
    layering = LayeredInterceptor(layers, max_message_bytes=max_receive_bytes)
    options = server_options(config, max_receive_bytes=max_receive_bytes)
    return grpc.aio.server(interceptors=[layering], options=options)


def server_options(config: ServerConfig, *, max_receive_bytes: int) -> list[tuple[str, Any]]:
    """Return the channel arguments of a server."""
    options: dict[str, Any] = {
        # Two processes on one port would split connections by chance; a port in use must be an error.
        "grpc.so_reuseport": 0,
        "grpc.max_receive_message_length": max_receive_bytes * CORE_LIMIT_FACTOR,
        "grpc.max_send_message_length": config.max_send_bytes,
        # Above the soft limit calls are refused at random, above the hard one always: one limit for both.
        "grpc.max_metadata_size": config.max_metadata_bytes,
        "grpc.absolute_max_metadata_size": config.max_metadata_bytes,
        "grpc.max_concurrent_streams": config.max_concurrent_streams,
        "grpc.keepalive_time_ms": _ms(config.keepalive_time_s),
        "grpc.keepalive_timeout_ms": _ms(config.keepalive_timeout_s),
        # Without this a peer that never answers pings is not closed (measured: facts of grpcio 1.85).
        "grpc.http2.ping_timeout_ms": _ms(config.keepalive_timeout_s),
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.max_pings_without_data": 0,
        "grpc.http2.min_ping_interval_without_data_ms": _ms(config.keepalive_time_s),
        "grpc.http2.min_recv_ping_interval_without_data_ms": _ms(config.min_client_ping_interval_s),
    }
    if config.max_connection_age_s:
        options["grpc.max_connection_age_ms"] = _ms(config.max_connection_age_s)
        options["grpc.max_connection_age_grace_ms"] = _ms(config.max_connection_age_grace_s)
    return list(options.items())


def listen(server: grpc.aio.Server, config: ServerConfig, port: int) -> int:
    """Open the port, with TLS when configured; 0 takes a free one. Return the port.

    Raises `PortUnavailable`, `BadConfig`.
    """
    credentials = server_credentials(config)
    _check_port_is_free(config.host, port)
    address = f"[{config.host}]:{port}" if ":" in config.host else f"{config.host}:{port}"
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise PortUnavailable(config.host, port, detail="the address cannot be opened") from error


def add_reflection(server: grpc.aio.Server, service_names: Sequence[str]) -> None:
    """Answer reflection for these services."""
    reflection.enable_server_reflection((*service_names, reflection.SERVICE_NAME), server)


def _check_port_is_free(host: str, port: int) -> None:
    """Try the address with a plain socket first: gRPC tells no cause, and prints lines of its own."""
    if port == 0:
        return
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        raise PortUnavailable(host, port, detail=(error.strerror or str(error)).lower()) from error


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
