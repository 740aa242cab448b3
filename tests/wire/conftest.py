"""The scripted server of the wire suite, and its clients: grpcio, and HTTP/2 by hand.

Each test runs once for each adapter. After each, the server must be as it was before: no call open, no byte held.
"""

import importlib.util
import socket
import ssl
import threading
from pathlib import Path

import grpc
import pytest

from forebay_server.wire.choose import open_wire
from forebay_server.wire.port import (
    CALL,
    CREDIT,
    FAIL,
    FINISH,
    HALF_CLOSE,
    MESSAGE,
    OPEN,
    RESPOND,
    SEND,
    Exposure,
    Failure,
    Limits,
    Method,
    MethodKind,
    Refusals,
    Tls,
    WireConfig,
)
from tests.certificates import Authority
from tests.waiting import PATIENCE, eventually
from tests.wire.http2 import SERVICE, RawClient

METHODS = [
    # Answers with the request.
    Method(path=SERVICE + "Echo", kind=MethodKind.UNARY),
    # Answers with as many zeros as the request says.
    Method(path=SERVICE + "Sized", kind=MethodKind.UNARY),
    # Fails with what `Server.failure` says.
    Method(path=SERVICE + "Fail", kind=MethodKind.UNARY),
    # Left to the test.
    Method(path=SERVICE + "Hold", kind=MethodKind.UNARY),
    # "N SIZE": answers with N messages of SIZE bytes, all at once.
    Method(path=SERVICE + "Pour", kind=MethodKind.SERVER_STREAM),
    # Echoes each message, with four credits, and finishes after the half-close.
    Method(path=SERVICE + "Chat", kind=MethodKind.BIDI_STREAM),
    # Left to the test.
    Method(path=SERVICE + "Manual", kind=MethodKind.BIDI_STREAM),
    # For the probe exposure.
    Method(path="/wire.test.Probe/Check", kind=MethodKind.UNARY),
]
PATHS = frozenset(method.path for method in METHODS)
INDEX = {method.path.rpartition("/")[2]: index for index, method in enumerate(METHODS)}
ECHO, SIZED, FAILING, POUR, CHAT, CHECK = (INDEX[name] for name in ("Echo", "Sized", "Fail", "Pour", "Chat", "Check"))

REFUSALS = Refusals(
    message_too_large=Failure(8, "refusal: message too large"),
    response_too_large=Failure(8, "refusal: response too large"),
    bytes_held=Failure(8, "refusal: bytes held"),
    deadline_expired=Failure(4, "refusal: deadline expired"),
    slow_reader=Failure(8, "refusal: slow reader"),
    slow_sender=Failure(4, "refusal: slow sender"),
    draining=Failure(14, "refusal: draining"),
    compressed=Failure(12, "refusal: compressed"),
)


class Server:
    """An adapter under a dispatcher thread that plays the script above and records all events."""

    def __init__(self, adapter, *, limits, exposures):
        self.wire = open_wire(
            adapter, WireConfig(methods=METHODS, exposures=exposures, refusals=REFUSALS, limits=limits)
        )
        self.events = []
        self.full = []
        self.failure = Failure(13, "not set")
        self.errors = []
        self.closed = False
        self._changed = threading.Condition()
        self._stop = False
        self._channels = []
        self._thread = threading.Thread(target=self._dispatch)
        self.addresses = self.wire.start()
        self.address = self.addresses[0]
        self._thread.start()

    # --- the dispatcher ----------------------------------------------------------------------------------------------

    def _dispatch(self):
        try:
            while not self._stop:
                events = self.wire.take(1000, 60.0)
                actions = []
                for event in events:
                    self._play(event, actions)
                with self._changed:
                    self.events.extend(events)
                    self._changed.notify_all()
                if actions:
                    self.answer(actions)
        except BaseException as exc:  # noqa: BLE001  # shown by the fixture
            self.errors.append(exc)

    def _play(self, event, actions):
        kind, call, method, body, *_ = event
        if kind == CALL and method in {ECHO, CHECK}:
            actions.append((RESPOND, call, body))
        elif kind == CALL and method == SIZED:
            actions.append((RESPOND, call, bytes(int(body))))
        elif kind == CALL and method == FAILING:
            actions.append((FAIL, call, self.failure))
        elif kind == CALL and method == POUR:
            count, size = map(int, body.split())
            actions.extend((SEND, call, bytes(size)) for _ in range(count))
            actions.append((FINISH, call, None))
        elif kind == OPEN and method == CHAT:
            actions.append((CREDIT, call, 4))
        elif kind == MESSAGE and method == CHAT:
            actions.extend([(SEND, call, body), (CREDIT, call, 1)])
        elif kind == HALF_CLOSE and method == CHAT:
            actions.append((FINISH, call, None))

    # --- for tests ---------------------------------------------------------------------------------------------------

    def answer(self, actions):
        full = self.wire.answer(actions)
        with self._changed:
            self.full.extend(full)
            self._changed.notify_all()
        return full

    def of(self, kind, method=None, call=None):
        """The events so far of a kind."""
        index = None if method is None else INDEX[method]
        with self._changed:
            return [
                event
                for event in self.events
                if event[0] == kind and (index is None or event[2] == index) and (call is None or event[1] == call)
            ]

    def wait(self, kind, method=None, call=None, count=1):
        """Waits until so many events of a kind have come, and returns them."""
        with self._changed:
            arrived = self._changed.wait_for(lambda: len(self.of(kind, method, call)) >= count, PATIENCE)
        found = self.of(kind, method, call)
        assert arrived, f"{len(found)} of {count} events of kind {kind}; all: {self.events[-20:]}"
        return found

    def kinds(self, call):
        """The kinds of all events of a call, in order."""
        with self._changed:
            return [event[0] for event in self.events if event[1] == call]

    def channel(self, index=0, *, credentials=None, authority="localhost", options=()):
        """A grpcio channel of its own connection."""
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
            ("grpc.max_receive_message_length", -1),
            *options,
        ]
        address = self.addresses[index].replace("0.0.0.0", "127.0.0.1")
        if address.startswith("unix:"):
            options.append(("grpc.default_authority", authority))
        if credentials is None:
            channel = grpc.insecure_channel(address, options)
        else:
            channel = grpc.secure_channel(address.replace("127.0.0.1", "localhost"), credentials, options)
        self._channels.append(channel)
        return channel

    def connect(self, index=0):
        """A plain socket."""
        address = self.addresses[index]
        if address.startswith("unix:"):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(PATIENCE)
            sock.connect(address.removeprefix("unix:"))
            return sock
        host, _, port = address.rpartition(":")
        sock = socket.create_connection((host.strip("[]"), int(port)), PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def hang_up(self):
        """Closes the channels."""
        for channel in self._channels:
            channel.close()

    def idle(self):
        figures = self.wire.figures()
        return figures.calls == 0 and figures.held_bytes == 0

    def stop(self):
        """Ends the dispatcher; `take` is not called any more."""
        self._stop = True
        self.wire.wake()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the dispatcher did not end"

    def close(self, grace=0.0):
        self.stop()
        self.closed = True
        self.wire.close(grace)


@pytest.fixture(params=["grpc.aio", pytest.param("native", marks=pytest.mark.native)])
def adapter(request):
    """Each adapter in turn."""
    if request.param == "native" and importlib.util.find_spec("forebay_native") is None:
        pytest.skip("native front end not installed")
    return request.param


@pytest.fixture
def serve(adapter):
    """Starts scripted servers, and checks at the end that they are idle again."""
    servers = []

    def start(*, exposures=None, **limits):
        if exposures is None:
            exposures = [Exposure(name="public", address="127.0.0.1:0", methods=PATHS)]
        server = Server(adapter, limits=Limits(**limits), exposures=exposures)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.hang_up()
        if not server.closed:
            try:
                eventually(server.idle, f"idle again: {server.wire.figures()}")
            finally:
                server.close()
        assert not server.errors


@pytest.fixture
def server(serve):
    """A scripted server on one plain exposure, with the default limits."""
    return serve()


@pytest.fixture
def channel(server):
    """A grpcio channel to `server`."""
    return server.channel()


def _call(channel, method, body=b"", **options):
    options.setdefault("timeout", PATIENCE)
    return channel.unary_unary(method if method.startswith("/") else SERVICE + method)(body, **options)


@pytest.fixture(scope="session")
def call():
    """Makes a unary call: `call(channel, "Echo", b"...", timeout=..., metadata=...)`."""
    return _call


@pytest.fixture(scope="session")
def error():
    """As `call`, for one that must fail; returns the error."""

    def fail(channel, method, body=b"", **options):
        with pytest.raises(grpc.RpcError) as caught:
            _call(channel, method, body, **options)
        return caught.value

    return fail


@pytest.fixture
def raw(server):
    """Opens HTTP/2 connections by hand: `raw()`, or `raw(other_server)`."""
    clients = []

    def connect(to=None, **options):
        client = RawClient((to or server).connect(), **options)
        clients.append(client)
        return client

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def authority(tmp_path):
    """A fresh certificate authority."""
    return Authority(tmp_path)


@pytest.fixture
def strange_authority(tmp_path):
    """Another one, that nobody trusts."""
    folder = tmp_path / "strange"
    folder.mkdir()
    return Authority(folder, "strange CA")


@pytest.fixture
def serve_tls(serve, authority):
    """Starts a server with TLS; with `mutual`, client certificates are required."""

    def start(*, mutual=False, **limits):
        certificate, key = authority.issue("server")
        tls = Tls(certificate=certificate, key=key, client_ca=authority.ca_path if mutual else None)
        return serve(exposures=[Exposure(name="public", address="127.0.0.1:0", methods=PATHS, tls=tls)], **limits)

    return start


@pytest.fixture
def credentials(authority):
    """Channel credentials that trust the authority, with a client certificate if one is given."""

    def make(pair=None):
        root = Path(authority.ca_path).read_bytes()
        if pair is None:
            return grpc.ssl_channel_credentials(root)
        certificate, key = (Path(path).read_bytes() for path in pair)
        return grpc.ssl_channel_credentials(root, key, certificate)

    return make


@pytest.fixture
def common_name(authority):
    """Shakes hands with a server, and returns the common name of its certificate."""

    def shake(server, versions=(ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)):
        context = ssl.create_default_context(cafile=authority.ca_path)
        context.minimum_version, context.maximum_version = versions
        context.set_alpn_protocols(["h2"])
        with context.wrap_socket(server.connect(), server_hostname="localhost") as sock:
            assert sock.selected_alpn_protocol() == "h2"
            return dict(pair for part in sock.getpeercert()["subject"] for pair in part)["commonName"]

    return shake
