"""Sees the calls of services begin and end that have no line about it: jobs, models, health, reflection.

Such a service is built with a `CallOutbox` in place of the dispatcher's, and its endpoints are wrapped: a call's
beginning is seen when its event comes, its end when the answer passes through the outbox. Watchers count calls, or keep
spans of them (`services.traces`). Inference has its own ways (`scheduling.events`, and spans that tell more), because
it has no time for this one. Runs in the dispatcher thread.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple, Protocol

from google.rpc import code_pb2

from forebay_server.services.service import Endpoint, Handler, Outbox, Service
from forebay_server.wire.port import FAIL, FINISH, RESPOND, Action, Event, Failure, Method

_OK: Final = "OK"
_CANCELLED: Final = "CANCELLED"
_DEADLINE_EXCEEDED: Final = "DEADLINE_EXCEEDED"
_INTERNAL: Final = "INTERNAL"


class Watcher(Protocol):
    """Who is told of calls."""

    def begun(self, event: Event, method: Method, /) -> None:
        """A call has come; its service has not seen it yet."""

    def ended(self, call: int, method: str, code: str, seconds: float, /) -> None:
        """A call has ended, once.

        Args:
            call: Which one.
            method: Such as `forebay.v1.ModelService/ListModels`.
            code: The canonical name of its status code.
            seconds: From its event to its end.
        """


class _Open(NamedTuple):
    method: str
    began: float
    deadline: float
    watchers: Sequence[Watcher]


class CallOutbox(list[Action]):
    """An outbox that passes everything on, and sees the ends of calls that it knows.

    Args:
        outbox: Where actions go.
        clock: Monotonic seconds.
    """

    def __init__(self, outbox: Outbox, clock: Callable[[], float]) -> None:
        super().__init__()
        self._outbox = outbox
        self._clock = clock
        self._open: dict[int, _Open] = {}

    def append(self, action: Action) -> None:
        """Passes an action on."""
        self._outbox.append(action)
        kind, call, argument = action
        if kind in (RESPOND, FINISH):
            self._end(call, _OK)
        elif kind == FAIL:
            self._end(call, code_pb2.Code.Name(argument.code) if isinstance(argument, Failure) else _CANCELLED)

    def watched(self, service: Service, *watchers: Watcher) -> Service:
        """The same service, whose calls the watchers are told of from now on."""
        return replace(service, endpoints=[self._watched(endpoint, watchers) for endpoint in service.endpoints])

    def _watched(self, endpoint: Endpoint, watchers: Sequence[Watcher]) -> Endpoint:
        name = endpoint.method.path.removeprefix("/")
        on_call, on_cancel = endpoint.on_call, endpoint.on_cancel

        def begin(event: Event) -> None:
            self._open[event[1]] = _Open(name, self._clock(), event[4], watchers)
            for watcher in watchers:
                watcher.begun(event, endpoint.method)
            try:
                on_call(event)
            except Exception:
                self._end(event[1], _INTERNAL)  # the dispatcher answers
                raise

        def cancel(event: Event) -> None:
            found = self._open.get(event[1])
            if found is not None:
                # The front end has answered a call whose deadline has passed.
                self._end(event[1], _DEADLINE_EXCEEDED if found.deadline <= self._clock() else _CANCELLED)
            on_cancel(event)

        handlers: dict[str, Handler] = {"on_call": begin, "on_cancel": cancel}
        return replace(endpoint, **handlers)  # type: ignore[arg-type]  # both are handlers

    def _end(self, call: int, code: str) -> None:
        found = self._open.pop(call, None)
        if found is not None:
            seconds = self._clock() - found.began
            for watcher in found.watchers:
                watcher.ended(call, found.method, code, seconds)
