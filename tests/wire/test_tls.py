"""TLS: versions, client certificates and the identity in them, renewal."""

import ssl
import threading
from pathlib import Path

import grpc
import pytest

from forebay_server.errors import ConfigError
from forebay_server.wire.port import CALL, Exposure, Tls

TEST = "/wire.test.Test/"


def test_tls(serve_tls, credentials, call, common_name):
    """A server with a certificate speaks HTTP/2 over TLS; its callers have no identity."""
    server = serve_tls()
    assert common_name(server) == "server"
    assert call(server.channel(credentials=credentials()), "Echo", b"a") == b"a"
    assert server.of(CALL)[0][5].identity is None


def test_plain_callers_are_refused(serve_tls, credentials, call, error):
    """A caller without TLS gets nothing from a TLS exposure; others are not harmed."""
    server = serve_tls()
    assert error(server.channel(), "Echo", timeout=3).code() is grpc.StatusCode.UNAVAILABLE
    assert call(server.channel(credentials=credentials()), "Echo", b"good") == b"good"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
def test_old_versions_are_refused(serve_tls, common_name):
    """TLS 1.2 and 1.3 are spoken; 1.1 is not."""
    server = serve_tls()
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        assert common_name(server, (version, version)) == "server"
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        common_name(server, (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1))


def test_mutual_tls_refuses_strangers(serve_tls, credentials, authority, strange_authority, call, error):
    """With client CAs, a caller needs a certificate of theirs."""
    server = serve_tls(mutual=True)
    without = server.channel(credentials=credentials())
    strange = server.channel(credentials=credentials(strange_authority.issue("eve")))
    known = server.channel(credentials=credentials(authority.issue("alice")))
    assert error(without, "Echo", timeout=3).code() is grpc.StatusCode.UNAVAILABLE
    assert error(strange, "Echo", timeout=3).code() is grpc.StatusCode.UNAVAILABLE
    assert call(known, "Echo", b"good") == b"good"
    assert len(server.of(CALL)) == 1


@pytest.mark.parametrize(
    ("uris", "dns", "identity"),
    [
        (["spiffe://forebay/alice", "https://two.example"], ["alice.example"], "spiffe://forebay/alice"),
        ([], ["alice.example", "two.example"], "alice.example"),
        ([], [], None),
    ],
)
def test_the_identity_of_a_caller(serve_tls, credentials, authority, call, uris, dns, identity):
    """A caller is who its certificate's first URI name says, else its first DNS name; an IP address is nobody."""
    server = serve_tls(mutual=True)
    pair = authority.issue("alice", uris=uris, dns=dns)
    assert call(server.channel(credentials=credentials(pair)), "Echo") == b""
    assert server.of(CALL)[0][5].identity == identity


def test_certificates_are_renewed(serve_tls, credentials, authority, call, common_name):
    """New handshakes get the new certificate; live connections and their streams go on."""
    server = serve_tls()
    channel = server.channel(credentials=credentials())
    more = threading.Event()

    def requests():
        yield b"before"
        more.wait(10)
        yield b"after"

    stream = channel.stream_stream(TEST + "Chat")(requests(), timeout=10)
    assert next(stream) == b"before"
    authority.issue("renewed", file="server")
    assert common_name(server) == "server"
    server.wire.renew_certificates()
    assert common_name(server) == "renewed"
    assert common_name(server) == "renewed"
    more.set()
    assert list(stream) == [b"after"]
    assert call(channel, "Echo", b"good") == b"good"


def test_client_authorities_are_renewed(serve_tls, credentials, authority, strange_authority, call, error):
    """A renewal replaces the client CAs, too."""
    server = serve_tls(mutual=True)
    newcomer = credentials(strange_authority.issue("bob"))
    assert error(server.channel(credentials=newcomer), "Echo", timeout=3).code() is grpc.StatusCode.UNAVAILABLE
    own, strange = Path(authority.ca_path), Path(strange_authority.ca_path)
    own.write_bytes(own.read_bytes() + strange.read_bytes())
    server.wire.renew_certificates()
    assert call(server.channel(credentials=newcomer), "Echo", b"good") == b"good"


@pytest.mark.parametrize("damage", ["missing", "garbage", "mismatch"])
def test_a_bad_renewal_changes_nothing(serve_tls, authority, tmp_path, common_name, damage):
    """Files that can't be used are one clear error, and the old certificate stays."""
    server = serve_tls()
    if damage == "missing":
        (tmp_path / "server.pem").unlink()
    elif damage == "garbage":
        (tmp_path / "server.pem").write_text("not a certificate")
    else:
        (tmp_path / "server.pem").write_bytes((tmp_path / "ca.pem").read_bytes())
    with pytest.raises(ConfigError) as caught:
        server.wire.renew_certificates()
    assert "server.pem" in str(caught.value)
    assert common_name(server) == "server"


@pytest.mark.parametrize("part", ["certificate", "key", "client_ca"])
def test_unreadable_files_are_an_error_at_start(serve, authority, part):
    """A file that can't be read is named."""
    certificate, key = authority.issue("server")
    files = {"certificate": certificate, "key": key, "client_ca": authority.ca_path, part: "/no/such/file"}
    exposure = Exposure(name="public", address="127.0.0.1:0", methods=frozenset(), tls=Tls(**files))
    with pytest.raises(ConfigError, match="/no/such/file"):
        serve(exposures=[exposure])


def test_encrypted_keys_are_an_error(serve, authority):
    """An encrypted private key is refused with a sentence that says so."""
    certificate, key = authority.issue("server")
    authority.encrypt(key)
    exposure = Exposure(
        name="public", address="127.0.0.1:0", methods=frozenset(), tls=Tls(certificate=certificate, key=key)
    )
    with pytest.raises(ConfigError, match=r"(?i)encrypted"):
        serve(exposures=[exposure])
