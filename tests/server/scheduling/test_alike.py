"""Admitting many requests that are alike at once is admitting one after the other."""

from hypothesis import given, settings
from hypothesis import strategies as st

from forebay_server.scheduling.policy import ServerPolicy, TenantPolicy
from forebay_server.scheduling.request import Level, Priority
from tests.server.scheduling.conftest import KEY, World

steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("admit"), st.integers(1, 40), st.sampled_from([1, 1, 1, 3, 12]),
            st.sampled_from([0.02, 0.05, 0.3, 0.9, 1.5, 30.0]), st.sampled_from(["", "q", "w"]),
            st.sampled_from(list(Priority)), st.sampled_from([Level.ONLINE, Level.ONLINE, Level.JOB]),
            st.sampled_from([0, 1, 7]),
        ),
        st.tuples(st.just("pass"), st.sampled_from([0.001, 0.02, 0.4, 1.2])),
        st.tuples(st.just("take"), st.integers(0, 1)),
        st.tuples(st.just("finish"), st.integers(0, 1)),
    ),
    max_size=30,
)  # fmt: skip


class Side:
    """A world in which groups are admitted in one of the two ways; everything that can be seen of it."""

    def __init__(self, *, at_once, instances):
        server = ServerPolicy(
            max_held_bytes=900, tenants={"q": TenantPolicy(max_queued_rows=25), "w": TenantPolicy(weight=3.0)}
        )
        self.world = World(server=server, instances=instances, max_queued_rows=120)
        self.at_once = at_once
        self.requests = []
        self.running = {}

    def step(self, step, now):
        return getattr(self, step[0])(*step[1:], now=now), self.seen()

    def admit(self, count, rows, patience, tenant, priority, level, nbytes, *, now):
        core = self.world.core
        group = [
            self.world.request(
                rows, now + patience, now=now, tenant=tenant, priority=priority, level=level, nbytes=nbytes,
                name=str(len(self.requests) + index),
            )
            for index in range(count)
        ]  # fmt: skip
        self.requests += group
        if self.at_once:
            refused = core.admit_alike(group, now)
        else:
            errors = [(request, core.admit(request, now)) for request in group]
            refused = [(request, error) for request, error in errors if error is not None]
        return [(request.name, error.reason, getattr(error, "retry_after", None)) for request, error in refused]

    def take(self, place, *, now):
        number = self.world.instances[place % len(self.world.instances)]
        batch = self.world.take(now, number)
        if batch is None:
            return None
        self.running[place] = batch
        return [(part.request.name, part.start, part.rows) for part in batch.parts], batch.reason, batch.predicted

    def finish(self, place, *, now):
        batch = self.running.pop(place, None)
        return None if batch is None else [request.name for request in self.world.finish(batch, now)]

    def __getattr__(self, name):
        if name == "pass":
            return lambda _seconds, *, now: self.world.core.tick(now)
        raise AttributeError(name)

    def seen(self):
        core = self.world.core
        events = core.events.copy()
        core.events.clear()
        failed = [(request.name, request.error.reason) for request in self.world.settle()]
        figures = [
            [getattr(request, name, None) for name in ("state", "cost", "expected", "due")] for request in self.requests
        ]
        books = core._books
        model = books.models[KEY]
        shares = {
            place: (share.tag, share.rows, share.cost, share.tenant.rows) for place, share in model.shares.items()
        }
        queues = [
            (queue.rows, queue.alarm, [request.name for request in queue.line], len(queue.early))
            for lane in model.lanes.values()
            for tier in lane.tiers
            for queue in tier.queues.values()
        ]
        tiers = [(tier.rows, tier.since, tier.tightest) for lane in model.lanes.values() for tier in lane.tiers]
        whole = model.cost, model.busy_weight, model.margin, model.virtual, core.held_bytes, core.next_wakeup()
        return events, failed, figures, self.world.figures(), shares, queues, tiers, whole


@settings(max_examples=250, deadline=None)
@given(steps, st.integers(1, 2))
def test_at_once_is_one_after_the_other(steps, instances):
    """Refusals, order, counts, predicted waits and all that follows are the same to the last bit."""
    now = 0.0
    one, other = (Side(at_once=at_once, instances=instances) for at_once in (False, True))
    for step in steps:
        if step[0] == "pass":
            now += step[1]
        assert one.step(step, now) == other.step(step, now)


def test_most_take_the_short_way(world, monkeypatch):
    """The first is admitted as ever, the others with it."""
    w = world()
    admitted = []
    admit = w.core.admit
    monkeypatch.setattr(w.core, "admit", lambda request, now: admitted.append(request) or admit(request, now))
    requests = [w.request() for _ in range(100)]
    assert w.core.admit_alike(requests, 0.0) == []
    assert admitted == requests[:1]
    assert w.figures().queued_rows == 100
