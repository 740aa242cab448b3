"""What the SDK's exporters do with a message that is ready: they send it as it is, and do all else as they always do.

A release of the SDK that does it otherwise fails here.
"""

import gzip
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from forebay_server.telemetry.tracing.sender_grpc import GrpcSender
from forebay_server.telemetry.tracing.sender_http import HttpSender
from tests.e2e.conftest import eventually
from tests.wire.conftest import Authority

MESSAGE = trace_service_pb2.ExportTraceServiceRequest(resource_spans=[{"schema_url": "x" * 2000}]).SerializeToString()
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
NAMES = ("OTEL_EXPORTER_OTLP", "OTEL_EXPORTER_OTLP_TRACES")
UNAVAILABLE = {"grpc": grpc.StatusCode.UNAVAILABLE, "http": 503}
INVALID = {"grpc": grpc.StatusCode.INVALID_ARGUMENT, "http": 400}


class GrpcEnd(grpc.GenericRpcHandler):
    """Takes bytes over gRPC; `answers` are the codes to begin with, then all is well."""

    def __init__(self, authority=None):
        self.bodies, self.headers, self.answers = [], [], []
        self._server = grpc.server(ThreadPoolExecutor(2), handlers=[self])
        if authority is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
            self.endpoint = f"http://127.0.0.1:{port}"
        else:
            certificate, key = (Path(path).read_bytes() for path in authority.issue("localhost"))
            port = self._server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
            self.endpoint = f"https://localhost:{port}"
        self._server.start()

    def service(self, details):
        """The handler of the one method."""
        return grpc.unary_unary_rpc_method_handler(self._take) if details.method == EXPORT else None

    def _take(self, body, context):
        self.bodies.append(body)
        self.headers.append(dict(context.invocation_metadata()))
        if self.answers:
            context.abort(self.answers.pop(0), "as told")
        return b""

    def sender(self):
        """Who sends here."""
        return GrpcSender(self.endpoint)

    def close(self):
        """Ends it."""
        self._server.stop(0).wait()


class HttpEnd:
    """Takes bytes over HTTP; `answers` are the statuses to begin with, then all is well."""

    def __init__(self):
        self.bodies, self.headers, self.answers = [], [], []
        end = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                end.bodies.append(self.rfile.read(int(self.headers["content-length"])))
                end.headers.append({key.lower(): value for key, value in self.headers.items()})
                self.send_response(end.answers.pop(0) if end.answers else 200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def sender(self):
        """Who sends here."""
        return HttpSender(self.endpoint)

    def close(self):
        """Ends it."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(params=["grpc", "http"])
def protocol(request):
    """Each protocol."""
    return request.param


@pytest.fixture
def end(protocol):
    """Where messages go."""
    made = {"grpc": GrpcEnd, "http": HttpEnd}[protocol]()
    yield made
    made.close()


@pytest.fixture
def sender(end):
    """Who sends them."""
    made = end.sender()
    yield made
    made.shutdown()


def test_a_message_arrives_as_it_is(end, sender):
    """One after the other, not a byte changed."""
    assert sender.send(MESSAGE)
    assert sender.send(MESSAGE * 3)
    assert end.bodies == [MESSAGE, MESSAGE * 3]


def test_what_the_collector_can_take_later_is_sent_again(end, sender, protocol):
    """The same message, after a while, until it is taken."""
    end.answers[:] = [UNAVAILABLE[protocol]]
    assert sender.send(MESSAGE)
    assert end.bodies == [MESSAGE, MESSAGE]


def test_what_the_collector_refuses_is_not_sent_again(end, sender, protocol):
    """It is lost, and the next one goes through."""
    end.answers[:] = [INVALID[protocol]]
    assert not sender.send(MESSAGE)
    assert sender.send(MESSAGE)
    assert len(end.bodies) == 2


@pytest.mark.parametrize("name", NAMES)
def test_headers_of_the_variables_are_sent(end, monkeypatch, name):
    """Those of all signals, and those of traces."""
    monkeypatch.setenv(f"{name}_HEADERS", "x-token=abc")
    sender = end.sender()
    assert sender.send(MESSAGE)
    sender.shutdown()

    assert end.headers[0]["x-token"] == "abc"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("protocol", "packing"), [("grpc", "gzip"), ("http", "gzip"), ("http", "deflate")])
def test_messages_are_packed_as_the_variables_say(end, monkeypatch, name, protocol, packing):
    """gRPC's server unpacks by itself and tells no handler how it came, but for what it would accept."""
    monkeypatch.setenv(f"{name}_COMPRESSION", packing)
    sender = end.sender()
    assert sender.send(MESSAGE)
    sender.shutdown()
    (body,), (headers,) = end.bodies, end.headers

    if protocol == "http":
        assert headers["content-encoding"] == packing
        assert len(body) < len(MESSAGE) / 10
        body = {"gzip": gzip.decompress, "deflate": zlib.decompress}[packing](body)
    assert body == MESSAGE


def test_the_endpoint_can_come_from_the_variables(end, monkeypatch, protocol):
    """Without one in the settings; over HTTP the path is added to that of all signals."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", end.endpoint.removesuffix("/v1/traces"))
    sender = GrpcSender(None) if protocol == "grpc" else HttpSender(None)
    assert sender.send(MESSAGE)
    sender.shutdown()

    assert end.bodies == [MESSAGE]


def test_a_certificate_of_the_variables_is_trusted(tmp_path, monkeypatch):
    """And without it the collector is not believed."""
    authority = Authority(tmp_path)
    end = GrpcEnd(authority)
    try:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3")
        stranger = end.sender()
        assert not stranger.send(MESSAGE)
        stranger.shutdown()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", authority.ca_path)
        sender = end.sender()
        assert sender.send(MESSAGE)
        sender.shutdown()
    finally:
        end.close()

    assert end.bodies == [MESSAGE]


@pytest.mark.parametrize("kind", [GrpcSender, HttpSender])
def test_a_silent_collector_is_given_its_time(silent, monkeypatch, kind):
    """Then the message is lost."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.3")
    sender = kind(silent)
    began = time.monotonic()
    assert not sender.send(MESSAGE)
    sender.shutdown()

    assert time.monotonic() - began >= 0.25


def test_the_end_does_not_wait_for_tries(nobody):
    """A collector that is away is tried again; the end of the server interrupts that."""
    sender = GrpcSender(nobody)
    taken = []
    thread = threading.Thread(target=lambda: taken.append(sender.send(MESSAGE)))
    thread.start()
    time.sleep(0.2)
    sender.shutdown()
    eventually(lambda: not thread.is_alive(), "it gives up", 8.0)

    assert taken == [False]
