"""Any sequence of operations, in any grouping, has the same outcomes on every store.

The sequence is first run one by one on the store in memory, which also tells what there is to be done next (which
claims hold, for instance). Then each store runs it in groups of its own. Sequences of jobs need only grow, so jobs are
compared by their order.
"""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as given_
from hypothesis import strategies as st

from forebay_server.errors import JobKeyReused, JobNotFound
from forebay_server.jobs.memory import MemoryStore
from forebay_server.jobs.states import JobState
from forebay_server.jobs.store import (
    Backlog,
    Cancel,
    Claim,
    Claimed,
    ClaimLost,
    Delivered,
    Deliveries,
    Delivery,
    Finish,
    Flow,
    Found,
    Get,
    Job,
    Page,
    Purge,
    Reap,
    Release,
    Renew,
    Submit,
    Submitted,
    Undelivered,
    Waiting,
    Webhook,
)

TENANTS = ("a", "b")
OWNERS = ("o", "p")
REOPEN = "reopen"
SIZES = (0, 10, 10, 10, 5000, 262_145)

index = st.integers(0, 30)
flow = st.builds(Flow, st.sampled_from("mn"), st.sampled_from(TENANTS), st.sampled_from([1, 2]), st.just(value=False))
delay = st.sampled_from([0.0, 0.0, 0.125, 2.0])
limit = st.sampled_from([0, 1, 2, 3, 100])
COMMANDS = st.one_of(
    *[
        st.tuples(
            st.just("submit"), flow, st.sampled_from(["", "", "", "k", "l"]), st.sampled_from([b"f", b"f", b"g"]),
            st.sampled_from(SIZES), st.sampled_from([None, None, 1.0, 4.0, 4000.0]), st.sampled_from([1.0, 8.0]),
            st.sampled_from([None, Webhook("https://x.test", "s")]),
        )
    ]
    * 3,
    *[st.tuples(st.just("claim"), st.integers(0, 1), index, limit)] * 4,
    *[
        st.tuples(
            st.just("finish"), index, st.sampled_from([0, 0, 0, 1]),
            st.sampled_from([JobState.SUCCEEDED, JobState.FAILED, JobState.EXPIRED]), st.sampled_from(SIZES),
        )
    ]
    * 2,
    st.tuples(st.just("release"), index, st.sampled_from([0, 0, 0, 1]), delay, st.booleans()),
    st.tuples(st.just("cancel"), index, st.sampled_from([*TENANTS, ""])),
    st.tuples(st.just("get"), index, st.sampled_from([*TENANTS, ""])),
    st.tuples(st.just("again"), index),
    st.tuples(
        st.just("page"), st.sampled_from(TENANTS), st.sets(st.sampled_from(JobState)), st.sampled_from(["", "m", "n"]),
        st.none() | index, limit,
    ),
    st.tuples(st.just("renew"), st.integers(0, 1), st.sampled_from([0.0, 2.0, 1000.0, 1000.0])),
    st.tuples(st.just("reap"), limit, st.sampled_from([1, 3])),
    st.tuples(st.just("crash"), st.sampled_from([1, 9, 9])),
    st.tuples(st.just("purge"), limit),
    st.tuples(st.just("backlog")),
    st.tuples(st.just("deliveries"), limit, st.sampled_from([0.0, 1.0])),
    st.tuples(st.just("delivered"), index),
    st.tuples(st.just("undelivered"), index, delay),
    st.tuples(st.just("clock"), st.sampled_from([-4.0, 0.125, 0.875, 1.0, 3.0, 8.0])),
    st.tuples(st.just(REOPEN)),
)  # fmt: skip


class Script:
    """Concrete operations made of commands, while the store in memory runs them."""

    def __init__(self, now):
        self.now = now
        self.store = MemoryStore(clock=lambda: self.now)
        self.submits = []
        self.life = 0
        self.steps = []
        """Operations, clock times (floats), and REOPEN."""
        self.outcomes = []

    def do(self, operation):
        self.steps.append(operation)
        self.outcomes += self.store.apply([operation])

    def owner(self, number):
        return f"{OWNERS[number]}{self.life}"

    def job(self, number):
        """The id of a job that was submitted, and its row, if there is one."""
        if not self.submits:
            return "f" * 32, None
        submit = self.submits[number % len(self.submits)]
        return submit.id, self.store._rows.get(submit.id)

    def claim_of(self, number, staleness):
        """A claim that holds, if there is one; or one attempt too old."""
        running = [name for name, row in self.store._rows.items() if row.job.state is JobState.RUNNING]
        name, row = self.job(number)
        if running and number % 4:
            name = running[number % len(running)]
            row = self.store._rows[name]
        if row is None:
            return name, self.owner(0), 1
        return name, row.owner or self.owner(0), row.job.attempt - staleness

    def run(self, command):
        getattr(self, command[0])(*command[1:])

    def submit(self, flow, key, fingerprint, size, expire_after, ttl, webhook):
        number = len(self.submits)
        payload = bytes([number % 251]) * size
        name = f"{number * 0x9E3779B97F4A7C15 % 2**128:032x}"
        operation = Submit(
            name, flow.tenant, key, fingerprint, flow.model, "", flow.priority, payload, expire_after, ttl, webhook
        )
        self.submits.append(operation)
        self.do(operation)

    def again(self, number):
        if self.submits:
            self.do(self.submits[number % len(self.submits)])

    def claim(self, owner, number, limit):
        """From a flow that has something waiting, if there is one."""
        flows = sorted({row.flow for row in self.store._rows.values() if row.job.state is JobState.PENDING})
        flow = flows[number % len(flows)] if flows else Flow("m", "a", 1, suspect=False)
        self.do(Claim(self.owner(owner), flow, limit))

    def finish(self, number, staleness, state, size):
        self.do(Finish(*self.claim_of(number, staleness), state, bytes([number]) * size, number))

    def release(self, number, staleness, delay, refund):
        self.do(Release(*self.claim_of(number, staleness), delay, refund))

    def cancel(self, number, tenant):
        self.do(Cancel(self.job(number)[0], tenant))

    def get(self, number, tenant):
        self.do(Get(self.job(number)[0], tenant))

    def page(self, tenant, states, model, before, limit):
        row = None if before is None else self.job(before)[1]
        self.do(Page(tenant, frozenset(states), model, row.job.sequence if row else 0, limit))

    def renew(self, owner, seconds):
        self.do(Renew(self.owner(owner), seconds))

    def crash(self, attempts):
        """All owners go away, their jobs are taken over, and others come."""
        self.reopen()
        self.reap(100, attempts)

    def reap(self, limit, attempts):
        self.do(Reap(limit, attempts, b"expired", b"crashed"))

    def purge(self, limit):
        self.do(Purge(limit))

    def backlog(self):
        self.do(Backlog())

    def deliveries(self, limit, seconds):
        self.do(Deliveries(limit, seconds))

    def delivered(self, number):
        self.do(Delivered(self.job(number)[0]))

    def undelivered(self, number, delay):
        self.do(Undelivered(self.job(number)[0], delay))

    def clock(self, seconds):
        self.now += seconds
        self.steps.append(self.now)

    def reopen(self):
        """Owners do not outlive a store that is their process's alone; so here they end before it is closed."""
        for number in range(len(OWNERS)):
            self.renew(number, 0.0)
        self.life += 1
        self.steps.append(REOPEN)
        for number in range(len(OWNERS)):
            self.renew(number, 1000.0)

    def look(self):
        """Everything that can be seen."""
        for submit in self.submits:
            self.do(Get(submit.id, submit.tenant))
        for tenant in TENANTS:
            self.do(Page(tenant, (), "", 0, 1000))
        self.do(Backlog())
        self.do(Deliveries(1000, 0.0))


class Order:
    """A store's sequences as the order in which its jobs came in."""

    def __init__(self):
        self.known = []

    def learn(self, outcomes):
        for outcome in outcomes:
            if isinstance(outcome, Submitted) and outcome.job.sequence not in self.known:
                assert not self.known or outcome.job.sequence > self.known[-1]
                self.known.append(outcome.job.sequence)

    def plain(self, value):
        """The outcome without what may differ."""
        match value:
            case Job():
                return value._replace(sequence=self.known.index(value.sequence))
            case Waiting():
                return value._replace(first=self.known.index(value.first), last=self.known.index(value.last))
            case Submitted() | Found() | Claimed() | Delivery():
                return value._replace(job=self.plain(value.job))
            case list():
                return [self.plain(item) for item in value]
            case JobNotFound() | JobKeyReused() | ClaimLost():
                return type(value), value.args
            case _:
                return value


def play(world, steps, reference, cuts):
    """Runs the steps in groups that end where `cuts` says, and gives all outcomes."""
    order, outcomes, group = Order(), [], []

    def flush():
        if group:
            found = world.do(*group)
            assert len(found) == len(group)
            order.learn(found)
            outcomes.extend(order.plain(outcome) for outcome in found)
            group.clear()

    for number, step in enumerate(steps):
        if isinstance(step, float):
            flush()
            world.now = step
        elif step == REOPEN:
            flush()
            if world.lasts:
                world.reopen()
        else:
            if isinstance(step, Page) and step.before:
                flush()
                before = order.known[reference.known.index(step.before)]
                group.append(Page(step.tenant, step.states, step.model, before, step.limit))
            else:
                group.append(step)
            if cuts[number % len(cuts)]:
                flush()
    flush()
    return outcomes


PROLOGUE = [("renew", number, 1000.0) for number in range(len(OWNERS))]


def compare(worlds, commands, cuts):
    for name, make in worlds.items():
        world = make()
        try:
            script = Script(world.now)
            for command in PROLOGUE + commands:
                script.run(command)
            script.look()
            reference = Order()
            reference.learn(script.outcomes)
            expected = [reference.plain(outcome) for outcome in script.outcomes]
            assert play(world, script.steps, reference, cuts) == expected, name
        finally:
            world.store.close()


SEQUENCES = {
    "commands": st.lists(COMMANDS, min_size=20, max_size=80),
    "cuts": st.lists(st.booleans(), min_size=1, max_size=7),
}
# The fixture is a factory: each example makes stores of its own.
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=60, deadline=None, suppress_health_check=CHECKS)
@given_(**SEQUENCES)
def test_every_store_does_the_same(worlds, commands, cuts):
    """Outcomes, and everything that can be seen at the end."""
    compare(worlds, commands, cuts)


@pytest.mark.long
@pytest.mark.timeout(1800)
@settings(max_examples=3000, deadline=None, suppress_health_check=CHECKS)
@given_(**SEQUENCES)
def test_every_store_does_the_same_for_long(worlds, commands, cuts):
    """As above, many times."""
    compare(worlds, commands, cuts)
