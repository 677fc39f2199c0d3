"""Encryption, credentials, limits and threads of a connection, over real gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
import trustme
from aimass import Connection, ConnectionOptions, GenerationClient, Tls
from aimass.errors import MessageTooLarge, Unavailable
from aimass.testing import FakeGenerationService, running_fakes

SERVER_NAME = "aimass.test"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def root_certificates(authority: trustme.CA) -> bytes:
    return bytes(authority.cert_pem.bytes())


def server_credentials(authority: trustme.CA, *, asks_clients: bool) -> grpc.ServerCredentials:
    issued = authority.issue_cert(SERVER_NAME)
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    roots = authority.cert_pem.bytes() if asks_clients else None
    return grpc.ssl_server_credentials(
        [(issued.private_key_pem.bytes(), chain)], roots, require_client_auth=asks_clients
    )


@pytest.fixture
def tls_address(authority: trustme.CA) -> Iterator[str]:
    credentials = server_credentials(authority, asks_clients=False)
    with running_fakes(FakeGenerationService.saying("safe"), credentials=credentials) as address:
        yield address


@pytest.fixture
def mtls_address(authority: trustme.CA) -> Iterator[str]:
    credentials = server_credentials(authority, asks_clients=True)
    with running_fakes(FakeGenerationService.saying("known"), credentials=credentials) as address:
        yield address


def said(address: str, options: ConnectionOptions) -> str:
    with GenerationClient(address, options) as client:
        return client.complete("Hi", model="m", deadline_s=10).text


def test_a_certificate_of_a_trusted_authority_is_accepted(tls_address: str, root_certificates: bytes) -> None:
    tls = Tls(root_certificates=root_certificates, server_name=SERVER_NAME)

    assert said(tls_address, ConnectionOptions(tls=tls)) == "safe"


@pytest.mark.parametrize("trouble", ["another authority", "another name", "in the clear"])
def test_a_server_that_cannot_prove_itself_is_not_talked_to(
    tls_address: str, root_certificates: bytes, trouble: str
) -> None:
    stranger = bytes(trustme.CA().cert_pem.bytes())
    tls = {
        "another authority": Tls(root_certificates=stranger, server_name=SERVER_NAME),
        "another name": Tls(root_certificates=root_certificates, server_name="else.test"),
        "in the clear": None,
    }[trouble]

    with pytest.raises(Unavailable):
        said(tls_address, ConnectionOptions(tls=tls, max_attempts=1))


def test_a_client_proves_itself_with_its_certificate(
    mtls_address: str, authority: trustme.CA, tmp_path: Path
) -> None:
    mine = authority.issue_cert("caller.test")
    ca, chain, key = (tmp_path / name for name in ("ca.pem", "chain.pem", "key.pem"))
    authority.cert_pem.write_to_path(str(ca))
    mine.cert_chain_pems[0].write_to_path(str(chain))
    mine.private_key_pem.write_to_path(str(key))
    tls = Tls.from_files(
        root_certificates=ca, certificate_chain=chain, private_key=key, server_name=SERVER_NAME
    )

    assert said(mtls_address, ConnectionOptions(tls=tls)) == "known"


def test_a_client_without_a_certificate_is_turned_away(mtls_address: str, root_certificates: bytes) -> None:
    tls = Tls(root_certificates=root_certificates, server_name=SERVER_NAME)

    with pytest.raises(Unavailable):
        said(mtls_address, ConnectionOptions(tls=tls, max_attempts=1))


def test_the_api_key_goes_with_every_call() -> None:
    fake = FakeGenerationService.saying("ok")
    with (
        running_fakes(fake) as address,
        GenerationClient(address, ConnectionOptions(api_key="k-1")) as client,
    ):
        client.complete("Hi", model="m")
        list(client.generate("Hi", model="m"))

    assert [call.metadata["authorization"] for call in fake.calls] == ["Bearer k-1"] * 2


def test_a_message_above_the_limit_never_leaves() -> None:
    fake = FakeGenerationService.saying("ok")
    with (
        running_fakes(fake) as address,
        GenerationClient(address, ConnectionOptions(max_message_bytes=1000)) as client,
        pytest.raises(MessageTooLarge),
    ):
        client.complete("x" * 2000, model="m")

    assert fake.calls == []


def test_one_client_serves_many_threads() -> None:
    fake = FakeGenerationService.saying("for all of you")
    with (
        running_fakes(fake) as address,
        GenerationClient(address) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        whole = threads.map(lambda _: client.complete("Hi", model="m").text, range(24))
        streamed = threads.map(lambda _: "".join(d.text for d in client.generate("Hi", model="m")), range(24))

        assert {*whole, *streamed} == {"for all of you"}


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    with running_fakes(FakeGenerationService.saying("direct")) as address:
        assert said(address, ConnectionOptions(max_attempts=1)) == "direct"


def test_closing_twice_is_once() -> None:
    connection = Connection("127.0.0.1:1")
    connection.close()
    connection.close()


def test_channels_of_their_own_are_connections_of_their_own() -> None:
    """Equal channels share a socket unless told otherwise: the server sees it in the caller's port."""
    peers: list[str] = []

    class Peers(FakeGenerationService):
        def Tokenize(self, request: object, context: grpc.ServicerContext) -> object:  # type: ignore[override]
            peers.append(context.peer())
            return super().Tokenize(request, context)

    with running_fakes(Peers.saying("x")) as address, ExitStack() as open_clients:
        for has_own_connection in (False, False, True, True):
            options = ConnectionOptions(has_own_connection=has_own_connection)
            client = open_clients.enter_context(GenerationClient(address, options))
            client.tokenize("Hi", model="m")

    assert peers[0] == peers[1]
    assert len(set(peers)) == 3
