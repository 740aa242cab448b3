"""Receivers on real sockets, a canary that counts who comes, an outbox, and certificates."""

import contextlib
import socket
import ssl
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import pytest

from forebay_server.jobs.sqlite import SqliteStore
from forebay_server.jobs.states import JobState
from forebay_server.jobs.store import (
    Cancel,
    Claim,
    Delivered,
    Deliveries,
    Finish,
    Flow,
    Job,
    Renew,
    Submit,
    Undelivered,
    Webhook,
)
from tests.certificates import Authority

PATIENCE = 10.0  # seconds that anything may take on a busy machine


def make_job(number=1, **changes):
    """A job that has succeeded."""
    job = Job(
        id=f"{number:032x}",
        tenant="acme",
        sequence=number,
        state=JobState.SUCCEEDED,
        model="digits",
        version="stable",
        served_version=3,
        priority=1,
        request_id="order-7",
        attempt=2,
        crashes=0,
        created=1_700_000_000.25,
        started=1_700_000_001.0,
        ended=1_700_000_002.5,
        expires=None,
        purges=1_700_086_402.5,
    )
    return job._replace(**changes)


class Received(NamedTuple):
    """A request that has arrived."""

    path: str
    headers: dict
    body: bytes


class Receiver:
    """An HTTP server. It answers with what is next in `answers` (status, headers), and then with 204.

    `before` is called first, in the thread of the request.
    """

    def __init__(self, certificate=None):
        self.received = []
        self.answers = deque()
        self.before = lambda: None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                outer.received.append(
                    Received(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                )
                outer.before()
                status, headers = outer.answers.popleft() if outer.answers else (204, {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST  # noqa: N815  # the base class wants this name

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        self.origin = f"http{'s' if certificate else ''}://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


class RawReceiver:
    """A TCP server that hands each connection to `serve`, in a thread of its own, and then closes it."""

    def __init__(self, serve):
        self.connections = 0
        self.bytes_sent = 0
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.origin = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection):
        with connection, contextlib.suppress(OSError):
            self._serve(connection, self)

    def close(self):
        self._listener.close()


class Canary:
    """Listens on every address of this machine, IPv4 and IPv6, and counts what comes."""

    def __init__(self):
        self.connections = 0
        self.bytes = 0
        self._listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(PATIENCE)
                    self.bytes += len(connection.recv(65536))
                    connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    def close(self):
        self._listener.close()


class Outbox:
    """A store of finished jobs with webhooks, whose clock the test can put forward.

    Attributes:
        delays: Of each `Undelivered`.
        dealt_with: The ids of each `Delivered`.
        looks: How many `Deliveries` there were.
        failure: What `ask` raises, if set.
    """

    def __init__(self, path):
        self._lock = threading.Lock()
        self._store = SqliteStore(path, clock=self.now)
        self._store.open(lambda _: None)
        self._ahead = 0.0
        self._jobs = 0
        self.delays = []
        self.dealt_with = []
        self.looks = 0
        self.failure = None

    def add(self, url, *, count=1, secret="first", state=JobState.SUCCEEDED, tries=0):
        """Has jobs finish; the id of the last. `tries`: how many times its message was taken before."""
        operations = []
        with self._lock:
            for _ in range(count):
                self._jobs += 1
                job, owner = f"{self._jobs:032x}", f"owner {self._jobs}"
                operations += [
                    Submit(job, "acme", "", b"", "digits", "", 1, b"payload", None, 86_400.0, Webhook(url, secret)),
                    Renew(owner, 60.0),
                    Claim(owner, Flow("digits", "acme", 1, suspect=False), 1),
                    Cancel(job, "acme") if state is JobState.CANCELLED else Finish(job, owner, 1, state, b"outcome", 3),
                ]
            operations += [Deliveries(1, 60.0), Undelivered(job, 0.0)] * tries
            outcomes = self._store.apply(operations)
            assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        return job

    def now(self):
        """By this clock."""
        return time.time() + self._ahead

    def forward(self, seconds):
        """Puts the clock forward."""
        self._ahead += seconds

    def empty(self):
        """Whether all messages are dealt with."""
        return len(self.dealt_with) == self._jobs

    def ask(self, operation):
        """What a sender asks."""
        with self._lock:
            if self.failure is not None:
                raise self.failure
            (outcome,) = self._store.apply([operation])
        match operation:
            case Deliveries():
                self.looks += 1
            case Delivered():
                self.dealt_with.append(operation.id)
            case Undelivered():
                self.delays.append(operation.delay)
        return outcome

    def close(self):
        """Lets go of the file."""
        self._store.close()


@pytest.fixture
def closing():
    """Closes what it is given, the youngest first."""
    with contextlib.ExitStack() as stack:

        def close_later(thing):
            stack.callback(thing.close)
            return thing

        yield close_later


@pytest.fixture
def receiver(closing):
    """A receiver over plain HTTP."""
    return closing(Receiver())


@pytest.fixture
def canary(closing):
    """What no message may reach."""
    return closing(Canary())


@pytest.fixture
def outbox(tmp_path, closing):
    """An empty outbox."""
    return closing(Outbox(tmp_path / "jobs.db"))


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """A certificate authority."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def trusting(authority):
    """A TLS context that trusts that authority alone."""
    return ssl.create_default_context(cafile=authority.ca_path)
