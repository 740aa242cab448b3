"""Long seeded runs of the core with a simulated clock: arrivals, service times with noise, failures, cancellations.

The same invariants as in the state machine, over thousands of events of a plausible kind; after each run the faults
stop and everything must come to an end. The seeds follow from the number in the test's name.
"""

import heapq
import random
from itertools import count
from math import inf

import pytest

from forebay_server.errors import Internal
from forebay_server.scheduling.core import Core
from forebay_server.scheduling.latency import CostModel
from forebay_server.scheduling.outcomes import Faulted, NoMemory, Succeeded
from forebay_server.scheduling.policy import ModelPolicy, ServerPolicy, TenantPolicy
from forebay_server.scheduling.queue import HORIZON
from forebay_server.scheduling.request import Level, Priority, Request, State

BUCKET = ((4,),)
SIZES = (1, 2, 4, 8, 16, 32)
BASE, ROW = 0.010, 0.001
CAPACITY = 32 / (BASE + 32 * ROW)  # rows/s of one instance
MAX_BYTES = 200_000


class Call(Request):
    """A request that counts its ends."""

    __slots__ = ("ends", "poison")

    def __init__(self, *args, poison=False, **kwargs):
        super().__init__(*args, **kwargs)
        self.poison = poison
        self.ends = 0


class Simulation:
    """Models, callers and a clock."""

    def __init__(
        self, seed, *, models=3, instances=1, depth=1, noise=0.1, out_of_memory=0.0, delay=0.0, slow=1.0, tenants=None
    ):
        self.rng = random.Random(seed)
        self.depth = depth
        self.noise, self.out_of_memory, self.slow = noise, out_of_memory, slow
        self.now = 0.0
        self.events = 0
        self.agenda = []
        self.serial = count()
        self.core = Core(ServerPolicy(max_held_bytes=MAX_BYTES, tenants=tenants or {}), random=self.rng.random)
        self.keys = [(f"m{index}", 1) for index in range(models)]
        self.instances = []
        for key in self.keys:
            costs = CostModel([(BUCKET, rows, BASE + ROW * rows) for rows in SIZES])
            policy = ModelPolicy(
                max_batch_size=32, max_queued_rows=5000, instances=instances, max_delay=delay, max_execution=1e9,
                depth=depth,
            )  # fmt: skip
            self.instances += self.core.add_model(key, policy, costs, 0.0)
        self.running = {number: [] for number in self.instances}
        self.free = dict.fromkeys(self.instances, 0.0)  # when each has computed all that it has
        self.lanes = {(key, bucket): self.core.lane(key, bucket) for key in self.keys for bucket in (BUCKET, ((8,),))}
        self.accepted, self.good, self.refused = [], 0, 0
        self.served = {}
        self.answered = {}

    def at(self, when, action, *args):
        heapq.heappush(self.agenda, (when, next(self.serial), action, args))

    def arrive(self, key, bucket, rows, patience, tenant, priority, level, poison, cancel_after):
        call = Call(
            self.lanes[key, bucket], rows, 100 * rows, self.now + patience, (), arrival=self.now, tenant=tenant,
            priority=priority, level=level, poison=poison,
        )  # fmt: skip
        if self.core.admit(call, self.now) is None:
            self.accepted.append(call)
            if cancel_after is not None:
                self.at(self.now + cancel_after, self.cancel, call)
        else:
            self.refused += 1

    def cancel(self, call):
        if call.state in (State.WAITING, State.RUNNING):
            self.core.cancel(call, self.now)
            call.ends += 1

    def done(self, number, began):
        batch = self.running[number].pop(0)
        batch.collated, batch.finished = began, self.now
        if any(part.request.poison for part in batch.parts):
            outcome = Faulted(Internal("x"))
        elif batch.rows > 1 and self.rng.random() < self.out_of_memory:
            outcome = NoMemory()
        else:
            outcome = Succeeded(None)
        for call, _, _ in self.core.finished(batch, outcome, self.now):
            assert not call.poison
            assert call.deadline >= self.now
            call.ends += 1
            self.good += 1
            self.answered[call.tenant] = self.answered.get(call.tenant, 0) + call.rows

    def turn(self):
        self.core.tick(self.now)
        for number in self.instances:
            while (batch := self.core.next_batch(number, self.now)) is not None:
                self.begin(number, batch)
        for call, error in self.core.failures:
            assert call.poison or error.reason != "INTERNAL"
            call.ends += 1
        self.core.failures = []
        self.core.events.clear()

    def begin(self, number, batch):
        assert batch.rows <= batch.padded_rows <= 32
        for part in batch.parts:
            assert part.request.deadline > self.now
            assert part.request.state in (State.WAITING, State.RUNNING)
            assert part.request.lane is batch.lane
            if batch.scheduled is None:
                self.in_order(part.request)
            self.served[part.request.tenant] = self.served.get(part.request.tenant, 0) + part.rows
        self.running[number].append(batch)
        assert len(self.running[number]) <= self.depth
        seconds = (BASE + ROW * batch.padded_rows) * self.slow * self.rng.lognormvariate(0.0, self.noise)
        self.free[number] = max(self.now, self.free[number]) + seconds
        self.at(self.free[number], self.done, number, self.now)

    def in_order(self, taken):
        """What its queue has left is due later, and came no horizon earlier."""
        left = taken.queue.head()
        if left is not None:
            assert taken.due <= left.due
            assert taken.level is Level.JOB or taken.arrival < left.arrival + HORIZON

    def run(self, until=inf):
        """Runs what is on the agenda up to an instant."""
        while True:
            due = self.agenda[0][0] if self.agenda else inf
            wake = self.core.next_wakeup()
            when = min(due, max(wake, self.now))
            if when > until or when == inf:
                break
            self.now = when
            while self.agenda and self.agenda[0][0] <= when:
                _, _, action, args = heapq.heappop(self.agenda)
                action(*args)
                self.events += 1
            self.turn()
            assert self.core.held_bytes <= MAX_BYTES

    def random_arrivals(self, number, rate, *, poison=0.0, cancels=0.0, jobs=0.0, tenants=50):
        """Puts so many arrivals on the agenda, `rate` requests per second in all."""
        rng, when = self.rng, self.now
        for _ in range(number):
            when += rng.expovariate(rate)
            job = rng.random() < jobs
            self.at(
                when, self.arrive, rng.choice(self.keys), BUCKET if rng.random() < 0.8 else ((8,),),
                1 if rng.random() < 0.8 else rng.choice([2, 5, 16, 40, 100]),
                inf if job else rng.choice([0.05, 0.2, 1.0, 5.0]), f"t{int(tenants * rng.random() ** 2)}",
                rng.choice(list(Priority)), Level.JOB if job else Level.ONLINE, rng.random() < poison,
                rng.expovariate(20.0) if rng.random() < cancels else None,
            )  # fmt: skip

    def check_end(self):
        """Liveness: everything that was accepted has ended once, and nothing is left."""
        self.run()
        assert self.core.idle()
        assert self.core.held_bytes == 0
        assert all(call.ends == 1 for call in self.accepted)
        assert not any(self.running.values())


def faulty_run(seed, arrivals):
    """One run with everything going wrong now and then; what it did."""
    shape = random.Random(seed)
    sim = Simulation(
        seed, depth=1 + seed % 2, instances=shape.choice([1, 2]), noise=shape.choice([0.0, 0.1, 0.5]),
        out_of_memory=shape.choice([0.0, 0.01]), delay=shape.choice([0.0, 0.0, 0.005]), slow=shape.choice([0.5, 1, 2]),
    )  # fmt: skip
    load = shape.choice([0.3, 1.0, 3.0, 10.0])
    sim.random_arrivals(arrivals, load * 3 * CAPACITY / 6, poison=0.001, cancels=0.05, jobs=0.1)
    sim.check_end()
    return sim


@pytest.mark.parametrize("block", range(10))
def test_faulty_runs_end_well(block):
    """Invariants hold through noise, poison, lack of memory, cancellations and overload, and every request ends."""
    for seed in range(block * 5, block * 5 + 5):
        faulty_run(seed, 2000)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("block", range(20))
def test_many_faulty_runs_end_well(block):
    """The same with many more seeds and longer runs."""
    for seed in range(1000 + block * 50, 1050 + block * 50):
        faulty_run(seed, 10_000)


def overload(times, *, slow=1.0, depth=1, seconds=15.0):
    """Requests per second answered within their deadline, at so many times the capacity of one instance."""
    sim = Simulation(1, models=1, noise=0.1, slow=slow, depth=depth)
    when, rng = 0.0, sim.rng
    rate = times * CAPACITY / slow
    while (when := when + rng.expovariate(rate)) < seconds:
        sim.at(when, sim.arrive, ("m0", 1), BUCKET, 1, 0.25, f"t{rng.randrange(20)}", Priority.NORMAL, Level.ONLINE,
               False, None)  # fmt: skip
    sim.run(until=seconds)
    return sim.good / seconds


@pytest.mark.parametrize(("slow", "depth"), [(1.0, 1), (2.0, 1), (1.0, 2)])
def test_goodput_stays_flat_past_saturation(slow, depth):
    """At 2, 5 and 10 times the capacity at least 0.9 of the peak is answered in time, even with wrong costs."""
    peak = max(overload(times, slow=slow, depth=depth) for times in (0.9, 1.0, 1.2))
    ratios = {times: overload(times, slow=slow, depth=depth) / peak for times in (2.0, 5.0, 10.0)}
    assert peak >= 0.85 * CAPACITY / slow
    assert min(ratios.values()) >= 0.9, ratios


def test_shares_hold_under_saturation():
    """Over any 10 s of saturation a tenant's part is within 10 % of its weight, however hard one of them pushes."""
    weights = {"a": 1.0, "b": 2.0, "c": 4.0}
    sim = Simulation(3, models=1, tenants={name: TenantPolicy(weight=weight) for name, weight in weights.items()})
    rates = {"a": 20 * CAPACITY / 7, "b": CAPACITY, "c": CAPACITY}
    for tenant, rate in rates.items():
        when = 0.0
        while (when := when + sim.rng.expovariate(rate)) < 32.0:
            sim.at(when, sim.arrive, ("m0", 1), BUCKET, 1, 1.0, tenant, Priority.NORMAL, Level.ONLINE, False, None)
    sim.run(until=2.0)
    for window in range(3):
        sim.served = {}
        sim.run(until=12.0 + 10.0 * window)
        total = sum(sim.served.values())
        for tenant, weight in weights.items():
            assert sim.served[tenant] / total == pytest.approx(weight / 7.0, rel=0.1)


def test_a_modest_tenant_is_not_hurt_by_a_greedy_one():
    """Nine tenants within their share lose nothing while a tenth sends twenty times its share."""
    sim = Simulation(4, models=1)
    rates = {f"t{index}": 0.05 * CAPACITY for index in range(9)} | {"greedy": 20 * CAPACITY / 10}
    sent = dict.fromkeys(rates, 0)
    for tenant, rate in rates.items():
        when = 0.0
        while (when := when + sim.rng.expovariate(rate)) < 20.0:
            sent[tenant] += 1
            sim.at(when, sim.arrive, ("m0", 1), BUCKET, 1, 0.5, tenant, Priority.NORMAL, Level.ONLINE, False, None)
    sim.check_end()
    assert all(sim.answered[tenant] == sent[tenant] for tenant in rates if tenant != "greedy")
    assert sim.answered["greedy"] < sent["greedy"]


def online_latencies(*, jobs):
    """Seconds from arrival to answer of online requests at half the capacity, with or without jobs always waiting."""
    sim = Simulation(6, models=1, noise=0.0)
    when = 0.0
    while (when := when + sim.rng.expovariate(0.5 * CAPACITY)) < 10.0:
        sim.at(when, sim.arrive, ("m0", 1), BUCKET, 1, 5.0, "t", Priority.NORMAL, Level.ONLINE, False, None)

    def refill():
        while sim.core.figures(("m0", 1)).queued_rows < 100:
            sim.arrive(("m0", 1), BUCKET, 1, inf, "t", Priority.NORMAL, Level.JOB, False, None)
        if sim.now < 10.0:
            sim.at(sim.now + 0.01, refill)

    if jobs:
        sim.at(0.0, refill)
    ended = {}
    finished = sim.core.finished

    def record(batch, outcome, now):
        ended.update((part.request, now) for part in batch.parts)
        return finished(batch, outcome, now)

    sim.core.finished = record
    sim.check_end()
    return sorted(ended[call] - call.arrival for call in sim.accepted if call.level is Level.ONLINE), sim


def test_jobs_delay_online_requests_by_one_batch_at_most():
    """With a backlog of jobs all the time, everything is answered, the slowest one full batch later; no gap is left."""
    without, _ = online_latencies(jobs=False)
    beside, sim = online_latencies(jobs=True)
    assert len(beside) == len(without)
    assert beside[-1] - without[-1] <= BASE + 32 * ROW + 1e-9
    assert sim.served["t"] >= 0.9 * CAPACITY * 10.0 / 2


class BusyStreams(Simulation):
    """Streams of one tenant that always have so many items in flight, all with the deadline of their stream."""

    def __init__(self, deadlines, window=64):
        super().__init__(6, models=1, noise=0.0)
        self.window = window
        self.deadlines = dict(enumerate(deadlines))
        self.flights = {stream: [] for stream in self.deadlines}
        self.got = dict.fromkeys(self.deadlines, 0)
        self.longest = 0.0
        for stream in self.deadlines:
            self.at(0.0, self.refill, stream)

    def refill(self, stream):
        flights = self.flights[stream]
        self.got[stream] += sum(call.state is State.SUCCEEDED for call in flights)
        flights[:] = [call for call in flights if call.state in (State.WAITING, State.RUNNING)]
        while len(flights) < self.window and self.now < self.deadlines[stream]:
            accepted = len(self.accepted)
            self.arrive(("m0", 1), BUCKET, 1, self.deadlines[stream] - self.now, "", Priority.NORMAL, Level.ONLINE,
                        False, None)  # fmt: skip
            if len(self.accepted) == accepted:
                break
            flights.append(self.accepted[-1])

    def done(self, number, began):
        for part in self.running[number][0].parts:
            self.longest = max(self.longest, self.now - part.request.arrival)
        super().done(number, began)
        for stream in self.deadlines:
            self.refill(stream)


def test_busy_streams_of_one_tenant_get_equal_parts():
    """Whichever deadline comes first: while all are far none is before the others."""
    sim = BusyStreams([61.0, 60.0, 3600.0])
    sim.run(until=10.0)
    assert min(sim.got.values()) > 0.3 * 10.0 * CAPACITY


def test_a_stream_that_ends_goes_first_for_a_horizon_at_most():
    """In its last second; nothing waits longer than that and what was waiting then."""
    sim = BusyStreams([5.0, 60.0, 60.0])
    sim.run(until=4.1)
    before = dict(sim.got)
    sim.run(until=4.9)
    assert sim.got[0] - before[0] > 0.5 * 0.8 * CAPACITY
    sim.run(until=20.0)
    assert 0.5 < sim.longest < HORIZON + 3 * 64 / CAPACITY + 2 * (BASE + 32 * ROW)
    assert min(sim.got[1], sim.got[2]) > 0.4 * 15.0 * CAPACITY
