"""The scrape endpoint as clients meet it, slow and odd ones included."""

import gzip
import http.client
import socket
import time

import pytest

from forebay_server.errors import ConfigError
from forebay_server.telemetry import scrape
from forebay_server.telemetry.formats import Format
from forebay_server.telemetry.scrape import ScrapeServer

BODY = b"forebay_serving 1\n" * 100


@pytest.fixture
def served():
    """An endpoint that serves `BODY`, or raises what is put into `faults`."""
    faults = []

    def render(chosen):
        if faults:
            raise faults[0]
        return (b"" if chosen is Format.TEXT else chosen.name.encode() + b" ") + BODY

    server = ScrapeServer("127.0.0.1:0", render)
    server.start()
    server.faults = faults
    yield server
    server.close()


def ask(server, method="GET", path="/metrics", **headers):
    """(status, headers, body) of a request."""
    connection = http.client.HTTPConnection(server.address, timeout=5)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    found = response.status, dict(response.getheaders()), response.read()
    connection.close()
    return found


def test_formats(served):
    """Prometheus' own by default, another one if it is accepted, packed if that is."""
    status, headers, body = ask(served)
    assert (status, body) == (200, BODY)
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    status, headers, body = ask(served, accept="application/openmetrics-text; version=1.0.0,text/plain;q=0.5")
    assert body == b"OPENMETRICS " + BODY
    assert headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    protobuf = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
    status, headers, body = ask(served, accept=protobuf)
    assert body == b"PROTOBUF " + BODY
    assert headers["Content-Type"] == protobuf
    status, headers, body = ask(served, accept_encoding="gzip")
    assert (headers["Content-Encoding"], gzip.decompress(body)) == ("gzip", BODY)
    assert ask(served, path="/metrics?a=b")[0] == 200


def test_other_requests(served):
    """HEAD has no body, other paths are not there, other methods are not allowed."""
    status, headers, body = ask(served, "HEAD")
    assert (status, headers["Content-Length"], body) == (200, str(len(BODY)), b"")
    assert ask(served, path="/")[0] == 404
    assert ask(served, "HEAD", path="/")[2] == b""
    status, headers, _ = ask(served, "POST")
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "sent", [b"nonsense\r\n\r\n", b"GET /metrics\r\n\r\n", b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * 9999]
)
def test_nonsense_is_refused(served, sent):
    """With an answer, and without harm to the next one."""
    with socket.create_connection(served.address.rsplit(":", 1), timeout=5) as client:
        client.sendall(sent)
        assert client.recv(1000).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert ask(served)[0] == 200


def test_a_failed_scrape_is_told_and_forgotten(served):
    """503 without the exception's text, and the next one goes well."""
    served.faults.append(TimeoutError("secret"))
    status, _, body = ask(served)
    assert (status, b"secret" in body) == (503, False)
    served.faults.clear()
    assert ask(served)[0] == 200


def test_slow_clients_keep_nobody_waiting(served, monkeypatch):
    """Connections that send nothing, or drop by drop, or do not read, are served around and cut in the end."""
    monkeypatch.setattr(scrape, "PATIENCE", 1.0)
    address = served.address.rsplit(":", 1)
    silent = [socket.create_connection(address, timeout=5) for _ in range(10)]
    for each in silent[:5]:
        each.sendall(b"GET /met")
    began = time.monotonic()
    assert ask(served)[0] == 200
    assert time.monotonic() - began < 0.5
    for each in silent:
        assert each.recv(1) == b""  # cut
        each.close()
    assert 0.5 < time.monotonic() - began < 4.0


def test_connections_are_bounded(served):
    """The oldest gives way to the newest."""
    address = served.address.rsplit(":", 1)
    silent = [socket.create_connection(address, timeout=5) for _ in range(scrape.MOST + 8)]
    assert ask(served)[0] == 200
    assert silent[0].recv(1) == b""
    silent[-1].sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    assert silent[-1].recv(100).startswith(b"HTTP/1.1 200 OK")
    for each in silent:
        each.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:http:x", "nowhere.invalid:1", "127.0.0.1:99999"])
def test_wrong_addresses(address):
    """One sentence that names the setting."""
    with pytest.raises(ConfigError, match=r"^telemetry\.prometheus\.address: "):
        ScrapeServer(address, lambda _: b"").start()


def test_a_taken_port(served):
    """Is an error at the start, in the words that the front end has for it."""
    with pytest.raises(ConfigError) as caught:
        ScrapeServer(served.address, lambda _: b"").start()
    place = f"telemetry.prometheus.address: {served.address}"
    assert str(caught.value) == f"{place} is taken: another process listens there"


def test_ipv6():
    """In brackets."""
    server = ScrapeServer("[::1]:0", lambda _: BODY)
    try:
        server.start()
    except ConfigError:
        pytest.skip("no IPv6 here")
    assert server.address.startswith("[::1]:")
    assert ask(server)[0] == 200
    server.close()
