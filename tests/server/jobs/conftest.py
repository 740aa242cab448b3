"""Jobs with everything real but the wire: store, keeper with its thread, desk, scheduler, and the synthetic engine."""

import secrets
import threading
import time
from collections import deque
from math import inf
from types import SimpleNamespace

import numpy as np
import pytest

from forebay_server.config.tree import JobsConfig
from forebay_server.engines.collate import Collator
from forebay_server.engines.synthetic import SyntheticEngine
from forebay_server.errors import StoreUnavailable
from forebay_server.jobs.desk import Desk
from forebay_server.jobs.keeper import Keeper
from forebay_server.jobs.memory import MemoryStore
from forebay_server.jobs.store import Submit
from forebay_server.scheduling.core import Core
from forebay_server.scheduling.latency import CostModel
from forebay_server.scheduling.policy import ModelPolicy
from forebay_server.scheduling.request import Level, Priority, Request
from forebay_server.scheduling.runner import Runner

BUCKET = ((1,),)
ROW_BYTES = 4


class JobRequest(Request):
    """A request whose rows are numbers, and that tells its run."""

    __slots__ = ("run",)

    together = True

    @classmethod
    def succeed_all(cls, done, outputs):
        plain = [(request, row) for request, row, pieces in done if type(request) is cls and pieces is None]
        data = [outputs.data(0, row, request.rows)[0] for request, row in plain]
        plain[0][0].run.runner.succeeded_all([request.run for request, _ in plain], data, plain[0][0].lane.key[1])
        return [each for each in done if type(each[0]) is not cls or each[2] is not None]

    def succeed(self, outputs, start, batch):
        data, _ = outputs.data(0, start, self.rows)
        self.run.succeeded(data, self.lane.key[1])

    def fail(self, error):
        self.run.failed(error)


def rows(*values):
    """A payload: as many rows as values."""
    return np.array(values, np.float32).tobytes()


class Shelf:
    """A store that can be taken away, in ways that the test chooses, and that remembers what it was asked."""

    def __init__(self, store):
        self.inner = store
        self.name = store.name
        self.fault = None
        """Raised instead of doing anything."""
        self.lose_acknowledgement = 0
        """So many groups are done, and then the store does not answer."""
        self.lose = None
        """The kind of operation whose groups these are; None: any."""
        self.seen = []
        self.lock = threading.Lock()

    def open(self, changed):
        self.changed = changed
        self.inner.open(changed)

    def apply(self, operations):
        with self.lock:
            if self.fault is not None:
                raise self.fault
            self.seen += operations
            outcomes = self.inner.apply(operations)
            hit = self.lose is None or any(isinstance(operation, self.lose) for operation in operations)
            if self.lose_acknowledgement and hit:
                self.lose_acknowledgement -= 1
                raise StoreUnavailable("gone before the answer")
            return outcomes

    def close(self):
        self.inner.close()

    def asked(self, kind):
        """What it was asked of a kind."""
        with self.lock:
            return [operation for operation in self.seen if isinstance(operation, kind)]


class Wall:
    """The store's clock, which can be moved."""

    def __init__(self):
        self.shift = 0.0

    def __call__(self):
        return time.time() + self.shift


class Host:
    """A dispatcher: turns until something is the case."""

    def __init__(
        self, *, store=None, shared=False, model="m", serve=True, timeout=5.0, claim_s=15.0, engine="",
        inline=False, instances=1, batch=4, seconds=1e-5, max_held_bytes=1 << 30, max_streams=1024, policy=None,
        **config,
    ):  # fmt: skip
        self.woken = threading.Event()
        self.finished = 0
        self.posted = deque()
        self.wall = Wall()
        self.store = store or Shelf(MemoryStore(clock=self.wall))
        self.core = Core()
        self.runner = Runner(self.core, wake=self.woken.set)
        self.engine = SyntheticEngine(
            f"shape=1,{engine}".rstrip(","), SimpleNamespace(instances=1, threads=1, device="cpu", options={})
        )
        spec = self.engine.load()
        self.key = (model, 1)
        self.decoded = []
        self.batches = []
        self.fail_decode = None
        self.answer_at_once = None
        self.at_once = []
        """How many were decoded at once, each time."""
        self.runner.add(
            self.key,
            ModelPolicy(**({"max_batch_size": batch, "best_batch_size": batch} | (policy or {}))),
            CostModel([(BUCKET, size, seconds) for size in (1, batch)]),
            [self.engine.instance(index) for index in range(instances)],
            Collator(spec),
            inline,
            time.monotonic(),
        )
        self.keeper = Keeper(self.store, post=self.post, timeout=timeout)
        self.desk = Desk(
            self.keeper,
            scheduler=self.runner,
            decoder=self,
            config=JobsConfig(claim_s=claim_s, **config),
            shared=shared,
            max_streams=max_streams,
            max_held_bytes=max_held_bytes,
            encode_error=lambda error: error.reason.encode(),
            finished=self.has_finished,
            clock=time.monotonic,
        )
        self.keeper.start()
        if serve:
            self.desk.serve(model)

    # --- What the dispatcher, the services and the app do ---

    def has_finished(self):
        self.finished += 1

    def post(self, action):
        self.posted.append(action)
        self.woken.set()

    def decode(self, payload, tenant, deadline, now, run):
        self.decoded.append(run)
        if self.fail_decode is not None:
            raise self.fail_decode
        if self.answer_at_once is not None:
            run.version = 7
            return self.answer_at_once
        lane = self.core.lane(self.key, BUCKET)
        if not isinstance(lane, Exception):
            request = JobRequest(
                lane, len(payload) // ROW_BYTES, len(payload), deadline, [payload], arrival=now, tenant=tenant,
                priority=run.job.priority, level=Level.JOB,
            )  # fmt: skip
            request.run = run
            return request
        raise lane

    def decode_all(self, runs, tenant, now):
        if self.fail_decode is not None or self.answer_at_once is not None:
            return []
        alike = next((place for place, run in enumerate(runs) if len(run.payload) != len(runs[0].payload)), len(runs))
        self.at_once.append(alike)
        return [self.decode(run.payload, tenant, inf, now, run) for run in runs[:alike]]

    def turn(self):
        while self.posted:
            self.posted.popleft()()
        now = time.monotonic()
        due = min(self.keeper.tick(now), self.desk.tick(now) if self.desk.due <= now else self.desk.due)
        wait = self.runner.turn(now)
        if not self.posted:
            due = min(self.keeper.due, self.desk.due)
            self.woken.wait(min(wait, 0.05, max(0.0, due - time.monotonic())))
        self.woken.clear()

    def until(self, condition, seconds=20.0):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not happen"
            self.turn()

    def settle(self, seconds=0.1):
        """Turns for a while: what does not happen in it does not happen."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.turn()

    def ask(self, method, *args):
        """What a call of the desk answers."""
        got = []
        getattr(self.desk, method)(*args, got.append)
        assert got == [], "answered from within"
        self.until(lambda: got)
        return got[0]

    # --- Jobs ---

    def job(self, payload=None, *, tenant="t", model="m", priority=Priority.NORMAL, request_id="", expire_after=None,
            ttl=60.0):  # fmt: skip
        payload = rows(1) if payload is None else payload
        return Submit(
            secrets.token_hex(16), tenant, request_id, payload, model, "", priority, payload, expire_after, ttl, None
        )

    def submit(self, payload=None, **kwargs):
        return self.ask("submit", self.job(payload, **kwargs))

    def submit_all(self, count, payload=None, **kwargs):
        """Submits at once; the jobs."""
        got = []
        for _ in range(count):
            self.desk.submit(self.job(payload, **kwargs), got.append)
        self.until(lambda: len(got) == count)
        return got

    def look(self, job):
        return self.ask("look", job.id, job.tenant)

    def wait(self, job, seconds=20.0):
        got = []
        self.desk.wait(job.id, job.tenant, "c", time.monotonic() + seconds, got.append)
        self.until(lambda: got)
        return got[0]

    def close(self):
        self.engine.release()
        self.desk.close()
        self.runner.close(1.0)
        assert self.keeper.close(5.0)
        while self.posted or not self.keeper.due:
            while self.posted:
                self.posted.popleft()()
            self.keeper.tick(time.monotonic())


@pytest.fixture
def host():
    """Makes hosts, and closes them."""
    made = []

    def make(**kwargs):
        made.append(Host(**kwargs))
        return made[-1]

    yield make
    for each in made:
        each.store.fault = None
        each.close()


@pytest.fixture
def forever():
    return inf
