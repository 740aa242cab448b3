"""Counts the calls of services that are not on the hot path: how many, how they ended, how long they took.

A service is built with a `CountingOutbox` in place of the dispatcher's, and its endpoints are wrapped: what begins is
noted when its event comes, what ends when the answer passes through the outbox. Inference has its own way
(`scheduling.events`), because it has no time for this one. Runs in the dispatcher thread.
"""

from collections.abc import Callable
from dataclasses import replace

from google.rpc import code_pb2

from forebay_server.services.service import Endpoint, Handler, Outbox, Service
from forebay_server.wire.port import FAIL, FINISH, RESPOND, Action, Event, Failure

Ended = Callable[[str, str, float], None]
"""Told of a call that has ended: its method, such as `forebay.v1.ModelService/ListModels`, the canonical name of its
status code, and its seconds."""

_OK = "OK"
_CANCELLED = "CANCELLED"
_INTERNAL = "INTERNAL"


class CountingOutbox(list[Action]):
    """An outbox that passes everything on, and tells of the ends of calls that it knows.

    Args:
        outbox: Where actions go.
        ended: Told of each end.
        clock: Monotonic seconds.
    """

    def __init__(self, outbox: Outbox, ended: Ended, clock: Callable[[], float]) -> None:
        super().__init__()
        self._outbox = outbox
        self._ended = ended
        self._clock = clock
        self._open: dict[int, tuple[str, float]] = {}

    def append(self, action: Action) -> None:
        """Passes an action on."""
        self._outbox.append(action)
        kind, call, argument = action
        if kind in (RESPOND, FINISH):
            self._end(call, _OK)
        elif kind == FAIL:
            self._end(call, code_pb2.Code.Name(argument.code) if isinstance(argument, Failure) else _CANCELLED)

    def counted(self, service: Service) -> Service:
        """The service, with its calls counted."""
        return replace(service, endpoints=[self._counted(endpoint) for endpoint in service.endpoints])

    def _counted(self, endpoint: Endpoint) -> Endpoint:
        method = endpoint.method.path.removeprefix("/")
        on_call, on_cancel = endpoint.on_call, endpoint.on_cancel

        def begin(event: Event) -> None:
            self._open[event[1]] = method, self._clock()
            try:
                on_call(event)
            except Exception:
                self._end(event[1], _INTERNAL)  # the dispatcher answers
                raise

        def cancel(event: Event) -> None:
            self._end(event[1], _CANCELLED)
            on_cancel(event)

        handlers: dict[str, Handler] = {"on_call": begin, "on_cancel": cancel}
        return replace(endpoint, **handlers)  # type: ignore[arg-type]  # both are handlers

    def _end(self, call: int, code: str) -> None:
        began = self._open.pop(call, None)
        if began is not None:
            method, at = began
            self._ended(method, code, self._clock() - at)
