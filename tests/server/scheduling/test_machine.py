"""All calls of the core in any order, against what must always hold (I1 to I10 of the reliability plan)."""

from math import inf

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from forebay_server.errors import DeadlineExpired, Internal
from forebay_server.scheduling.core import TRANSITIONS, Core
from forebay_server.scheduling.latency import CostModel
from forebay_server.scheduling.outcomes import Died, Faulted, NoMemory, Rejected, Succeeded
from forebay_server.scheduling.policy import ModelPolicy, ServerPolicy, TenantPolicy
from forebay_server.scheduling.queue import HORIZON
from forebay_server.scheduling.request import Level, Priority, Request, State

KEYS = (("a", 1), ("b", 1))
BUCKETS = (((4,),), ((8,),))
MAX_ROWS = 40
MAX_BYTES = 1000
QUOTA = 12
FINAL = {State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED, State.REFUSED}


class Probe(Request):
    """A request that checks each step of its life."""

    __slots__ = ("_state", "outcomes", "poison", "runs", "serial")

    def __init__(self, *args, poison, serial, **kwargs):
        self._state = State.NEW
        self.poison = poison
        self.serial = serial
        self.outcomes = []
        self.runs = 0
        super().__init__(*args, **kwargs)

    @property
    def state(self):
        return self._state

    @state.setter
    def state(self, new):
        assert new is self._state is State.NEW or new in TRANSITIONS[self._state], f"{self._state!r} -> {new!r}"
        self._state = new


class Machine(RuleBasedStateMachine):
    """Two models with two instances each; faults of all kinds; time that only moves on."""

    @initialize(
        delay=st.sampled_from([0.0, 0.02]), sizes=st.sampled_from([(), (1, 4, 8)]), depth=st.sampled_from([1, 2, 3])
    )
    def begin(self, delay, sizes, depth):
        self.depth = depth
        self.now = 0.0
        self.requests = []
        self.running = {}
        self.memory = {}
        self.removed = set()
        self.core = Core(
            ServerPolicy(
                max_held_bytes=MAX_BYTES,
                tenants={"q": TenantPolicy(max_queued_rows=QUOTA), "w": TenantPolicy(weight=3.0)},
            ),
            random=lambda: 0.5,
        )
        self.instances = {}
        for key in KEYS:
            costs = CostModel([(BUCKETS[0], rows, 0.010 + 0.001 * rows) for rows in (1, 8)])
            policy = ModelPolicy(
                max_batch_size=8, max_delay=delay, batch_sizes=sizes, max_queued_rows=MAX_ROWS, max_lanes=2,
                instances=2, max_execution=5.0, depth=depth,
            )  # fmt: skip
            for number in self.core.add_model(key, policy, costs, 0.0, devices=["cuda:0", "cuda:1"]):
                self.instances[number] = key
                self.running[number] = []

    @rule(
        key=st.sampled_from(KEYS), bucket=st.sampled_from(BUCKETS), rows=st.sampled_from([1, 1, 1, 2, 3, 8, 9, 20]),
        patience=st.sampled_from([0.005, 0.05, 0.5, 1.5, 10.0, inf]), tenant=st.sampled_from(["", "q", "w"]),
        priority=st.sampled_from(list(Priority)), level=st.sampled_from([Level.ONLINE, Level.ONLINE, Level.JOB]),
        poison=st.sampled_from([False] * 7 + [True]), parameters=st.sampled_from([None, None, {"k": 1}]),
    )  # fmt: skip
    def submit(self, key, bucket, rows, patience, tenant, priority, level, poison, parameters):
        lane = self.core.lane(key, bucket, parameters)
        if isinstance(lane, Exception):
            return
        request = Probe(
            lane, rows, 7 * rows, self.now + patience, (), arrival=self.now, tenant=tenant, priority=priority,
            level=level, poison=poison, serial=len(self.requests),
        )  # fmt: skip
        error = self.core.admit(request, self.now)
        assert (error is None) == (request.state is State.WAITING)
        if error is None:
            self.requests.append(request)
        self.settle()

    @rule(data=st.data())
    def cancel(self, data):
        if self.requests:
            request = data.draw(st.sampled_from(self.requests))
            was = request.state
            assert self.core.cancel(request, self.now) == (was is State.WAITING)
            if was not in FINAL:
                request.outcomes.append("cancelled")

    @rule(seconds=st.sampled_from([0.001, 0.004, 0.02, 0.3, 6.0]))
    def pass_time(self, seconds):
        self.now += seconds
        self.core.tick(self.now)
        self.settle()
        for request in self.requests:
            assert request.state is not State.WAITING or request.deadline > self.now

    @rule()
    def dispatch(self):
        for number, key in self.instances.items():
            batch = self.core.next_batch(number, self.now)
            self.settle()
            if batch is None:
                continue
            self.running[number].append(batch)
            assert len(self.running[number]) <= self.depth
            assert batch.instance == number
            assert 0 < batch.rows == sum(part.rows for part in batch.parts) <= batch.padded_rows <= 8
            lanes = {id(part.request.lane) for part in batch.parts}
            assert lanes == {id(batch.lane)}
            assert batch.lane.key == key
            for part in batch.parts:
                assert part.request.state in (State.WAITING, State.RUNNING)
                assert part.request.deadline > self.now
                assert 0 <= part.start < part.start + part.rows <= part.request.rows
                if batch.scheduled is None:
                    self.in_order(part.request)

    def in_order(self, taken):
        """What its flow has left in the lane is due later, and a far deadline was not a reason to leave it."""
        for request in self.requests:
            if request.state is State.WAITING and request.lane is taken.lane:
                alike = request.tenant, request.priority, request.level
                if alike == (taken.tenant, taken.priority, taken.level):
                    assert taken.due <= request.due
                    assert taken.level is Level.JOB or taken.arrival < request.arrival + HORIZON

    def flying(self):
        """The instances that have a batch."""
        return [number for number, batches in self.running.items() if batches]

    @rule(data=st.data(), fate=st.sampled_from(["ok"] * 5 + ["reject", "memory", "dead", "lost"]))
    def come_back(self, data, fate):
        if not self.flying():
            return
        number = data.draw(st.sampled_from(self.flying()))
        # The first of those that it has, or one that could not be begun.
        begun = fate in ("ok", "dead", "lost") or data.draw(st.booleans())
        batch = self.running[number].pop(0 if begun else -1)
        batch.collated, batch.finished = self.now, self.now + 0.001
        poison = [part for part in batch.parts if part.request.poison]
        if fate in ("dead", "lost") and data.draw(st.integers(0, 4)):
            fate = "ok"
        if fate == "memory":
            outcome = NoMemory()
        elif fate == "dead":
            outcome = Died()
        elif fate == "lost":
            outcome = Died(f"cuda:{number % 2}")
        elif poison and fate == "reject":
            start, rows = 0, []
            for part in batch.parts:
                rows += [start] if part.request.poison else []
                start += part.rows
            outcome = Rejected("poison", rows)
        else:
            outcome = Faulted(Internal("x")) if poison else Succeeded(batch)
        for request, _start, pieces in self.core.finished(batch, outcome, self.now):
            assert request.state is State.SUCCEEDED
            assert not request.poison
            assert request.deadline >= self.now
            request.outcomes.append("ok")
            if pieces is not None:
                assert [piece[0] for piece in pieces] == [
                    sum(piece[3] for piece in pieces[:index]) for index in range(len(pieces))
                ]
                assert sum(piece[3] for piece in pieces) == request.rows
        self.settle()

    @rule(key=st.sampled_from(KEYS), sure=st.integers(0, 30))
    def unload(self, key, sure):
        if sure == 0 and key not in self.removed:
            self.removed.add(key)
            self.core.remove_model(key, self.now)
            self.settle()

    def settle(self):
        for request, error in self.core.failures:
            assert request.state in (State.FAILED, State.EXPIRED)
            # I8: only poison gets the engine's error.
            assert request.poison or error.reason not in ("INTERNAL", "INPUT_REJECTED")
            assert (request.state is State.EXPIRED) == isinstance(error, DeadlineExpired)
            request.outcomes.append(error.reason)
        self.core.failures = []

    @invariant()
    def books_balance(self):  # noqa: C901  # one sum over everything
        if not hasattr(self, "core"):
            return
        for request in self.requests:
            assert len(request.outcomes) == (request.state in FINAL)
            if request.state is State.WAITING:
                latest = inf if request.level is Level.JOB else request.arrival + HORIZON
                assert request.due == min(request.deadline, latest)
                assert request.queue.alarm <= request.deadline
        held = dict.fromkeys(KEYS, 0)
        waiting = dict.fromkeys(KEYS, 0)
        quota = 0
        batches = [batch for batches in self.running.values() for batch in batches]
        in_batches = {id(part.request) for batch in batches for part in batch.parts}
        for request in self.requests:
            if request.state not in FINAL or id(request) in in_batches:
                held[request.lane.key] += request.nbytes
            if request.state is State.WAITING:
                rows = request.rows - (request.scheduled.taken if request.scheduled else 0)
                waiting[request.lane.key] += rows
                quota += rows if request.tenant == "q" and request.level is Level.ONLINE else 0
        for model in self.core._books.models.values():
            for again in model.reruns:
                for part in again.parts:
                    if part.request.state in FINAL and id(part.request) not in in_batches:
                        held[part.request.lane.key] += part.request.nbytes
                        in_batches.add(id(part.request))
        assert self.core.held_bytes == sum(held.values()) <= MAX_BYTES
        assert quota <= QUOTA
        for key in KEYS:
            if key not in self.removed:
                figures = self.core.figures(key)
                assert figures.queued_rows == waiting[key] <= MAX_ROWS
                assert figures.held_bytes == held[key]
                assert figures.lanes <= 2
                assert 1.0 <= figures.wait_margin <= 4.0
                mine = [self.running[number] for number, other in self.instances.items() if other == key]
                assert figures.running_batches == sum(map(len, mine))
                assert len(figures.running_since) == sum(map(bool, mine))

    def teardown(self):
        """Liveness: faults stop, and everything comes to an end."""
        if not hasattr(self, "core"):
            return
        for _ in range(2000):
            if self.core.idle() and not self.flying():
                break
            self.dispatch()
            self.now += 0.02
            self.core.tick(self.now)
            self.settle()
            for number in self.flying():
                batch = self.running[number].pop(0)
                batch.collated, batch.finished = self.now, self.now + 0.001
                bad = any(part.request.poison for part in batch.parts)
                outcome = Faulted(Internal("x")) if bad else Succeeded(batch)
                for request, _, _ in self.core.finished(batch, outcome, self.now):
                    request.outcomes.append("ok")
                self.settle()
        assert self.core.idle()
        assert self.core.held_bytes == 0
        assert all(request.state in FINAL and len(request.outcomes) == 1 for request in self.requests)


Machine.TestCase.settings = settings(
    max_examples=250, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
TestMachine = Machine.TestCase
