"""Takes spans over OTLP/gRPC and prints each trace as a tree: a look at tracing without a collector.

    python examples/spans.py [--port 4317]

A line is a span: its name, kind, duration, status, what it says of itself, and `->` before the spans that it is linked
with. A trace is printed when nothing of it has come for a second. Needs `forebay[otel]`.
"""

import argparse
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

QUIET = 1.0  # seconds without news of a trace
HIDDEN = ("rpc.", "forebay.model.", "error.")


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Gathers spans by trace."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.traces: dict[bytes, list[Span]] = defaultdict(list)
        self.news: dict[bytes, float] = {}

    def Export(self, request: Any, _context: Any) -> Any:  # noqa: N802  # the protocol's name
        """Takes a message."""
        with self.lock:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        self.traces[span.trace_id].append(span)
                        self.news[span.trace_id] = time.monotonic()
        return trace_service_pb2.ExportTraceServiceResponse()

    def take(self) -> list[tuple[bytes, list[Span]]]:
        """The traces that are complete, as far as can be known."""
        now = time.monotonic()
        with self.lock:
            quiet = [trace for trace, at in self.news.items() if now - at >= QUIET]
            for trace in quiet:
                del self.news[trace]
            return [(trace, self.traces.pop(trace)) for trace in quiet]


def value(attribute: Any) -> str:
    """An attribute as people write it; a duration in milliseconds."""
    name = attribute.key.removeprefix("forebay.")
    if name.endswith(".duration"):
        return f"{name.removesuffix('.duration')} {attribute.value.double_value * 1e3:.3f} ms"
    kind = attribute.value.WhichOneof("value")
    return f"{name} {getattr(attribute.value, kind)}"


def line(span: Span) -> str:
    """A span."""
    attributes = {attribute.key: attribute.value.string_value for attribute in span.attributes}
    parts = [
        span.name,
        Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        f"{(span.end_time_unix_nano - span.start_time_unix_nano) / 1e6:.3f} ms",
        attributes.get("rpc.response.status_code", ""),
        attributes.get("error.type", ""),
    ]
    said = ", ".join(value(attribute) for attribute in span.attributes if not attribute.key.startswith(HIDDEN))
    links = " ".join(f"-> {link.span_id.hex()[:8]}" for link in span.links)
    return " ".join(
        part for part in (f"[{span.span_id.hex()[:8]}]", *parts, f"({said})" if said else "", links) if part
    )


def show(trace: bytes, spans: list[Span]) -> None:
    """Prints a trace; what has no parent in it is at the left."""
    known = {span.span_id for span in spans}
    print(f"trace {trace.hex()}", flush=True)

    def branch(parent: bytes | None, depth: int) -> None:
        for span in sorted(spans, key=lambda span: span.start_time_unix_nano):
            if span.parent_span_id == parent or (parent is None and span.parent_span_id not in known):
                print("  " * depth + line(span), flush=True)
                branch(span.span_id, depth + 1)

    branch(None, 1)


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=4317)
    port = parser.parse_args().port
    receiver = Receiver()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]  # generated
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    while True:
        for trace, spans in receiver.take():
            show(trace, spans)
        time.sleep(0.1)


if __name__ == "__main__":
    main()
