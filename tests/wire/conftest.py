"""The scripted server of the wire suite, its clients (grpcio, and HTTP/2 by hand), and certificates.

Each test runs once for each adapter. After each, the server must be as it was before: no call open, no byte held.
"""

import contextlib
import datetime as dt
import importlib.util
import ipaddress
import socket
import ssl
import struct
import threading
import time
from pathlib import Path

import grpc
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

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

SERVICE = "/wire.test.Test/"
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

PATIENCE = 10.0  # seconds that anything may take on a busy machine


def eventually(condition, what, patience=PATIENCE):
    """Waits until a condition holds."""
    until = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < until, f"not in {patience} s: {what}"
        time.sleep(0.005)


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

    def wait_full(self, call):
        with self._changed:
            assert self._changed.wait_for(lambda: call in self.full, PATIENCE), "not reported as full"

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


@pytest.fixture(scope="session")
def wait_until():
    """Waits until a condition holds: `wait_until(lambda: ..., "what")`."""
    return eventually


# --- HTTP/2 by hand --------------------------------------------------------------------------------------------------


class RawClient:
    """An HTTP/2 client that does what it is told; nothing that it sends is validated."""

    def __init__(self, sock, *, window=None):
        self.sock = sock
        config = h2.config.H2Configuration(
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            validate_inbound_headers=False,
            header_encoding="utf-8",
        )
        self.h2 = h2.connection.H2Connection(config)
        if window is not None:
            initial = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
            self.h2.local_settings = h2.settings.Settings(client=True, initial_values=initial)
        self.h2.initiate_connection()
        self.events = []
        self.unread = {}
        self.closed = False
        self.flush()

    def flush(self):
        self.sock.sendall(self.h2.data_to_send())

    def request(self, method, *extra, end=False, content_type="application/grpc"):
        """Sends the headers of a call, and returns its stream id."""
        stream = self.h2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method if method.startswith("/") else SERVICE + method),
            (":authority", "test"),
            ("content-type", content_type),
            ("te", "trailers"),
            *extra,
        ]
        self.h2.send_headers(stream, headers, end_stream=end)
        self.flush()
        return stream

    @staticmethod
    def frame(body, *, flag=0, length=None):
        """A gRPC message with its prefix."""
        return struct.pack(">BI", flag, len(body) if length is None else length) + body

    def data(self, stream, data, *, end=False):
        self.h2.send_data(stream, data, end_stream=end)
        self.flush()

    def pump(self, timeout=0.05):
        """Reads what is there; returns the new events."""
        self.sock.settimeout(timeout)
        try:
            data = self.sock.recv(1 << 16)
        except TimeoutError:
            return []
        except OSError:
            data = b""
        if not data:
            self.closed = True
            return []
        try:
            events = self.h2.receive_data(data)
        except h2.exceptions.ProtocolError:
            self.closed = True
            return []
        self.events.extend(events)
        for event in events:
            if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                self.unread[event.stream_id] = self.unread.get(event.stream_id, 0) + event.flow_controlled_length
        with contextlib.suppress(OSError):
            self.flush()
        return events

    def read_on(self, stream):
        """Reads what comes, and gives the windows back; says whether the stream has ended."""
        self.pump()
        with contextlib.suppress(h2.exceptions.ProtocolError, OSError):
            while self.unread:
                self.h2.acknowledge_received_data(*reversed(self.unread.popitem()))
            self.flush()
        return self.closed or self.ended(stream)

    def received(self, stream):
        return b"".join(event.data for event in self.of(h2.events.DataReceived, stream))

    def until(self, condition, patience=PATIENCE):
        """Reads until a condition on this client holds, or the connection is closed."""
        until = time.monotonic() + patience
        while not condition(self) and not self.closed:
            assert time.monotonic() < until, f"nothing of the kind in {patience} s: {self.events}"
            self.pump()

    def of(self, kind, stream=None):
        return [
            event for event in self.events if isinstance(event, kind) and (stream is None or event.stream_id == stream)
        ]

    def ended(self, stream):
        return bool(self.of(h2.events.StreamEnded, stream) or self.of(h2.events.StreamReset, stream))

    def status(self, stream):
        """Waits for the end of a call; returns its grpc-status, or None if it was reset or cut off without one."""
        self.until(lambda client: client.ended(stream))
        for event in self.of(h2.events.ResponseReceived, stream) + self.of(h2.events.TrailersReceived, stream):
            for key, value in event.headers:
                if key == "grpc-status":
                    return int(value)
        return None

    def echo(self, body=b"good"):
        """A good call."""
        stream = self.request("Echo")
        self.data(stream, self.frame(body), end=True)
        return self.status(stream)

    def close(self):
        self.sock.close()


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


# --- certificates ----------------------------------------------------------------------------------------------------


class Authority:
    """A certificate authority for tests, whose files lie in one folder."""

    def __init__(self, folder, name="test CA"):
        self.folder = Path(folder)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._sign(self.name, self.key, ca=True, names=())
        self.ca_path = self._write("ca", self.certificate.public_bytes(serialization.Encoding.PEM))

    def _write(self, name, data):
        path = self.folder / f"{name}.pem"
        path.write_bytes(data)
        return str(path)

    def _sign(self, subject, key, *, ca, names):
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, name, *, uris=(), dns=("localhost",), file=None):
        """Makes a certificate and its key, and returns the paths; `file` writes over another's."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [
            *(x509.DNSName(item) for item in dns),
            *(x509.UniformResourceIdentifier(item) for item in uris),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key, ca=False, names=names)
        pem = serialization.Encoding.PEM
        plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return (
            self._write(file or name, certificate.public_bytes(pem)),
            self._write((file or name) + "-key", key.private_bytes(pem, *plain)),
        )

    @staticmethod
    def encrypt(path):
        """Puts a password on a key."""
        key = serialization.load_pem_private_key(Path(path).read_bytes(), None)
        locked = serialization.BestAvailableEncryption(b"password")
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        Path(path).write_bytes(key.private_bytes(*form, locked))


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
