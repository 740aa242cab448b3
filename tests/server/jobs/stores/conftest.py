"""One suite for every store: a fixture that runs each test on all of them, and a clock in the test's hand.

Another store is one line in `STORES`. Its function is given pytest's `request` (for fixtures of its own), and gives a
function that prepares a new, empty place each time it is called, and gives in turn what makes an unopened store on that
place from a clock.
"""

from collections.abc import Callable
from itertools import count

import pytest

from forebay_server.errors import JobNotFound
from forebay_server.jobs.memory import MemoryStore
from forebay_server.jobs.postgres import PostgresStore
from forebay_server.jobs.sqlite import SqliteStore
from forebay_server.jobs.states import JobState
from forebay_server.jobs.store import (
    Backlog,
    Cancel,
    Claim,
    ClaimLost,
    Delivered,
    Deliveries,
    Finish,
    Flow,
    Get,
    Page,
    Purge,
    Reap,
    Release,
    Renew,
    Store,
    Submit,
    Undelivered,
    Webhook,
)

Clock = Callable[[], float]
Place = Callable[[Clock], Store]


def memory(_request) -> Callable[[], Place]:
    return lambda: lambda clock: MemoryStore(clock=clock)


def sqlite(request) -> Callable[[], Place]:
    folder, numbers = request.getfixturevalue("tmp_path_factory").mktemp("stores"), count()

    def place() -> Place:
        path = folder / f"{next(numbers)}.db"
        return lambda clock: SqliteStore(path, clock=clock)

    return place


def postgresql(request) -> Callable[[], Place]:
    server = request.getfixturevalue("postgres")

    def place() -> Place:
        url = server.url(schema=server.schema())
        return lambda clock: PostgresStore(url, clock=clock)

    return place


STORES: dict[str, Callable[[pytest.FixtureRequest], Callable[[], Place]]] = {
    "memory": memory,
    "sqlite": sqlite,
    "postgresql": postgresql,
}
DURABLE = [name for name in STORES if name != "memory"]
"""Those that keep what they have when they are closed."""

START = 1_700_000_000.0
"""Instants of the tests are this plus multiples of 1/8, which every store keeps exactly."""
HOOK = Webhook("https://example.test/done", "s")
IDS = (f"{number:032x}" for number in count(1))


class World:
    """A store, its clock, and its operations with defaults. Each method is a group of its own."""

    HOOK = HOOK
    EXPIRED = b"expired"
    CRASHED = b"crashed"

    def __init__(self, place: Place, *, lasts: bool) -> None:
        self.place = place
        self.lasts = lasts
        """Whether the store keeps what it has when it is closed."""
        self.now = START
        self.told: list = []
        self.open()

    def open(self):
        self.store = self.place(lambda: self.now)
        self.store.open(self.told.append)

    def reopen(self):
        self.store.close()
        self.open()

    def do(self, *operations):
        return self.store.apply(operations)

    def one(self, operation):
        (outcome,) = self.store.apply([operation])
        return outcome

    def renew(self, owner="o", seconds=1e6):
        return self.one(Renew(owner, seconds))

    def new(self, **values):
        """A `Submit`."""
        defaults = {
            "id": next(IDS), "tenant": "t", "request_id": "", "fingerprint": b"f", "model": "m", "version": "",
            "priority": 2, "payload": b"request", "expire_after": None, "ttl": 60.0, "webhook": None,
        }  # fmt: skip
        return Submit(**(defaults | values))

    def submit(self, **values):
        outcome = self.one(self.new(**values))
        assert outcome.created
        return outcome.job

    def claim(self, limit=1, *, nbytes=1 << 30, owner="o", model="m", tenant="t", priority=2, suspect=False):
        return self.one(Claim(owner, Flow(model, tenant, priority, suspect), limit, nbytes))

    def finish(self, job, state=JobState.SUCCEEDED, *, owner="o", attempt=None, outcome=b"response", version=3):
        attempt = job.attempt if attempt is None else attempt
        return self.one(Finish(job.id, owner, attempt, state, outcome, version))

    def release(self, job, *, owner="o", attempt=None, delay=0.0, refund=False):
        attempt = job.attempt if attempt is None else attempt
        return self.one(Release(job.id, owner, attempt, delay, refund))

    def cancel(self, job, tenant="t"):
        return self.one(Cancel(job.id, tenant))

    def get(self, job, tenant="t"):
        return self.one(Get(job.id, tenant))

    def page(self, *states, tenant="t", model="", before=0, limit=100):
        return self.one(Page(tenant, states, model, before, limit))

    def reap(self, limit=100, max_attempts=5):
        return self.one(Reap(limit, max_attempts, self.EXPIRED, self.CRASHED))

    def purge(self, limit=100):
        return self.one(Purge(limit))

    def backlog(self):
        return self.one(Backlog())

    def deliveries(self, limit=100, seconds=30.0):
        return self.one(Deliveries(limit, seconds))

    def delivered(self, job):
        return self.one(Delivered(job.id))

    def undelivered(self, job, delay):
        return self.one(Undelivered(job.id, delay))

    def gone(self, job, tenant="t"):
        return isinstance(self.get(job, tenant), JobNotFound)

    def crash(self, owner="o"):
        """The owner's life ends, and others take its jobs over."""
        assert self.renew(owner, 0.0)
        return self.reap()

    def running(self, *, owner="o", **values):
        """A job that `owner` has claimed."""
        job = self.submit(**values)
        self.renew(owner)
        (claimed,) = self.claim(owner=owner, model=job.model, tenant=job.tenant, priority=job.priority)
        assert claimed.job.id == job.id
        return claimed.job

    def ended(self, state=JobState.SUCCEEDED, **values):
        """A job that was claimed by `o` and is in a final state."""
        job = self.running(**values)
        job = self.cancel(job, job.tenant) if state is JobState.CANCELLED else self.finish(job, state)
        assert not isinstance(job, ClaimLost)
        return job

    def in_state(self, state, **values):
        """A job in a state, claimed by `o` once at some time."""
        if state is JobState.RUNNING:
            return self.running(**values)
        if state is JobState.PENDING:
            return self.release(self.running(**values))
        return self.ended(state, **values)


def make_world(request, name) -> Callable[[], World]:
    """Each call gives a new, empty, open store of a kind."""
    prepare = STORES[name](request)
    return lambda: World(prepare(), lasts=name in DURABLE)


@pytest.fixture(params=STORES)
def world(request):
    """A new, empty, open store of each kind."""
    world = make_world(request, request.param)()
    yield world
    world.store.close()


@pytest.fixture(params=DURABLE)
def lasting(request):
    """The same, of each kind that lasts."""
    world = make_world(request, request.param)()
    yield world
    world.store.close()


@pytest.fixture
def worlds(request):
    """What makes a new, empty, open store, for every kind by its name."""
    return {name: make_world(request, name) for name in STORES}
