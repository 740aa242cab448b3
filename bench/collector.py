"""A collector for the tracing cases: takes spans over gRPC and forgets them, counting messages and bytes.

    python -m bench.collector --port N [--delay SECONDS] [--silent]

It parses nothing, so that it costs the generator's core little. `--silent` takes connections and never says a word.
"""

import argparse
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class Sink(grpc.GenericRpcHandler):
    """Answers `Export` with nothing, after a while."""

    def __init__(self, delay: float) -> None:
        self._delay = delay

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """The handler of a method."""
        return grpc.unary_unary_rpc_method_handler(self._take) if details.method == EXPORT else None

    def _take(self, _body: bytes, _context: grpc.ServicerContext) -> bytes:
        if self._delay:
            time.sleep(self._delay)  # A slow collector is what is measured then.
        return b""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--silent", action="store_true", help="take connections and say nothing")
    arguments = parser.parse_args()
    if arguments.silent:
        with socket.create_server(("127.0.0.1", arguments.port)):
            threading.Event().wait()
    server = grpc.server(ThreadPoolExecutor(4), handlers=[Sink(arguments.delay)])
    server.add_insecure_port(f"127.0.0.1:{arguments.port}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
