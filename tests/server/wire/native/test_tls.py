"""TLS, mTLS and certificates that are renewed, on the native front end."""

import datetime as dt
import ipaddress
import os
import pathlib
import socket
import ssl

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

pytest.importorskip("forebay_native", reason="the native front end is not built")

from forebay_server.errors import ConfigError
from forebay_server.wire.port import RESPOND, Tls
from tests.server.wire.native.rig import PATIENCE, exposure, failure, nothing, take, unary

pytestmark = pytest.mark.native


class Authority:
    """A certificate authority for tests."""

    def __init__(self, directory):
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
        self.certificate = self._sign(self.name, self.key.public_key(), x509.BasicConstraints(ca=True, path_length=0))
        self.pem = self.certificate.public_bytes(Encoding.PEM)
        self.path = self._write("ca.pem", self.pem)

    def issue(self, name, *names):
        """Issues a certificate with these subject alternative names. Returns the PEM of both, and their files."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._sign(subject, key.public_key(), x509.SubjectAlternativeName(names))
        chain = made.public_bytes(Encoding.PEM)
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return chain, secret, self._write(f"{name}.pem", chain), self._write(f"{name}.key", secret)

    def _sign(self, subject, public_key, extension):
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateBuilder(self.name, subject, public_key, x509.random_serial_number())
        builder = builder.not_valid_before(now - dt.timedelta(1)).not_valid_after(now + dt.timedelta(1))
        return builder.add_extension(extension, critical=False).sign(self.key, hashes.SHA256())

    def _write(self, name, content):
        path = self.directory / name
        path.write_bytes(content)
        return str(path)


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


LOCALHOST = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


@pytest.mark.parametrize(
    ("names", "identity"),
    [
        ((x509.DNSName("a.test"), x509.UniformResourceIdentifier("spiffe://test/a")), "spiffe://test/a"),
        ((x509.DNSName("b.test"), x509.DNSName("c.test")), "b.test"),
        ((LOCALHOST,), None),
    ],
)
def test_identity_from_mtls(start, dial, authority, names, identity):
    """The identity is the client certificate's first URI, else its first DNS name; without one nobody gets in."""
    *_, certificate, key = authority.issue("server", LOCALHOST)
    wire, address = start(exposure(tls=Tls(certificate=certificate, key=key, client_ca=authority.path)))
    chain, secret, *_ = authority.issue("client", *names)
    call = unary(dial(address, grpc.ssl_channel_credentials(authority.pem, secret, chain)), b"")
    event = take(wire)[0]
    assert event[5].identity == identity
    wire.answer([(RESPOND, event[1], b"known")])
    assert call.result() == b"known"
    stranger = unary(dial(address, grpc.ssl_channel_credentials(authority.pem)), b"", timeout=2)
    assert failure(stranger).code() is grpc.StatusCode.UNAVAILABLE
    nothing(wire)


def served(address, authority):
    """The serial number of the certificate that a handshake shows."""
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.set_alpn_protocols(["h2"])
    host, _, number = address.rpartition(":")
    with (
        socket.create_connection((host, int(number)), timeout=PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname=host) as wrapped,
    ):
        assert wrapped.selected_alpn_protocol() == "h2"
        return x509.load_der_x509_certificate(wrapped.getpeercert(binary_form=True)).serial_number


def test_certificate_renewal(start, dial, authority):
    """New handshakes use renewed certificates, live connections go on; unusable ones leave all as it was."""
    chain, _, certificate, key = authority.issue("server", LOCALHOST)
    wire, address = start(exposure(tls=Tls(certificate=certificate, key=key)))
    channel = dial(address, grpc.ssl_channel_credentials(authority.pem))
    call = unary(channel, b"")
    first = take(wire)[0]
    wire.answer([(RESPOND, first[1], b"1")])
    assert call.result() == b"1"
    assert first[5].identity is None
    old = x509.load_pem_x509_certificate(chain).serial_number
    assert served(address, authority) == old

    _, other_secret, *_ = authority.issue("other", LOCALHOST)
    secret = pathlib.Path(key).read_bytes()
    pathlib.Path(key).write_bytes(other_secret)
    with pytest.raises(ConfigError, match="can't be used together"):
        wire.renew_certificates()
    pathlib.Path(key).unlink()
    with pytest.raises(ConfigError, match="can't be read"):
        wire.renew_certificates()
    assert served(address, authority) == old
    pathlib.Path(key).write_bytes(secret)

    chain, *_ = authority.issue("server", LOCALHOST)
    wire.renew_certificates()
    assert served(address, authority) == x509.load_pem_x509_certificate(chain).serial_number
    call = unary(channel, b"")
    second = take(wire)[0]
    assert second[5] is first[5]
    wire.answer([(RESPOND, second[1], b"2")])
    assert call.result() == b"2"


def test_bad_certificates(start, authority):
    """Certificates that can't be used are one clear sentence at the start."""
    *_, certificate, key = authority.issue("server", LOCALHOST)
    encrypted = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    bad = authority._write("encrypted.key", encrypted)
    empty = authority._write("empty.pem", b"nothing here")
    for files, text in (
        (Tls(certificate="/no/such/file", key=key), "/no/such/file: can't be read"),
        (Tls(certificate=certificate, key=bad), "encrypted keys are not supported"),
        (Tls(certificate=empty, key=key), "no certificate in it"),
        (Tls(certificate=certificate, key=certificate), "no private key in it"),
        (Tls(certificate=certificate, key=key, client_ca=empty), "no certificate in it"),
    ):
        with pytest.raises(ConfigError, match=text):
            start(exposure(tls=files))


def test_large_messages_over_tls(start, dial, authority):
    """Large messages pass TLS in both directions."""
    *_, certificate, key = authority.issue("server", LOCALHOST)
    wire, address = start(exposure(tls=Tls(certificate=certificate, key=key)))
    message = os.urandom(3_000_000)
    call = unary(dial(address, grpc.ssl_channel_credentials(authority.pem)), message)
    event = take(wire)[0]
    wire.answer([(RESPOND, event[1], event[3])])
    assert call.result() == message
