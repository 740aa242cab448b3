"""Repetition, balancing, health, hedging and reconnection, on both clients, against real servers."""

import asyncio
import socket
import threading
import time

import grpc
import numpy as np
import psutil
import pytest

import forebay_client
from forebay_client import Retry
from forebay_client._channel import Target, Tls
from forebay_client.testing import FakeModel, FakeServer

ROW = {"x": [[1.0]]}


def double(inputs):
    return {"y": inputs["x"] * 2}


@pytest.fixture
def fakes():
    """Makes servers of the model `double`, which may be slow."""
    made = []

    def make(*, seconds=0.0, address="127.0.0.1:0"):
        made.append(FakeServer({"double": FakeModel(run=double, seconds=seconds)}, address=address))
        return made[-1]

    yield make
    for server in made:
        server.stop()


@pytest.fixture
def connect(surface):
    """Makes clients."""
    made = []

    def make(*servers, **options):
        addresses = [server.address for server in servers]
        made.append(surface(addresses if len(addresses) > 1 else addresses[0], **options))
        return made[-1]

    yield make
    for client in made:
        client.close()


def test_what_was_shed_is_sent_again(fakes, connect):
    """After the server's time, which is in the details and in the trailer."""
    server = fakes()
    server.fail_next("QUEUE_FULL", times=2, retry_delay=0.15)
    start = time.monotonic()

    assert connect(server).predict("double", ROW).array == [[2.0]]
    assert time.monotonic() - start >= 0.3
    assert len(server.requests) == 3


def test_a_message_over_the_limit_is_never_sent_again(fakes, connect):
    """Though its status code is that of overload; neither is what was not asked to come back."""
    server = fakes()
    client = connect(server)
    server.fail_next("BYTES_LIMIT")
    with pytest.raises(forebay_client.MessageTooLarge):
        client.predict("double", ROW)
    server.fail_next(code=grpc.StatusCode.RESOURCE_EXHAUSTED)
    with pytest.raises(forebay_client.Overloaded):
        client.predict("double", ROW)

    assert len(server.requests) == 2


def test_one_deadline_covers_all_attempts(fakes, connect):
    """The error comes when the next attempt would be too late, not after it."""
    server = fakes()
    server.fail_next("QUEUE_FULL", times=2, retry_delay=0.2)
    server.fail_next("QUEUE_FULL", retry_delay=20.0)
    start = time.monotonic()
    with pytest.raises(forebay_client.QueueFull):
        connect(server, retry=Retry(attempts=100)).predict("double", ROW, deadline=20)

    assert 0.4 <= time.monotonic() - start < 20
    assert len(server.requests) == 3


def test_grpc_repeats_what_is_unavailable(fakes, connect):
    """By its own policy, four times in all; our own comes on top, unless it is switched off."""
    server = fakes()
    server.fail_next("DRAINING", times=3)
    client = connect(server, retry=None)
    assert client.predict("double", ROW).array == [[2.0]]
    assert len(server.requests) == 4
    server.fail_next("MODEL_LOADING", times=4)
    with pytest.raises(forebay_client.ModelLoading):
        client.predict("double", ROW)
    assert len(server.requests) == 8
    server.fail_next("MODEL_LOADING", times=4)
    assert connect(server).predict("double", ROW).array == [[2.0]]


def test_large_tensors_are_repeated_too(fakes, connect):
    """gRPC keeps the whole message for that; with its own default of 256 KiB it would give up."""
    server = fakes()
    large = {"x": np.ones((1, 1 << 18), np.float32)}
    server.fail_next("DRAINING", times=2)
    assert connect(server, retry=None).predict("double", large).array.shape == (1, 1 << 18)
    server.fail_next("DRAINING")
    small_buffer = [("grpc.per_rpc_retry_buffer_size", 256 << 10)]
    with pytest.raises(forebay_client.Draining):  # the positive control
        connect(server, retry=None, options=small_buffer).predict("double", large)


def test_calls_are_balanced_over_all_addresses(fakes, connect):
    """Each call goes to the next server."""
    servers = [fakes() for _ in range(3)]
    client = connect(*servers)
    client.predict("double", ROW)
    end = time.monotonic() + 10
    while not all(server.requests for server in servers) and time.monotonic() < end:
        client.predict("double", ROW)  # until all are connected
    before = [len(server.requests) for server in servers]
    for _ in range(60):
        client.predict("double", ROW)

    assert [len(server.requests) - count for server, count in zip(servers, before, strict=True)] == [20, 20, 20]


def test_servers_that_do_not_serve_are_left_out(fakes, connect):
    """Without a failed call; and they are called again when they serve again."""
    first, second = fakes(), fakes()
    client = connect(first, second, retry=None)

    def settle(servers):
        """Calls until only these are called."""
        end = time.monotonic() + 10
        while True:
            before = [len(server.requests) for server in (first, second)]
            for _ in range(10):
                client.predict("double", ROW)
            after = [len(server.requests) for server in (first, second)]
            called = [server for server, old, new in zip((first, second), before, after, strict=True) if new > old]
            if called == servers:
                return
            assert time.monotonic() < end, "the health is not heeded"

    settle([first, second])
    first.set_health(serving=False)
    settle([second])
    first.set_health(serving=True)
    settle([first, second])


def test_a_server_that_goes_away_is_not_missed(fakes, connect):
    """No call fails while another server is there."""
    first, second = fakes(seconds=0.01), fakes(seconds=0.01)
    client = connect(first, second)
    found = []
    for number in range(60):
        if number == 20:
            threading.Thread(target=first.stop).start()
        found.append(client.predict("double", ROW).array.item())

    assert found == [2.0] * 60


def test_several_connections_are_really_several(fakes, connect):
    """Equal channels of one process would share one."""
    for wanted in (1, 4):
        server = fakes()
        client = connect(server, connections=wanted)
        for _ in range(8):
            client.predict("double", ROW)
        port = int(server.address.rpartition(":")[2])
        ends = [
            connection
            for connection in psutil.Process().net_connections("tcp")
            if connection.raddr and connection.raddr.port == port and connection.status == psutil.CONN_ESTABLISHED
        ]
        assert len(ends) == wanted


def test_a_hedge_does_not_wait_for_the_slow_one(fakes, connect):
    """The second request goes to the other server, and the first answer counts."""
    slow, quick = fakes(seconds=5.0), fakes()
    client = connect(slow, quick, health_check=False)
    while not (slow.requests and quick.requests):
        client.predict("double", ROW, hedge=0.05)
    start = time.monotonic()
    for _ in range(4):
        assert client.predict("double", ROW, hedge=0.05).array == [[2.0]]

    assert time.monotonic() - start < 5
    with pytest.raises(ValueError, match="hedge is a positive number"):
        client.predict("double", ROW, hedge=0)


def test_a_hedged_call_raises_what_a_plain_one_would(fakes, connect):
    """And is repeated like one."""
    server = fakes()
    client = connect(server)
    server.fail_next("QUEUE_FULL", retry_delay=0.01)
    assert client.predict("double", ROW, hedge=5.0).array == [[2.0]]
    with pytest.raises(forebay_client.ModelNotFound):
        client.predict("other", ROW, hedge=5.0)
    with pytest.raises(forebay_client.DeadlineExceeded):
        connect(fakes(seconds=1.0)).predict("double", ROW, hedge=0.1, deadline=0.3)


def test_a_stream_goes_on_when_its_server_comes_back(fakes, connect, outcomes):
    """What was answered is not sent again; every item has one outcome, in order."""
    first = fakes()
    client = connect(first)
    halfway = threading.Event()

    def item(value):
        return {"x": [[float(value)]]}

    def source():
        for value in range(60):
            if value == 30:
                halfway.wait(10)
            yield item(value)

    async def async_source():
        for value in range(60):
            if value == 30:
                await asyncio.to_thread(halfway.wait, 10)
            yield item(value)

    is_sync = isinstance(client.client, forebay_client.Client)
    stream = iter(client.stream("double", source() if is_sync else async_source(), window=16))
    found = [next(stream) for _ in range(30)]
    first.stop()
    second = fakes(address=first.address)
    halfway.set()
    rest, error = outcomes(stream)

    assert error is None
    assert [2.0 * value for value in range(60)] == [outcome.array.item() for outcome in found + rest]
    assert [float(np.frombuffer(request.inputs[0].data, "<f8")[0]) for request in second.requests] == list(
        range(30, 60)
    )


def test_a_stream_moves_to_another_server(fakes, connect, outcomes):
    """In the middle of its items, some of which have no answer yet."""
    servers = [fakes(seconds=0.01), fakes(seconds=0.01)]
    client = connect(*servers)
    stream = iter(client.stream("double", ({"x": [[float(value)]]} for value in range(100)), window=32))
    found = [next(stream)]
    busy = servers[0] if servers[0].requests else servers[1]
    busy.stop()
    rest, error = outcomes(stream)

    assert error is None
    assert [2.0 * value for value in range(100)] == [outcome.array.item() for outcome in found + rest]
    assert 100 <= sum(len(server.requests) for server in servers) <= 100 + 32


def test_a_stream_to_nobody_ends(connect, outcomes):
    """After the time of the outage, with the error of each item and the stream's."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        client = connect(type("Gone", (), {"address": f"127.0.0.1:{nobody.getsockname()[1]}"}))
        start = time.monotonic()
        found, error = outcomes(client.stream("double", [ROW] * 3, outage=0.5, failures="yield"))

    assert [forebay_client.Unavailable] * 3 == [type(outcome) for outcome in found]
    assert error is None
    assert time.monotonic() - start < 9  # without the option it is 10


@pytest.mark.parametrize(
    ("addresses", "target"),
    [
        ("host:1", "host:1"),
        (["host:1"], "host:1"),
        (["10.0.0.1:1", "10.0.0.2:1"], "ipv4:10.0.0.1:1,10.0.0.2:1"),
        (["[::1]:1", "[::2]:1"], "ipv6:[::1]:1,[::2]:1"),
        (["unix:/a", "unix:/b"], "unix:/a,/b"),
    ],
)
def test_addresses_make_one_target(addresses, target):
    """As gRPC wants it."""
    assert Target(address=addresses).target() == target


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"address": []}, "at least one address"),
        ({"address": ["host:1", "other:1"]}, "'host:1' is no IP address with a port: .* dns:///name:port"),
        ({"address": ["10.0.0.1:1", "unix:/a"]}, "all IPv4, all IPv6 or all Unix sockets"),
        ({"address": ["10.0.0.1:1", "10.0.0.2:1"], "tls": Tls()}, "`server_name`"),
        ({"address": "host:1", "tenant": "süden"}, "a tenant must be printable ASCII text, not 'süden'"),
        ({"address": "host:1", "tenant": "a\nb"}, "a tenant must be printable ASCII text"),
        ({"address": "host:1", "connections": 0}, "1 to 64 connections, not 0"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    """Before anybody connects."""
    with pytest.raises(ValueError, match=message):
        Target(**options)


@pytest.mark.parametrize(
    ("options", "checked"),
    [
        ({"address": "host:1"}, False),
        ({"address": "dns:///host:1"}, True),
        ({"address": ["10.0.0.1:1", "10.0.0.2:1"]}, True),
        ({"address": "host:1", "health_check": True}, True),
        ({"address": "dns:///host:1", "health_check": False}, False),
    ],
)
def test_health_is_checked_where_there_may_be_several(options, checked):
    """One server that does not serve says better why than a balancer that has nobody."""
    assert checked is ("healthCheckConfig" in Target(**options).service_config())
