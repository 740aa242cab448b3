"""TLS and mutual TLS, on both clients."""

import datetime as dt
import ipaddress

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from forebay_client import Tls, Unavailable


def issue(name, issuer=None, issuer_key=None):
    """A certificate and its key; self-signed without an issuer."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), True)
        .sign(issuer_key or key, hashes.SHA256())
    )
    return certificate, key


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """PEM files: ca, server, client."""
    folder = tmp_path_factory.mktemp("tls")
    ca, ca_key = issue("ca.example")
    pairs = {
        "ca": (ca, ca_key),
        "server": issue("server.example", ca, ca_key),
        "client": issue("client.example", ca, ca_key),
    }
    for name, (certificate, key) in pairs.items():
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
    return folder


@pytest.fixture
def mutual(files, make_server):
    """A server that wants client certificates."""
    return make_server(
        grpc.ssl_server_credentials(
            [((files / "server.key").read_bytes(), (files / "server.pem").read_bytes())],
            root_certificates=(files / "ca.pem").read_bytes(),
            require_client_auth=True,
        )
    )


def predict(surface, address, tls):
    client = surface(address, tls=tls)
    try:
        return client.predict("double", {"x": np.ones((1, 2), np.float32)}, deadline=5).array.tolist()
    finally:
        client.close()


def test_mutual_tls_connects(surface, mutual, files):
    """With the server's CA and a certificate of our own."""
    tls = Tls(ca=files / "ca.pem", certificate=files / "client.pem", key=str(files / "client.key"))

    assert predict(surface, mutual.address, tls) == [[2, 2]]


def test_the_name_of_the_server_can_be_said(surface, mutual, files):
    """And is checked."""
    options = {"ca": files / "ca.pem", "certificate": files / "client.pem", "key": files / "client.key"}

    assert predict(surface, mutual.address, Tls(server_name="server.example", **options)) == [[2, 2]]
    with pytest.raises(Unavailable):
        predict(surface, mutual.address, Tls(server_name="other.example", **options))


def test_without_a_certificate_there_is_no_connection(surface, mutual, files):
    """It ends as any connection that can't be made."""
    with pytest.raises(Unavailable):
        predict(surface, mutual.address, Tls(ca=files / "ca.pem"))


def test_a_certificate_needs_its_key():
    """Half of a pair is a mistake."""
    with pytest.raises(ValueError, match="needs both"):
        Tls(certificate="a.pem")


def test_a_file_that_is_not_there_is_an_os_error(surface):
    """When the client is made, not at the first call."""
    with pytest.raises(FileNotFoundError):
        surface("localhost:1", tls=Tls(ca="/nowhere/ca.pem"))
