"""Spans of the calls of services that know nothing of spans: jobs and models. Runs in the dispatcher thread.

(`services.inference` keeps its own spans, which tell more.)
"""

from collections.abc import Collection

from forebay_server.telemetry.tracing.records import CALL
from forebay_server.telemetry.tracing.tracer import Mark, Tracer
from forebay_server.wire.port import Event, Method, MethodKind


class CallTraces:
    """Keeps calls from their arrival to their end; a `services.calls.Watcher`.

    Args:
        tracer: Who keeps what becomes spans.
        patient: Methods, as `Service/Method`, that may take as long as they like; streams may anyway.
    """

    def __init__(self, tracer: Tracer, *, patient: Collection[str] = ()) -> None:
        self._tracer = tracer
        self._patient = frozenset(patient)
        self._open: dict[int, tuple[Mark, float, bool]] = {}
        """By call: as it began, when, and whether it may take its time."""

    def traceparent(self, call: int) -> str:
        """The context for what an open call asks for and that begins later."""
        found = self._open.get(call)
        return "" if found is None else self._tracer.onward(found[0])

    def begun(self, event: Event, method: Method) -> None:
        """A call has come."""
        patient = method.kind is not MethodKind.UNARY or method.path.removeprefix("/") in self._patient
        self._open[event[1]] = self._tracer.begin(event[6]), self._tracer.clock(), patient

    def ended(self, call: int, method: str, code: str, _seconds: float) -> None:
        """It has its answer, or is gone."""
        mark, began, patient = self._open.pop(call)
        self._tracer.ended(mark, CALL, began, method, code, patient=patient)
