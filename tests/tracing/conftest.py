"""Receivers of OTLP over gRPC and HTTP, independent of the exporters; servers that send to them; and what came."""

import importlib.util
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from forebay_server.app.server import Server
from forebay_server.config.tree import (
    Config,
    ExposureConfig,
    ModelConfig,
    ServerConfig,
    TelemetryConfig,
    TracingConfig,
)
from tests.serving import Caller, Process
from tests.waiting import eventually, free_port

NATIVE = importlib.util.find_spec("forebay_native") is not None

PARENT = "0af7651916cd43dd8448eb211c80319c"
PARENT_SPAN = "b7ad6b7169203331"


def traceparent(trace: str = PARENT, span: str = PARENT_SPAN, *, sampled: bool = True) -> str:
    """A W3C trace context, written by hand."""
    return f"00-{trace}-{span}-0{int(sampled)}"


class Span:
    """A span as it was received."""

    def __init__(self, span: trace_pb2.Span, resource: dict[str, Any], scope: str) -> None:
        self.proto = span
        self.resource = resource
        self.scope = scope
        self.name = span.name
        self.kind = trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_")
        self.trace = span.trace_id.hex()
        self.id = span.span_id.hex()
        self.parent = span.parent_span_id.hex()
        self.attributes = {item.key: value_of(item.value) for item in span.attributes}
        self.links = [(link.trace_id.hex(), link.span_id.hex()) for link in span.links]
        self.start, self.end = span.start_time_unix_nano, span.end_time_unix_nano
        self.failed = span.status.code == trace_pb2.Status.STATUS_CODE_ERROR

    @property
    def identity(self) -> tuple[str, str]:
        """What links name."""
        return self.trace, self.id

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name} {self.trace}/{self.id} under {self.parent} {self.attributes}>"


def value_of(value: Any) -> Any:
    """An attribute's value."""
    return getattr(value, value.WhichOneof("value"))


class Received:
    """What has come, from whichever receiver."""

    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        self.delay = 0.0

    def take(self, body: bytes, headers: dict[str, str]) -> None:
        """A message has come."""
        time.sleep(self.delay)
        self.requests.append(trace_service_pb2.ExportTraceServiceRequest.FromString(body))
        self.headers.append(headers)

    @property
    def raw(self) -> bytes:
        """All messages, for those who look for what must not be there."""
        return b"".join(request.SerializeToString() for request in self.requests)

    @property
    def spans(self) -> list[Span]:
        """All spans, in the order in which they came."""
        return spans_of(self.requests)

    def named(self, name: str) -> list[Span]:
        """The spans of one name."""
        return [span for span in self.spans if span.name == name]

    def await_spans(self, name: str, count: int = 1, patience: float = 20.0) -> list[Span]:
        """Waits until there are so many spans of a name."""
        eventually(lambda: len(self.named(name)) >= count, f"{count} spans {name} in {self.spans}", patience)
        return self.named(name)


def spans_of(requests: list[trace_service_pb2.ExportTraceServiceRequest]) -> list[Span]:
    """The spans of some messages."""
    return [
        Span(span, {item.key: value_of(item.value) for item in resource.resource.attributes}, scope.scope.name)
        for request in requests
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


class GrpcReceiver(trace_service_pb2_grpc.TraceServiceServicer):
    """A collector's gRPC side."""

    protocol = "grpc"

    def __init__(self, port: int = 0) -> None:
        self.received = Received()
        self._server = grpc.server(ThreadPoolExecutor(4))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"
        self._server.start()

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Takes a message."""
        self.received.take(request.SerializeToString(), dict(context.invocation_metadata()))
        return trace_service_pb2.ExportTraceServiceResponse()

    def close(self) -> None:
        """Ends it."""
        self._server.stop(0).wait()


class HttpReceiver:
    """A collector's HTTP side."""

    protocol = "http/protobuf"

    def __init__(self) -> None:
        self.received = received = Received()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                assert self.headers["content-type"] == "application/x-protobuf"
                received.take(self.rfile.read(int(self.headers["content-length"])), dict(self.headers.items()))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends it."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(params=[GrpcReceiver, HttpReceiver], ids=["grpc", "http"])
def receiver(request: pytest.FixtureRequest) -> Iterator[GrpcReceiver | HttpReceiver]:
    """A receiver of each protocol."""
    made = request.param()
    yield made
    made.close()


@pytest.fixture
def collector() -> Iterator[GrpcReceiver]:
    """A receiver over gRPC, for what does not depend on the protocol."""
    made = GrpcReceiver()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans are sent soon, and no variable of this machine is in the way."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers with tracing, and closes them at the end."""
    servers: list[Server] = []

    def start(
        *models: ModelConfig,
        tracing: dict[str, object],
        wire: str = "auto",
        telemetry: dict[str, object] | None = None,
        **sections: object,
    ) -> Server:
        settings = {"sampler": "always_on", "slow_ms": 0.0, **tracing}
        config = Config(
            server=ServerConfig(
                wire=wire,
                public=ExposureConfig(address="127.0.0.1:0", trusted=True),
                cache_dir=str(tmp_path / "cache"),
                watchdog_s=60.0,
            ),
            models=list(models),
            telemetry=TelemetryConfig(tracing=TracingConfig(**settings), **(telemetry or {})),
            **sections,
        )
        started = Server(config)
        servers.append(started)
        started.start()
        assert started.wait_ready(30), started.start_failure
        return started

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def call() -> Iterator[Callable[..., Caller]]:
    """Callers of servers, closed at the end."""
    callers: list[Caller] = []

    def connect(server: Server | Process) -> Caller:
        caller = Caller(server.addresses["public"])
        callers.append(caller)
        return caller

    yield connect
    for caller in callers:
        caller.channel.close()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts `forebay serve` in processes of their own; they are killed at the end."""
    processes: list[Process] = []

    def start(*arguments: str, environment: dict[str, str] | None = None) -> Process:
        begun = Process(["--listen", "127.0.0.1:0", *arguments], tmp_path, environment or {})
        processes.append(begun)
        return begun

    yield start
    for begun in processes:
        begun.kill()


@pytest.fixture
def silent() -> Iterator[str]:
    """Where something listens, takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def nobody() -> str:
    """Where nothing listens."""
    return f"http://127.0.0.1:{free_port()}"
