"""One message over real sockets: what arrives, and every limit."""

import socket
import ssl
import sys
import threading
import time
from ipaddress import ip_address

import pytest

from forebay_server.errors import ConfigError
from forebay_server.jobs.webhooks.targets import parse
from forebay_server.jobs.webhooks.transport import MAX_ANSWER, Answer, Transport, Undeliverable
from tests.certificates import Authority
from tests.server.jobs.webhooks.conftest import PATIENCE, RawReceiver, Receiver
from tests.waiting import eventually

LOOPBACK = ip_address("127.0.0.1")
LIMIT = 0.4  # seconds for those messages that are to run into it
OK = b"HTTP/1.1 200 OK\r\n"


def make_transport(timeout=PATIENCE, **options):
    """A transport that finds every name on this machine."""
    return Transport(timeout=timeout, allow_private=True, **({"resolve": lambda _host, _timeout: [LOOPBACK]} | options))


def post(url, timeout=PATIENCE, **options):
    """Sends a message."""
    return make_transport(timeout, **options).post(parse(url), {"x-test": "yes"}, b'{"a":1}')


def request_of(connection):
    """Reads a request up to its end, and all of its body."""
    data = b""
    while not data.endswith(b'{"a":1}'):
        data += connection.recv(65536)
    return data


def test_what_arrives(receiver):
    """One POST with the path as it stands, the body, and no header that was not asked for."""
    assert post(f"{receiver.origin}/a%20b/?q=1&r") == Answer(204, "")

    (received,) = receiver.received
    assert received.path == "/a%20b/?q=1&r"
    assert received.body == b'{"a":1}'
    assert received.headers == {
        "host": f"127.0.0.1:{receiver.port}",
        "connection": "close",
        "x-test": "yes",
        "content-length": "7",
    }


def test_the_answer(receiver):
    """The status and Retry-After, whatever its case."""
    receiver.answers.append((503, {"reTry-aFter": "120"}))
    assert post(receiver.origin) == Answer(503, "120")


def test_ipv6(closing):
    """An address in brackets is connected to, and named so in the Host header."""
    seen = []
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection:
                seen.append(request_of(connection))
                connection.sendall(OK + b"\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        port = listener.getsockname()[1]
        assert post(f"http://[::1]:{port}/").status == 200
        thread.join()
    assert f"\r\nHost: [::1]:{port}\r\n".encode() in seen[0]


def test_the_next_address_is_tried(receiver):
    """A host is reached if any of its addresses is."""
    refusing = ip_address("127.0.0.9")
    assert post(f"http://hooks.example.com:{receiver.port}/", resolve=lambda *_: [refusing, LOOPBACK]).status == 204


def test_each_message_has_its_own_connection(closing):
    """No connection is used twice, even if the receiver would keep it."""

    def serve(connection, _):
        while request_of(connection):
            connection.sendall(OK + b"Connection: keep-alive\r\nContent-Length: 0\r\n\r\n")

    receiver, transport = closing(RawReceiver(serve)), make_transport()
    for _ in range(3):
        transport.post(parse(receiver.origin), {}, b'{"a":1}')
    assert receiver.connections == 3
    assert not transport._sockets


class TestTls:
    """The name is verified, though the connection goes to an address."""

    def test_the_certificate_of_the_name(self, closing, authority, trusting):
        """The receiver sees the name (SNI) and its certificate is verified for it."""
        receiver = closing(Receiver(authority.issue("hooks", dns=["hooks.example.com"])))
        assert post(f"https://hooks.example.com:{receiver.port}/", context=trusting).status == 204
        assert receiver.received[0].headers["host"] == f"hooks.example.com:{receiver.port}"

    def test_the_certificate_of_another_name(self, closing, authority, trusting):
        """Another name's certificate is refused, and nothing is sent."""
        receiver = closing(Receiver(authority.issue("other", dns=["other.example.com"])))
        with pytest.raises(Undeliverable, match="Hostname mismatch"):
            post(f"https://hooks.example.com:{receiver.port}/", context=trusting)
        assert receiver.received == []

    def test_an_authority_that_is_not_trusted(self, closing, tmp_path, trusting):
        """So is one that nobody vouches for; also with the certificates that are trusted by default."""
        receiver = closing(Receiver(Authority(tmp_path, "strangers").issue("hooks", dns=["hooks.example.com"])))
        for options in ({"context": trusting}, {}):
            with pytest.raises(Undeliverable, match="CERTIFICATE_VERIFY_FAILED"):
                post(f"https://hooks.example.com:{receiver.port}/", **options)
        assert receiver.received == []

    def test_old_versions(self, authority, trusting):
        """TLS before 1.2 is not spoken."""
        assert trusting.minimum_version >= ssl.TLSVersion.TLSv1_2
        assert make_transport()._context.minimum_version >= ssl.TLSVersion.TLSv1_2
        assert make_transport()._context.verify_mode == ssl.CERT_REQUIRED
        assert make_transport()._context.check_hostname

    def test_a_receiver_without_tls(self, receiver):
        """Plain HTTP on the port of HTTPS is an error."""
        with pytest.raises(Undeliverable, match="SSL"):
            post(f"https://127.0.0.1:{receiver.port}/")

    def test_a_handshake_that_does_not_end(self, closing):
        """The limit holds inside the handshake."""
        receiver = closing(RawReceiver(lambda connection, _: time.sleep(5)))
        took, fault = timed(f"https://127.0.0.1:{receiver.port}/")
        assert "no answer in 0.4 s" in fault
        assert took < LIMIT + 1.0


def timed(url):
    """How long a message took with a short limit, and why it failed."""
    began = time.monotonic()
    with pytest.raises(Undeliverable) as caught:
        post(url, timeout=LIMIT)
    return time.monotonic() - began, str(caught.value)


def drip(data, pause=0.05):
    """Sends a byte now and then."""

    def serve(connection, receiver):
        request_of(connection)
        drip_on(connection, receiver, data, pause)

    return serve


def drip_on(connection, receiver, data, pause):
    """Goes on to do so."""
    for byte in data:
        connection.sendall(bytes([byte]))
        receiver.bytes_sent += 1
        time.sleep(pause)


def silent(connection, _):
    """Says nothing."""
    connection.recv(65536)
    time.sleep(5)


def informing(connection, _):
    """Says 102 Processing now and then."""
    while True:
        connection.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")
        time.sleep(0.05)


@pytest.mark.parametrize(
    "serve", [silent, drip(OK + b"X-Drip: " + b"x" * 1000), informing], ids=["silent", "drip", "1xx"]
)
def test_the_limit_on_time(closing, serve):
    """A receiver that says something now and then has no more time than one that says nothing."""
    receiver = closing(RawReceiver(serve))
    took, fault = timed(receiver.origin)
    assert fault == "no answer in 0.4 s"
    assert LIMIT - 0.01 <= took < LIMIT + 1.0


@pytest.mark.parametrize("pause", [0.002, 5.0], ids=["drips", "stalls"])
def test_a_body_that_does_not_end(closing, pause):
    """The status has arrived, so the message has; its body is waited for up to the limit only."""

    def serve(connection, receiver):
        request_of(connection)
        connection.sendall(OK + b"\r\n")
        drip_on(connection, receiver, b"x" * 1000, pause)

    receiver = closing(RawReceiver(serve))
    began = time.monotonic()
    assert post(receiver.origin, timeout=LIMIT).status == 200
    assert time.monotonic() - began < LIMIT + 1.0
    assert receiver.bytes_sent < 1000


def test_a_body_without_end(closing):
    """No more is read than the limit; the receiver finds the connection closed."""

    def serve(connection, receiver):
        request_of(connection)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        connection.sendall(OK + b"\r\n")
        while receiver.bytes_sent < 1 << 30:
            receiver.bytes_sent += connection.send(b"x" * 4096)

    receiver = closing(RawReceiver(serve))
    began = time.monotonic()
    assert post(receiver.origin).status == 200
    assert time.monotonic() - began < PATIENCE / 2
    assert receiver.bytes_sent < 32 << 20  # what was sent and not read is in the buffers of the system


def test_a_head_without_end(closing):
    """Neither can headers be longer than that."""

    def serve(connection, receiver):
        request_of(connection)
        connection.sendall(OK)
        while receiver.bytes_sent < 1 << 30:
            receiver.bytes_sent += connection.send(b"X-More: " + b"x" * 4086 + b"\r\n")

    receiver = closing(RawReceiver(serve))
    with pytest.raises(Undeliverable, match=f"an answer of more than {MAX_ANSWER} bytes"):
        post(receiver.origin)
    assert receiver.bytes_sent < 32 << 20


def test_a_compressed_body(closing):
    """Nothing is unpacked."""

    def serve(connection, _):
        request_of(connection)
        connection.sendall(OK + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope")

    assert post(closing(RawReceiver(serve)).origin).status == 200


@pytest.mark.parametrize(
    "answer",
    [
        *(
            b"",
            b"SSH-2.0-OpenSSH_9\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
            b"HTTP/1.1 99999 OK\r\n\r\n",
            b"\x00" * 100,
        ),
        *(
            b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
            b"HTTP/1.1 200 OK",
        ),
    ],
)
def test_what_is_no_answer(closing, answer):
    """A receiver that does not speak HTTP has not received it."""

    def serve(connection, _):
        request_of(connection)
        connection.sendall(answer)

    with pytest.raises(Undeliverable):
        post(closing(RawReceiver(serve)).origin)


def test_a_refused_connection():
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Undeliverable, match=r"can't connect: .*refused"):
        post(f"http://127.0.0.1:{port}/")


def test_a_connection_that_does_not_come_about():
    """A full backlog answers nothing: the limit holds there too."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        took, fault = timed(f"http://127.0.0.1:{port}/")
        for filler in fillers:
            filler.close()
    assert "can't connect" in fault or "no answer" in fault
    assert took < LIMIT + 1.0


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [(OSError("nothing"), "the host can't be found"), (TimeoutError(), "the lookup of the host took too long")],
)
def test_a_name_that_is_not_found(fault, sentence):
    """What the resolver says, in words."""

    def fail(*_):
        raise fault

    with pytest.raises(Undeliverable, match=sentence):
        post("http://hooks.example.com/", resolve=fail)


def test_closing_cuts_what_is_under_way(closing):
    """Both a plain and a TLS connection that hang end at once, and nothing is sent afterwards."""
    receiver, transport = closing(RawReceiver(silent)), make_transport()
    ended = []

    def send(scheme):
        began = time.monotonic()
        with pytest.raises(Undeliverable):
            transport.post(parse(f"{scheme}://127.0.0.1:{receiver.port}/"), {}, b"{}")
        ended.append(time.monotonic() - began)

    threads = [threading.Thread(target=send, args=(scheme,)) for scheme in ("http", "https")]
    for thread in threads:
        thread.start()
    eventually(lambda: receiver.connections == 2 and len(transport._sockets) == 2)
    transport.close()
    for thread in threads:
        thread.join(2.0)
    assert len(ended) == 2
    with pytest.raises(Undeliverable, match="the server shuts down"):
        transport.post(parse(receiver.origin), {}, b"{}")
    assert receiver.connections == 2
    assert not transport._sockets


def test_without_the_extra(monkeypatch):
    """Without the HTTP client, the start ends with one sentence."""
    monkeypatch.setitem(sys.modules, "httpcore", None)
    with pytest.raises(ConfigError, match=r"install forebay\[webhooks\]"):
        make_transport()
