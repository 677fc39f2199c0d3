"""TLS credentials that follow their files: a renewed certificate is served from the next handshake on.

What cannot be read, or does not belong together, never replaces a certificate that works.
"""

from __future__ import annotations

import logging
import ssl
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
    """The files of a certificate, and what they held when they last belonged together."""

    def __init__(self, cert: Path, key: Path, *, client_ca: Path | None) -> None:
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._stamps: tuple[int, ...] = ()

    def load(self) -> grpc.ServerCertificateConfiguration:
        """Read and check the files. Raises `BadConfig`."""
        try:
            return self._load()
        except ssl.SSLError as error:
            expected = "a certificate chain and its private key in PEM"
            raise BadConfig(f"{self._cert}, {self._key}", expected=expected, got=error.reason) from error
        except OSError as error:
            raise BadConfig("TLS files", expected="readable PEM files", got=str(error.filename)) from error

    def reload(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the new content of changed files; None to go on with the last good one.

        Called by gRPC for each handshake, in a thread of its own: it must not raise.
        """
        try:
            return None if self._current_stamps() == self._stamps else self.load()
        except (OSError, BadConfig) as error:
            logger.error("going on with the last certificate: %s", error)
            return None

    def _load(self) -> grpc.ServerCertificateConfiguration:
        stamps = self._current_stamps()
        # gRPC would take files that do not belong together, such as half a renewal, and fail every handshake.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._cert, self._key, password="")  # never ask the terminal
        if self._client_ca is not None:
            context.load_verify_locations(self._client_ca)
        pair = (self._key.read_bytes(), self._cert.read_bytes())
        roots = None if self._client_ca is None else self._client_ca.read_bytes()
        if (
            self._current_stamps() == stamps
        ):  # else they changed meanwhile: the next handshake reads them again
            self._stamps = stamps
        return grpc.ssl_server_certificate_configuration([pair], roots)

    def _current_stamps(self) -> tuple[int, ...]:
        files = [file for file in (self._cert, self._key, self._client_ca) if file is not None]
        return tuple(stamp for file in files for stamp in (file.stat().st_mtime_ns, file.stat().st_size))
