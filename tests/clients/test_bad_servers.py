"""Servers that are not there, silent, broken, newer or older: a documented error in each client, no hang, no leak."""

import contextlib
import gc
import itertools
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import psutil
import pytest

import forebay_client
from forebay.v1 import inference_pb2, inference_service_pb2_grpc
from forebay_client import Retry
from forebay_client.testing import FakeServer
from tests.waiting import eventually

ROW = {"x": [[1.0]]}
SETTINGS = bytes.fromhex("000000040000000000")  # an empty SETTINGS frame, with which an HTTP/2 server begins


class Listener:
    """A TCP server that does something to each connection and never answers a call."""

    def __init__(self, act) -> None:
        self._act = act
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.connections = 0
        self._kept = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            self._kept.append(accepted)
            with contextlib.suppress(OSError):
                self._act(accepted)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for accepted in self._kept:
            accepted.close()
        self._thread.join()
        for accepted in self._kept:  # The last may have come after the others were closed.
            accepted.close()


def silent(connection):
    """Takes the connection, and that is all."""


def half(connection):
    """Speaks HTTP/2, and answers no call."""
    connection.sendall(SETTINGS)


def hasty(connection):
    """Closes in the middle of the call."""
    connection.sendall(SETTINGS)
    connection.recv(1 << 16)
    time.sleep(0.02)
    connection.close()


def garbled(connection):
    """Speaks something else."""
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    connection.close()


def pump(source, sink, left, pause):
    """Passes on what comes, at most so many bytes, in drops if there is a pause between them; then closes both."""
    with contextlib.suppress(OSError):
        while left and (data := source.recv(min(left, 100 if pause else 1 << 16))):
            sink.sendall(data)
            left -= len(data)
            time.sleep(pause)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def join(caller, server, left, pause):
    """Passes on what both say, in two threads, until one of them closes.

    Both are closed in the end, not only shut down: with unread data left, only a close resets the connection. Who waits
    to send would find out after 20 seconds otherwise.
    """
    up = threading.Thread(target=pump, args=(caller, server, 1 << 40, 0.0))
    up.start()
    pump(server, caller, left, pause)
    up.join()
    server.close()
    caller.close()


def through(address, *, answers=1 << 40, connections=1 << 40, pause=0.0):
    """Passes connections on to a server; the first ones are closed after so many bytes of its answers."""
    numbers = itertools.count(1)

    def act(connection):
        host, _, port = address.rpartition(":")
        server = socket.create_connection((host, int(port)))
        left = answers if next(numbers) <= connections else 1 << 40
        threading.Thread(target=join, args=(connection, server, left, pause)).start()

    return act


@pytest.fixture
def listen():
    """Starts listeners."""
    started = []

    def start(act):
        started.append(Listener(act))
        return started[-1]

    yield start
    for listener in started:
        listener.close()


@pytest.fixture
def connect(surface):
    """Makes clients."""
    made = []

    def make(address, **options):
        made.append(surface(address, **options))
        return made[-1]

    yield make
    for client in made:
        client.close()


UNAVAILABLE, LATE = forebay_client.Unavailable, forebay_client.DeadlineExceeded


@pytest.mark.parametrize(
    ("where", "kinds"),
    [
        (silent, (LATE, UNAVAILABLE)),
        (half, (LATE,)),
        (hasty, (UNAVAILABLE, LATE)),
        (garbled, (UNAVAILABLE, LATE)),
        ("nobody listens", (UNAVAILABLE, LATE)),
        ("dns:///nobody.invalid:8500", (UNAVAILABLE, LATE)),
    ],
)
@pytest.mark.parametrize("call", ["predict", "hedged", "stream", "submit"])
def test_a_server_that_does_not_answer_costs_no_more_than_the_deadline(
    connect, listen, closed_port, outcomes, where, kinds, call
):
    """An error of ours, by the deadline; whatever the server does to the connection, and if there is none."""
    listener = listen(where) if callable(where) else None
    address = f"127.0.0.1:{closed_port}" if where == "nobody listens" else where
    client = connect(listener.address if listener else address)
    start = time.monotonic()
    if call == "stream":
        stream = client.stream("double", [ROW], deadline=0.4, stream_deadline=0.4, outage=0.2, failures="yield")
        (error,), _ = outcomes(stream)
    else:
        method = client.submit if call == "submit" else client.predict
        options = {"hedge": 0.1} if call == "hedged" else {}
        with pytest.raises(forebay_client.ForebayError) as caught:
            method("double", ROW, deadline=0.4, **options)
        error = caught.value

    assert isinstance(error, kinds)
    assert listener is None or listener.connections
    assert time.monotonic() - start < 20  # without a deadline of its own it would be 30 s, and hours for a stream


@pytest.fixture
def closed_port():
    """A port at which nobody listens, and that nobody gets meanwhile."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        yield nobody.getsockname()[1]


@pytest.fixture
def large():
    """A server whose answers are as large as the requests, and a request of 1 MiB."""
    with FakeServer({"double": lambda inputs: {"y": inputs["x"] * 2}}) as server:
        yield server, {"x": np.ones((1, 1 << 18), np.float32)}


def test_an_answer_that_breaks_off_is_asked_for_again(connect, listen, large):
    """gRPC itself repeats no call of which it has heard something; the client does."""
    server, inputs = large
    client = connect(listen(through(server.address, answers=300_000, connections=1)).address)

    assert client.predict("double", inputs, deadline=20)["y"].shape == (1, 1 << 18)
    assert len(server.requests) == 2


def test_answers_that_always_break_off_are_unavailable(connect, listen, large):
    """After as many attempts as the policy has."""
    server, inputs = large
    client = connect(listen(through(server.address, answers=300_000)).address, retry=Retry(attempts=2))
    with pytest.raises(forebay_client.Unavailable):
        client.predict("double", inputs, deadline=20)

    assert len(server.requests) == 2


def test_a_stream_that_breaks_off_loses_nothing(connect, listen, large, outcomes):
    """What was not heard in whole is sent once more."""
    server, inputs = large
    client = connect(listen(through(server.address, answers=2_500_000, connections=2)).address)
    found, error = outcomes(client.stream("double", [inputs] * 10))

    assert error is None
    assert [(index, (1, 1 << 18)) for index in range(10)] == [(each.index, each["y"].shape) for each in found]
    assert len(server.requests) > 10


def test_an_answer_that_comes_in_drops_is_late(connect, listen, large):
    """The deadline is that of the whole answer."""
    server, inputs = large
    client = connect(listen(through(server.address, pause=0.01)).address)
    with pytest.raises(forebay_client.DeadlineExceeded):
        client.predict("double", inputs, deadline=0.5)


class Quitter(inference_service_pb2_grpc.InferenceServiceServicer):
    """Cancels its first call, as a server of grpcio's that is stopped may do, and answers the others."""

    def __init__(self) -> None:
        self.calls = itertools.count(1)

    def _begin(self, context):
        if next(self.calls) == 1:
            context.cancel()

    def Predict(self, request, context):
        self._begin(context)
        return inference_pb2.PredictResponse(model=request.model, outputs=request.inputs)

    def StreamPredict(self, messages, context):
        self._begin(context)
        for message in messages:
            yield inference_pb2.StreamPredictResponse(
                results=[
                    inference_pb2.StreamResult(id=item.id, response=inference_pb2.PredictResponse(model="m"))
                    for item in message.items
                ]
            )


@pytest.fixture
def serve():
    """Starts servers of a service; their addresses."""
    started = []

    def start(service):
        server = grpc.server(ThreadPoolExecutor(4))
        inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        started.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in started:
        server.stop(0).wait()


def test_a_server_that_cancels_calls_has_gone_away(connect, serve, outcomes):
    """Nobody here has cancelled them, so that they are made again."""
    assert connect(serve(Quitter())).predict("m", ROW).model == "m"
    (found,), error = outcomes(connect(serve(Quitter())).stream("m", [ROW]))
    assert (found.model, error) == ("m", None)
    with pytest.raises(forebay_client.Unavailable, match="cut off"):
        connect(serve(Quitter()), retry=None).predict("m", ROW)


class Odd(inference_service_pb2_grpc.InferenceServiceServicer):
    """A server of another time: its responses have a field, an outcome or a reason that this client does not know."""

    def Predict(self, request, context):
        found = inference_pb2.PredictResponse(model=request.model, version=1, request_id=request.request_id)
        tensor = found.outputs.add(name="y", data_type=request.inputs[0].data_type, shape=request.inputs[0].shape)
        tensor.data = request.inputs[0].data
        # Field 900, a text: as a newer server would send it.
        return inference_pb2.PredictResponse.FromString(found.SerializeToString() + b"\xa2\x38\x03new")

    def StreamPredict(self, messages, context):
        for message in messages:
            yield inference_pb2.StreamPredictResponse(
                results=[inference_pb2.StreamResult(id=item.id) for item in message.items]
            )


@pytest.fixture
def odd(serve):
    return serve(Odd())


def test_a_newer_server_is_understood(surface, odd, outcomes):
    """Fields that this client does not know are no error; an outcome that it does not know is that item's."""
    client = surface(odd)
    assert client.predict("m", ROW, request_id="r")["y"] == [[1.0]]
    (found,), error = outcomes(client.stream("m", [ROW], failures="yield"))
    client.close()

    assert isinstance(found, forebay_client.BadResponse)
    assert error is None


def test_unknown_fields_survive():
    """A message that is read and written again by an older program loses nothing."""
    newer = inference_pb2.PredictRequest(model="m").SerializeToString() + b"\xa2\x38\x03new"

    assert inference_pb2.PredictRequest.FromString(newer).SerializeToString() == newer


def test_an_older_server_does_not_support_it(surface, odd):
    """A method that it does not have is said to be just that."""
    client = surface(odd)
    with pytest.raises(forebay_client.Unsupported):
        client.submit("m", ROW)
    with pytest.raises(forebay_client.Unsupported):
        client.models()
    client.close()


def test_failures_leave_nothing_behind(surface):
    """Neither connections nor threads, however many calls and clients have failed."""

    def fail():
        with FakeServer({}) as server:
            client = surface(server.address, retry=None)
            for _ in range(20):
                with pytest.raises(forebay_client.ModelNotFound):
                    client.predict("nobody", ROW, hedge=0.5)
            with pytest.raises(forebay_client.ModelNotFound):
                list(client.stream("nobody", [ROW]))
            client.close()

    process = psutil.Process()
    with FakeServer({}) as other:  # gRPC's own descriptors come and go with the first and the last channel
        alive = surface(other.address, retry=None)
        with pytest.raises(forebay_client.ModelNotFound):
            alive.predict("nobody", ROW)
        fail()
        gc.collect()
        before = process.num_fds()
        for _ in range(5):
            fail()
        gc.collect()
        eventually(lambda: process.num_fds() <= before + 3, "its descriptors are closed")
        alive.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "forebay-stream"]
