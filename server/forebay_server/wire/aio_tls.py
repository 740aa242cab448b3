"""Certificates of `wire.aio`: reads the files of an exposure, checks them, and renews them while it serves.

grpcio takes whatever it is given and fails at each handshake; so the files are first loaded by `ssl`, which says what
is wrong with them. Live connections are not touched by a renewal.
"""

import ssl
from pathlib import Path

import grpc

from forebay_server.errors import ConfigError
from forebay_server.wire.port import Tls


class Certificates:
    """The certificate, key and client CAs of one exposure."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._next: grpc.ServerCertificateConfiguration | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """Reads the files for the first time.

        Raises:
            ConfigError: They can't be used.
        """
        return grpc.dynamic_ssl_server_credentials(
            _load(self._tls),
            self._fetch,  # type: ignore[arg-type]  # the stubs forget that None means "unchanged"
            require_client_authentication=self._tls.client_ca is not None,
        )

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Reads the files again, without using them yet.

        Raises:
            ConfigError: They can't be used.
        """
        return _load(self._tls)

    def use(self, configuration: grpc.ServerCertificateConfiguration) -> None:
        """Lets new handshakes use what `read` returned."""
        self._next = configuration

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by grpcio at each handshake, in a thread of its own; None: as before."""
        configuration, self._next = self._next, None
        return configuration


def _load(tls: Tls) -> grpc.ServerCertificateConfiguration:
    certificate, key = _read(tls.certificate), _read(tls.key)
    client_ca = None if tls.client_ca is None else _read(tls.client_ca)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(tls.certificate, tls.key, password=_no_password)
    except (ssl.SSLError, ValueError) as exc:
        raise ConfigError(f"{tls.certificate} and {tls.key} can't be used together: {_reason(exc)}") from exc
    if tls.client_ca is not None:
        try:
            context.load_verify_locations(tls.client_ca)
        except (ssl.SSLError, ValueError) as exc:
            raise ConfigError(f"{tls.client_ca}: not a CA certificate: {_reason(exc)}") from exc
    return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as exc:
        raise ConfigError(f"{path}: can't be read: {exc.strerror}") from exc


def _no_password() -> str:
    raise ConfigError("encrypted private keys are not supported: decrypt the key, and protect its file instead")


def _reason(exc: Exception) -> str:
    return getattr(exc, "reason", None) or str(exc)
