"""`grpc.health.v1.Health`: shows the board of `services.vitals` to callers.

`Check` of a name that isn't there is NOT_FOUND; `Watch` of it says SERVICE_UNKNOWN and goes on watching, as the
protocol wants. Watches are bounded in number, and a watch costs memory only while its call lives. Draining pushes
NOT_SERVING to all watchers and leaves the watches open, so that nobody takes the end of one for the end of the server.

Answered by the dispatcher: a server whose dispatcher is stuck can't say that it is well.
"""

from typing import Final

from google.protobuf.message import DecodeError
from google.rpc import code_pb2
from grpc_health.v1 import health_pb2

from forebay_server import errors
from forebay_server.services.service import Endpoint, Outbox, Service
from forebay_server.services.status import failure
from forebay_server.services.vitals import HealthBoard, Serving
from forebay_server.wire.port import FAIL, RESPOND, SEND, Event, Failure, Method, MethodKind

NAME: Final = "grpc.health.v1.Health"
MAX_LISTED: Final = 100
"""Names that `List` tells; with more it is RESOURCE_EXHAUSTED, as the protocol wants."""
MAX_NAME: Final = 256
"""Characters of a name that is watched."""

MALFORMED = failure(errors.InvalidRequest([("", "the message can't be parsed as a HealthCheckRequest")]))
TOO_LONG = failure(errors.InvalidRequest([("service", f"at most {MAX_NAME} characters")]))
# These two are the protocol's own and no errors of ours, so they have no reason.
UNKNOWN = Failure(code_pb2.NOT_FOUND, "unknown service")
TOO_MANY = Failure(code_pb2.RESOURCE_EXHAUSTED, "too many")

_STATUSES = {
    status: health_pb2.HealthCheckResponse(status=int(status)).SerializeToString()  # the protocol's number
    for status in Serving
}


class HealthService:
    """Health over gRPC.

    Args:
        board: What is shown.
        outbox: Where answers go.
        max_watchers: Watches at a time; further ones get RESOURCE_EXHAUSTED.
    """

    def __init__(self, board: HealthBoard, outbox: Outbox, *, max_watchers: int = 1000) -> None:
        self._board = board
        self._outbox = outbox
        self._max_watchers = max_watchers
        self._watched: dict[str, dict[int, Serving]] = {}
        """By name, the calls that watch it and the status that each was told."""
        self._watchers: dict[int, str] = {}
        """By call, the name that it watches."""
        self._full: set[int] = set()
        """Watchers that don't read. They are told the latest status when they do."""
        board.subscribe(self._changed)

    def service(self) -> Service:
        """The service for the dispatcher."""
        return Service(
            name=NAME,
            endpoints=[
                Endpoint(method=Method(path=f"/{NAME}/Check", kind=MethodKind.UNARY), on_call=self._check),
                Endpoint(method=Method(path=f"/{NAME}/List", kind=MethodKind.UNARY), on_call=self._list),
                Endpoint(
                    method=Method(path=f"/{NAME}/Watch", kind=MethodKind.SERVER_STREAM),
                    on_call=self._watch,
                    on_cancel=self._unwatch,
                    on_full=self._filled,
                    on_writable=self._writable,
                ),
            ],
        )

    @property
    def watchers(self) -> int:
        """Watches that are open."""
        return len(self._watchers)

    def _check(self, event: Event) -> None:
        call = event[1]
        try:
            name = health_pb2.HealthCheckRequest.FromString(event[3] or b"").service
        except DecodeError:
            self._outbox.append((FAIL, call, MALFORMED))
            return
        status = self._board.get(name)
        if status == Serving.SERVICE_UNKNOWN:
            self._outbox.append((FAIL, call, UNKNOWN))
        else:
            self._outbox.append((RESPOND, call, _STATUSES[status]))

    def _list(self, event: Event) -> None:
        statuses = self._board.all()
        if len(statuses) > MAX_LISTED:
            self._outbox.append((FAIL, event[1], TOO_MANY))
            return
        response = health_pb2.HealthListResponse()
        for name, status in statuses.items():
            response.statuses[name].status = int(status)
        self._outbox.append((RESPOND, event[1], response.SerializeToString()))

    def _watch(self, event: Event) -> None:
        call = event[1]
        try:
            name = health_pb2.HealthCheckRequest.FromString(event[3] or b"").service
        except DecodeError:
            self._outbox.append((FAIL, call, MALFORMED))
            return
        if len(name) > MAX_NAME:
            self._outbox.append((FAIL, call, TOO_LONG))
            return
        if len(self._watchers) >= self._max_watchers:
            self._outbox.append((FAIL, call, TOO_MANY))
            return
        self._watchers[call] = name
        self._tell(call, self._watched.setdefault(name, {}), self._board.get(name))

    def _unwatch(self, event: Event) -> None:
        call = event[1]
        name = self._watchers.pop(call, None)
        self._full.discard(call)
        if name is not None:
            watching = self._watched[name]
            del watching[call]
            if not watching:
                del self._watched[name]

    def _filled(self, call: int) -> None:
        if call in self._watchers:
            self._full.add(call)

    def _writable(self, event: Event) -> None:
        call = event[1]
        self._full.discard(call)
        name = self._watchers.get(call)
        if name is not None:
            watching = self._watched[name]
            status = self._board.get(name)
            if watching[call] != status:
                self._tell(call, watching, status)

    def _changed(self, name: str, status: Serving) -> None:
        watching = self._watched.get(name)
        if watching is not None:
            for call in watching:
                if call not in self._full:
                    self._tell(call, watching, status)

    def _tell(self, call: int, watching: dict[int, Serving], status: Serving) -> None:
        watching[call] = status
        self._outbox.append((SEND, call, _STATUSES[status]))
