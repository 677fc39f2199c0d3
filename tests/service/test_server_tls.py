"""TLS, client certificates, and certificates that change while the server runs."""

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import trustme
from aimass_serving.echo import PLAN, EchoEngine
from aimass_serving.errors import BadConfig
from aimass_serving.lifecycle import RunningService
from aimass_serving.testing import running_service, write_bundle
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING


class Files:
    """A certificate authority, and the server's files on disk."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.cert, self.key, self.client_ca = folder / "cert.pem", folder / "key.pem", folder / "ca.pem"
        self.client_ca.write_bytes(self.authority.cert_pem.bytes())
        self.renew()

    def renew(self) -> str:
        """Write a new certificate; return its PEM text."""
        issued = self.authority.issue_cert("localhost", "127.0.0.1")
        self.key.write_bytes(issued.private_key_pem.bytes())
        self.cert.write_bytes(issued.cert_chain_pems[0].bytes())
        return issued.cert_chain_pems[0].bytes().decode()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    write_bundle(tmp_path / "store", "m")
    return Files(tmp_path)


@pytest.fixture
async def service(files: Files, tmp_path: Path) -> AsyncIterator[RunningService[EchoEngine]]:
    async with running_service(PLAN, tmp_path / "store", tls_cert=files.cert, tls_key=files.key) as running:
        yield running


async def health(address: str, credentials: grpc.ChannelCredentials) -> int:
    async with grpc.aio.secure_channel(address, credentials) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int((await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)).status)


def trusting(files: Files) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(files.authority.cert_pem.bytes())


def served_certificate(port: int) -> str:
    return ssl.get_server_certificate(("127.0.0.1", port)).strip()


async def test_call_over_tls_is_served(files: Files, service: RunningService[EchoEngine]) -> None:
    assert await health(service.address, trusting(files)) == SERVING


async def test_call_without_tls_is_not_served(service: RunningService[EchoEngine]) -> None:
    async with grpc.aio.insecure_channel(service.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_renewed_certificate_is_served_to_new_connections(
    files: Files, service: RunningService[EchoEngine]
) -> None:
    async with grpc.aio.secure_channel(service.address, trusting(files)) as old_connection:
        stub = health_pb2_grpc.HealthStub(old_connection)
        await stub.Check(health_pb2.HealthCheckRequest())
        renewed = files.renew().strip()
        assert served_certificate(service.port) == renewed
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == SERVING
    assert await health(service.address, trusting(files)) == SERVING


@pytest.mark.parametrize("harm", ["missing", "half-written", "of-another"])
async def test_last_good_certificate_is_kept_when_the_new_one_cannot_be_used(
    files: Files, service: RunningService[EchoEngine], harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = served_certificate(service.port)
    if harm == "missing":
        files.key.unlink()
    elif harm == "of-another":
        files.key.write_bytes(files.authority.issue_cert("localhost").private_key_pem.bytes())
    else:
        files.key.write_bytes(files.key.read_bytes()[:50])
    assert served_certificate(service.port) == before
    assert "going on with the last certificate" in caplog.text
    renewed = files.renew().strip()
    assert served_certificate(service.port) == renewed


async def test_client_certificate_is_asked_for_when_configured(files: Files, tmp_path: Path) -> None:
    client = files.authority.issue_cert("client.example")
    stranger = trustme.CA().issue_cert("client.example")
    settings = {"tls_cert": files.cert, "tls_key": files.key, "tls_client_ca": files.client_ca}
    async with running_service(PLAN, tmp_path / "store", **settings) as service:
        assert await health(service.address, credentials_of(files, client)) == SERVING
        for refused in (trusting(files), credentials_of(files, stranger)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health(service.address, refused)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def credentials_of(files: Files, certificate: trustme.LeafCert) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        files.authority.cert_pem.bytes(),
        certificate.private_key_pem.bytes(),
        certificate.cert_chain_pems[0].bytes(),
    )


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"tls_cert": "cert.pem"}, "expected both or none"),
        ({"tls_key": "key.pem"}, "expected both or none"),
        ({"tls_client_ca": "ca.pem"}, "expected tls_cert and tls_key beside it"),
        ({"tls_cert": "nowhere.pem", "tls_key": "key.pem"}, "expected readable PEM files"),
        ({"tls_cert": "key.pem", "tls_key": "key.pem"}, "expected a certificate chain and its private key"),
        (
            {"tls_cert": "cert.pem", "tls_key": "other.pem"},
            "expected a certificate chain and its private key",
        ),
    ],
)
async def test_files_that_cannot_work_are_a_start_failure(
    files: Files, tmp_path: Path, settings: dict[str, str], complaint: str
) -> None:
    other = files.authority.issue_cert("localhost").private_key_pem
    (tmp_path / "other.pem").write_bytes(other.bytes())
    paths = {name: tmp_path / file for name, file in settings.items()}
    with pytest.raises(BadConfig, match=complaint):
        async with running_service(PLAN, tmp_path / "store", **paths):
            pass
