"""Spans of the calls of services that know nothing of spans: jobs and models.

Their endpoints are wrapped: a call's beginning is seen on its way in, its end in the outbox on its way out. So these
services have no line about it, and `flush` has to run before the outbox is sent. (`services.inference` keeps its own
spans, which tell more.) Runs in the dispatcher thread.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Final, cast

from google.rpc import code_pb2

from forebay_server.services.service import Endpoint, Handler, Outbox, Service
from forebay_server.telemetry.tracing.names import CANCELLED, DEADLINE_EXCEEDED, OK
from forebay_server.telemetry.tracing.records import CALL
from forebay_server.telemetry.tracing.tracer import Mark, Tracer
from forebay_server.wire.port import FAIL, FINISH, RESPOND, Event, Failure, MethodKind

_ENDS: Final = {RESPOND, FINISH, FAIL}


class CallTraces:
    """The calls of some services, from their arrival to their answer.

    Args:
        tracer: Who keeps what becomes spans.
        outbox: Where answers go.
        patient: Methods, as `Service/Method`, that may take as long as they like; streams may anyway.
    """

    def __init__(self, tracer: Tracer, outbox: Outbox, *, patient: Collection[str] = ()) -> None:
        self._tracer = tracer
        self._outbox = outbox
        self._patient = frozenset(patient)
        self._open: dict[int, tuple[Mark, str, float, float]] = {}
        """By call: as it began, its method, when, and its deadline."""

    def wrap(self, service: Service) -> Service:
        """The same service, whose calls are seen from now on."""
        return replace(service, endpoints=[self._wrapped(endpoint) for endpoint in service.endpoints])

    def traceparent(self, call: int) -> str:
        """The context for what an open call asks for and that begins later."""
        found = self._open.get(call)
        return "" if found is None else self._tracer.onward(found[0])

    def flush(self) -> None:
        """Ends the calls whose answers are in the outbox."""
        if not self._open:
            return
        for kind, call, argument in self._outbox:
            if call in self._open and kind in _ENDS:
                code = code_pb2.Code.Name(cast(Failure, argument).code) if kind == FAIL else OK
                self._end(call, code)

    def _wrapped(self, endpoint: Endpoint) -> Endpoint:
        method = endpoint.method.path.removeprefix("/")
        if endpoint.method.kind is not MethodKind.UNARY:
            self._patient |= {method}
        return replace(
            endpoint, on_call=self._begins(method, endpoint.on_call), on_cancel=self._cancels(endpoint.on_cancel)
        )

    def _begins(self, method: str, handler: Handler) -> Handler:
        tracer, calls = self._tracer, self._open

        def handle(event: Event) -> None:
            calls[event[1]] = tracer.begin(event[6]), method, tracer.clock(), event[4]
            handler(event)

        return handle

    def _cancels(self, handler: Handler) -> Handler:
        def handle(event: Event) -> None:
            found = self._open.get(event[1])
            if found is not None:
                self._end(event[1], DEADLINE_EXCEEDED if found[3] <= self._tracer.clock() else CANCELLED)
            handler(event)

        return handle

    def _end(self, call: int, code: str) -> None:
        mark, method, began, _ = self._open.pop(call)
        self._tracer.ended(mark, CALL, began, method, code, patient=method in self._patient)
