"""Health over gRPC, driven through the endpoints."""

import math

import pytest
from grpc_health.v1 import health_pb2

from forebay_server.services.health import HealthService
from forebay_server.services.vitals import HealthBoard, Serving
from forebay_server.wire.port import FAIL, RESPOND, SEND, MethodKind

UP, DOWN, GONE = Serving.SERVING, Serving.NOT_SERVING, Serving.SERVICE_UNKNOWN
Parse = health_pb2.HealthCheckResponse.FromString


class Health:
    """A caller."""

    def __init__(self):
        self.board = HealthBoard()
        self.outbox = []
        self.service = HealthService(self.board, self.outbox, max_watchers=3)
        self.check_, self.list_, self.watch_ = self.service.service().endpoints

    def call(self, endpoint, call, name=""):
        body = name if isinstance(name, bytes) else health_pb2.HealthCheckRequest(service=name).SerializeToString()
        endpoint.on_call((1, call, 0, body, math.inf, None, None))
        return self.actions()

    def cancel(self, call):
        self.watch_.on_cancel((5, call, 0, None, math.inf, None, None))

    def actions(self):
        found = [(kind, call, value.code if kind == FAIL else Parse(value).status) for kind, call, value in self.outbox]
        self.outbox.clear()
        return found


@pytest.fixture
def health():
    return Health()


def test_methods(health):
    """The service has the protocol's name, methods and kinds."""
    assert health.service.service().name == "grpc.health.v1.Health"
    assert [(one.method.path.rpartition("/")[2], one.method.kind) for one in health.service.service().endpoints] == [
        ("Check", MethodKind.UNARY),
        ("List", MethodKind.UNARY),
        ("Watch", MethodKind.SERVER_STREAM),
    ]


def test_check(health):
    """A known name has its status, an unknown one is NOT_FOUND."""
    health.board.set("", UP)
    health.board.set("model/a", DOWN)

    assert health.call(health.check_, 1) == [(RESPOND, 1, UP)]
    assert health.call(health.check_, 2, "model/a") == [(RESPOND, 2, DOWN)]
    assert health.call(health.check_, 3, "model/b") == [(FAIL, 3, 5)]
    assert health.call(health.check_, 4, b"\xff") == [(FAIL, 4, 3)]


def test_list(health):
    """All names at once; too many are RESOURCE_EXHAUSTED."""
    health.board.set("", UP)
    health.board.set("model/a", DOWN)
    health.list_.on_call((1, 7, 0, b"", math.inf, None, None))

    ((kind, call, body),) = health.outbox
    assert (kind, call) == (RESPOND, 7)
    listed = health_pb2.HealthListResponse.FromString(body).statuses
    assert {name: response.status for name, response in listed.items()} == {"": UP, "model/a": DOWN}

    health.outbox.clear()
    for number in range(100):
        health.board.set(f"model/{number}", UP)
    assert health.call(health.list_, 8) == [(FAIL, 8, 8)]


def test_watch_tells_now_and_at_each_change(health):
    """The present status at once, then changes of this name only."""
    health.board.set("a", DOWN)

    assert health.call(health.watch_, 1, "a") == [(SEND, 1, DOWN)]
    health.board.set("a", UP)
    health.board.set("b", UP)
    health.board.set("a", UP)
    assert health.actions() == [(SEND, 1, UP)]


def test_watch_of_an_unknown_name(health):
    """SERVICE_UNKNOWN, then what it becomes, then SERVICE_UNKNOWN again when it goes."""
    assert health.call(health.watch_, 1, "a") == [(SEND, 1, GONE)]
    health.board.set("a", UP)
    health.board.set("a", GONE)

    assert health.actions() == [(SEND, 1, UP), (SEND, 1, GONE)]


def test_watchers_are_bounded(health):
    """Above the limit RESOURCE_EXHAUSTED; one that goes makes room; nothing is kept of it."""
    for call in (1, 2, 3):
        health.call(health.watch_, call, "a")
    assert health.call(health.watch_, 4, "a") == [(FAIL, 4, 8)]
    health.cancel(4)

    health.cancel(2)

    assert health.call(health.watch_, 5, "b") == [(SEND, 5, GONE)]
    for call in (1, 3, 5):
        health.cancel(call)
    assert health.service.watchers == 0
    assert not health.service._watched
    health.board.set("a", UP)
    assert health.actions() == []


def test_watch_of_a_bad_name(health):
    """Bytes that are no message, and names without end, are INVALID_ARGUMENT."""
    assert health.call(health.watch_, 1, b"\xff") == [(FAIL, 1, 3)]
    assert health.call(health.watch_, 2, "x" * 257) == [(FAIL, 2, 3)]
    assert health.service.watchers == 0


def test_slow_watcher_gets_the_latest_only(health):
    """One that doesn't read is told the status of the moment when it does, if that is news."""
    health.call(health.watch_, 1, "a")
    health.watch_.on_full(1)
    health.watch_.on_full(99)
    for status in (UP, DOWN, UP):
        health.board.set("a", status)
    assert health.actions() == []

    health.watch_.on_writable((6, 1, 0, None, math.inf, None, None))
    assert health.actions() == [(SEND, 1, UP)]

    health.watch_.on_full(1)
    health.watch_.on_writable((6, 1, 0, None, math.inf, None, None))
    assert health.actions() == []
