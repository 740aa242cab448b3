"""A world without clock, threads or engines for the tests of the core: seconds are arguments."""

from math import inf

import pytest

from forebay_server.scheduling.core import TRANSITIONS, Core
from forebay_server.scheduling.latency import CostModel
from forebay_server.scheduling.outcomes import Faulted, Succeeded
from forebay_server.scheduling.policy import ModelPolicy, ServerPolicy
from forebay_server.scheduling.request import Level, Priority, Request, State

KEY = ("m", 1)
BUCKET = ((4,),)
OTHER_BUCKET = ((8,),)


class Probe(Request):
    """A request that remembers what it was told, and checks each step of its life against the table."""

    __slots__ = ("_state", "error", "name", "outputs")

    def __init__(self, *args, name="", **kwargs):
        self._state = State.NEW
        self.outputs = None
        self.error = None
        self.name = name
        super().__init__(*args, **kwargs)

    @property
    def state(self):
        return self._state

    @state.setter
    def state(self, new):
        assert new is self._state is State.NEW or new in TRANSITIONS[self._state], f"{self._state!r} -> {new!r}"
        self._state = new

    def __repr__(self):
        return self.name or f"<{self.tenant} {self.rows}@{self.deadline}>"


class World:
    """One model in a core: base 10 ms and 1 ms per row, batches of up to 8 rows, unless it is told otherwise.

    `costs` has seconds by rows instead.
    """

    def __init__(
        self, *, base=0.010, row=0.001, costs=None, server=None, sizes=(1, 2, 4, 8, 16, 32), inline=False, **policy
    ):
        self.base, self.row = base, row
        self.core = Core(server or ServerPolicy(), random=lambda: 0.5)
        self.policy = ModelPolicy(**({"max_batch_size": 8, "best_batch_size": 8} | policy))
        costs = costs or {size: base + row * size for size in sizes}
        self.costs = CostModel([(BUCKET, size, seconds) for size, seconds in costs.items()])
        self.instances = self.core.add_model(KEY, self.policy, self.costs, 0.0, inline=inline)

    def lane(self, bucket=BUCKET, parameters=None):
        return self.core.lane(KEY, bucket, parameters)

    def request(self, rows=1, deadline=100.0, *, now=0.0, tenant="", priority=Priority.NORMAL, level=Level.ONLINE,
                nbytes=10, bucket=BUCKET, parameters=None, name="", lane=None):  # fmt: skip
        return Probe(
            lane or self.lane(bucket, parameters), rows, nbytes, deadline, (), arrival=now, tenant=tenant,
            priority=priority, level=level, name=name,
        )  # fmt: skip

    def admit(self, *args, now=0.0, **kwargs):
        """Admits a request that must be let in."""
        request = self.request(*args, now=now, **kwargs)
        assert self.core.admit(request, now) is None
        return request

    def refuse(self, *args, now=0.0, **kwargs):
        """The error of a request that must be refused."""
        request = self.request(*args, now=now, **kwargs)
        error = self.core.admit(request, now)
        assert error is not None
        assert request.state is State.REFUSED
        return error

    def take(self, now=0.0, instance=None):
        return self.core.next_batch(self.instances[0] if instance is None else instance, now)

    def finish(self, batch, now, outcome=None, seconds=None):
        """The batch is done; what its requests got is kept in them."""
        batch.finished = now
        batch.collated = now - (self.base + self.row * batch.padded_rows if seconds is None else seconds)
        done = self.core.finished(batch, outcome or Succeeded("outputs"), now)
        for request, start, pieces in done:
            assert request.outputs is None
            request.outputs = start if pieces is None else [(piece[0], piece[3]) for piece in pieces]
        self.settle()
        return [request for request, _, _ in done]

    def settle(self):
        """Hands out failures; returns those that failed."""
        failed = []
        for request, error in self.core.failures:
            assert request.error is None
            assert request.outputs is None
            request.error = error
            failed.append(request)
        self.core.failures = []
        return failed

    def run(self, now=0.0, poison=(), fault=None):
        """Runs batches one after the other until nothing is left; a batch with a poisonous request faults."""
        ran = []
        while (batch := self.take(now)) is not None:
            ran.append([part.request for part in batch.parts])
            bad = any(part.request in poison for part in batch.parts)
            self.finish(batch, now, Faulted(fault) if bad else None)
        self.settle()
        return ran

    def figures(self):
        return self.core.figures(KEY)


@pytest.fixture
def world():
    """Makes worlds."""
    return World


@pytest.fixture
def forever():
    return inf
