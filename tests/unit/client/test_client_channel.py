"""How connections are configured, as far as it shows without one."""

from __future__ import annotations

import json
from pathlib import Path

from aimass import ConnectionOptions, Tls
from aimass.channel import _IDEMPOTENT_METHODS, retry_config
from aimass.classification.v1 import classification_service_pb2
from aimass.embedding.v1 import embedding_service_pb2
from aimass.generation.v1 import generation_service_pb2
from aimass.model.v1 import model_service_pb2
from google.protobuf.descriptor import ServiceDescriptor


def test_only_unavailable_is_retried() -> None:
    config = retry_config({"a.B": ("C",)}.items(), 3)

    (method_config,) = config["methodConfig"]
    assert method_config["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
    assert method_config["retryPolicy"]["maxAttempts"] == 3
    assert method_config["name"] == [{"service": "a.B", "method": "C"}]
    json.dumps(config)


def test_one_attempt_means_no_retry_policy() -> None:
    assert retry_config({"a.B": ("C",)}.items(), 1) == {}


def test_every_unary_call_is_retried_and_no_stream_is() -> None:
    modules = (
        classification_service_pb2,
        embedding_service_pb2,
        generation_service_pb2,
        model_service_pb2,
    )
    services: list[ServiceDescriptor] = [
        service for module in modules for service in module.DESCRIPTOR.services_by_name.values()
    ]

    unary = {
        service.full_name: {m.name for m in service.methods if not (m.client_streaming or m.server_streaming)}
        for service in services
    }

    retried = {name: set(methods) for name, methods in _IDEMPOTENT_METHODS.items() if name in unary}
    assert retried == unary


def test_secrets_do_not_show_in_a_repr() -> None:
    options = ConnectionOptions(api_key="hush-key", tls=Tls(private_key=b"hush-pem"))

    assert "hush" not in repr(options)


def test_tls_files_are_read(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(b"PEM")

    assert Tls.from_files(root_certificates=ca) == Tls(root_certificates=b"PEM")
