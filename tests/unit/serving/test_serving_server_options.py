"""What the gRPC server is told, and what it must not be."""

from aimass_serving.config import ServerConfig
from aimass_serving.server import server_options


def test_server_has_every_limit_and_all_three_keepalive_options() -> None:
    options = dict(server_options(ServerConfig(), max_receive_bytes=8 * 2**20))
    assert options["grpc.so_reuseport"] == 0
    assert options["grpc.max_receive_message_length"] == 4 * 8 * 2**20
    assert options["grpc.max_metadata_size"] == options["grpc.absolute_max_metadata_size"] == 16 * 2**10
    assert options["grpc.max_concurrent_streams"] == 256
    assert options["grpc.keepalive_time_ms"] == 30_000
    assert options["grpc.keepalive_timeout_ms"] == options["grpc.http2.ping_timeout_ms"] == 10_000
    assert options["grpc.http2.min_recv_ping_interval_without_data_ms"] == 10_000


def test_connections_have_an_age_only_when_asked() -> None:
    assert "grpc.max_connection_age_ms" not in dict(
        server_options(ServerConfig(), max_receive_bytes=8 * 2**20)
    )
    options = dict(server_options(ServerConfig(max_connection_age_s=60), max_receive_bytes=8 * 2**20))
    assert options["grpc.max_connection_age_ms"] == 60_000
    assert options["grpc.max_connection_age_grace_ms"] == 60_000
