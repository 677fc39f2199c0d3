"""TLS credentials that follow their files: a renewed certificate is served from the next handshake on."""

from __future__ import annotations

import logging
from pathlib import Path

import grpc

from aimass_serving.config import ServerConfig
from aimass_serving.errors import BadConfig

logger = logging.getLogger(__name__)


def server_credentials(config: ServerConfig) -> grpc.ServerCredentials | None:
    """Return credentials for the configured files; None when none are configured. Raises `BadConfig`."""
    if config.tls_cert is None and config.tls_key is None:
        if config.tls_client_ca is not None:
            raise BadConfig("tls_client_ca", expected="tls_cert and tls_key beside it", got="neither")
        return None
    if config.tls_cert is None or config.tls_key is None:
        raise BadConfig("tls_cert, tls_key", expected="both or none", got="one of them")
    files = CertificateFiles(config.tls_cert, config.tls_key, client_ca=config.tls_client_ca)
    return grpc.dynamic_ssl_server_credentials(
        files.load(),
        files.reload,  # type: ignore[arg-type] # None is allowed, and means no change
        require_client_authentication=config.tls_client_ca is not None,
    )


class CertificateFiles:
    """The files of a certificate, and what they held when they were last readable."""

    def __init__(self, cert: Path, key: Path, *, client_ca: Path | None) -> None:
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._stamps: tuple[int, ...] = ()

    def load(self) -> grpc.ServerCertificateConfiguration:
        """Read the files. Raises `BadConfig` naming the one that cannot be read."""
        self._stamps = self._current_stamps()
        chain = (_read(self._key), _read(self._cert))
        roots = None if self._client_ca is None else _read(self._client_ca)
        return grpc.ssl_server_certificate_configuration([chain], roots)

    def reload(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the new content of changed files; None to go on with the last good one.

        Called by gRPC for each handshake, in a thread of its own: it must not raise.
        """
        try:
            return None if self._current_stamps() == self._stamps else self.load()
        except (OSError, BadConfig) as error:
            logger.error("TLS files cannot be read, going on with the last certificate: %s", error)
            return None

    def _current_stamps(self) -> tuple[int, ...]:
        files = [file for file in (self._cert, self._key, self._client_ca) if file is not None]
        return tuple(stamp for file in files for stamp in (file.stat().st_mtime_ns, file.stat().st_size))


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadConfig("TLS file", expected="a readable PEM file", got=str(file)) from error
