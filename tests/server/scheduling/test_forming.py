"""Which requests go together, when, and why."""

from math import inf

import pytest

from forebay_server.errors import DeadlineExpired
from forebay_server.scheduling.forming import RECENT
from forebay_server.scheduling.latency import CostModel
from forebay_server.scheduling.outcomes import Succeeded
from forebay_server.scheduling.policy import ModelPolicy, ServerPolicy, TenantPolicy
from forebay_server.scheduling.request import Level, Priority, Reason, State

OTHER_BUCKET = ((8,),)


def requests_of(batch):
    return [part.request for part in batch.parts]


def test_an_idle_instance_takes_what_there_is(world):
    """Without a delay nothing waits for company; a busy instance gets nothing more."""
    w = world()
    request = w.admit()
    batch = w.take(0.25)
    assert requests_of(batch) == [request]
    assert (batch.rows, batch.padded_rows, batch.reason, batch.dispatched) == (1, 1, Reason.IDLE, 0.25)
    assert batch.predicted == pytest.approx(0.011)
    assert request.state is State.RUNNING
    w.admit()
    assert w.take(0.25) is None


def test_a_batch_is_full_at_the_cap(world):
    """The rest waits; a request that does not fit is not cut."""
    w = world()
    first = [w.admit(rows=3) for _ in range(2)]
    third = w.admit(rows=3)
    batch = w.take()
    assert requests_of(batch) == first
    assert (batch.rows, batch.reason) == (6, Reason.FULL)
    w.finish(batch, 0.016)
    assert requests_of(w.take(0.016)) == [third]


def test_the_earliest_deadline_goes_first_inside_a_flow(world):
    """However requests arrive, they leave by deadline, and by arrival among equals."""
    w = world(max_batch_size=1, best_batch_size=1)
    for deadline in (0.5, 0.3, 0.4, 0.6, 0.3, 0.1, 0.6):
        w.admit(deadline=deadline)
    assert [ran[0].deadline for ran in w.run()] == [0.1, 0.3, 0.3, 0.4, 0.5, 0.6, 0.6]


def test_far_deadlines_leave_in_order_of_arrival(world):
    """Beyond the horizon of a second it does not matter how far they are, nor when their turn comes."""
    w = world(max_batch_size=1, best_batch_size=1)
    requests = [w.admit(now=0.1 * index, deadline=50.0 - 10.0 * index) for index in range(4)]
    assert w.run(0.4) == [[request] for request in requests]


def test_a_near_deadline_overtakes_what_has_waited_less_than_the_rest_of_the_horizon(world):
    """At 0.9 with 0.3 s left it goes before what came after 0.2, and after what came before that."""
    w = world(max_batch_size=1, best_batch_size=1)
    first, second = w.admit(deadline=10.0), w.admit(now=0.1, deadline=5.0)
    third = w.admit(now=0.3, deadline=5.0)
    near = w.admit(now=0.9, deadline=1.2)
    assert w.run(0.95) == [[first], [second], [near], [third]]


def test_nothing_that_comes_a_horizon_later_goes_before_a_request(world):
    """The last that can overtake it comes just before, whatever the deadlines; after that its turn is next."""
    w = world(max_batch_size=1, best_batch_size=1)
    patient = w.admit(deadline=3600.0)
    overtakes = w.admit(now=0.95, deadline=0.999)
    w.admit(now=0.96, deadline=1.0)
    assert w.finish(w.take(0.98), 0.98) == [overtakes]
    for index in range(20):
        w.admit(now=1.0 + 0.01 * index, deadline=1.5 + 0.01 * index)
    assert requests_of(w.take(1.2)) == [patient]


def test_jobs_leave_by_deadline_and_then_those_without_in_order_of_arrival(world, forever):
    """However far a deadline is, a job that has one goes before a job that has none."""
    w = world(max_batch_size=1, best_batch_size=1)
    deadlines = (forever, 5000.0, 10.0, forever, 70.0)
    jobs = [w.admit(now=0.1 * index, deadline=deadlines[index], level=Level.JOB) for index in range(5)]
    assert w.run(0.5) == [[jobs[index]] for index in (2, 4, 1, 0, 3)]


def test_flows_take_turns_by_weight(world):
    """A tenant of weight 3 gets three rows for each of a tenant of weight 1, however many wait."""
    w = world(server=ServerPolicy(tenants={"big": TenantPolicy(weight=3.0)}))
    for _ in range(100):
        w.admit(tenant="small")
    for _ in range(30):
        w.admit(tenant="big")
    served = tenants_served(w, 5)
    assert (served.count("big"), served.count("small")) == (30, 10)


def tenants_served(w, batches):
    """Runs so many batches; the tenants of what was in them."""
    served = []
    for _ in range(batches):
        batch = w.take()
        served += [request.tenant for request in requests_of(batch)]
        w.finish(batch, 0.0)
    return served


@pytest.mark.parametrize(
    ("priorities", "shares"),
    [((Priority.HIGH, Priority.NORMAL), (32, 8)), ((Priority.NORMAL, Priority.LOW), (26, 13))],
)
def test_priorities_are_weights(world, priorities, shares):
    """8 to 2 to 1: nobody starves."""
    w = world()
    for priority in priorities:
        for _ in range(100):
            w.admit(priority=priority)
    served = []
    for _ in range(5):
        batch = w.take()
        served += [request.priority for request in requests_of(batch)]
        w.finish(batch, 0.0)
    assert tuple(served.count(priority) for priority in priorities) == pytest.approx(shares, abs=1)


def test_a_flow_saves_up_nothing_while_it_is_idle(world):
    """A latecomer shares from now on; it does not get what it missed."""
    w = world()
    for _ in range(100):
        w.admit(tenant="early")
    for _ in range(5):
        w.finish(w.take(), 0.0)
    for _ in range(50):
        w.admit(tenant="late")
    served = tenants_served(w, 4)
    assert served.count("late") == pytest.approx(16, abs=1)


def test_a_batch_is_of_one_lane(world):
    """Shapes don't mix, and the lane with the earliest deadline of a flow goes first."""
    w = world()
    a = [w.admit(deadline=0.2), w.admit(deadline=0.4)]
    b = [w.admit(deadline=0.1, bucket=OTHER_BUCKET), w.admit(deadline=0.3, bucket=OTHER_BUCKET)]
    assert w.run() == [b, a]


def test_a_tenant_that_is_busy_elsewhere_on_the_device_is_charged_here(world):
    """Two models of one device: who floods both gets a fifth of the second, against one that only uses that."""
    w = world()
    costs = CostModel([(((4,),), rows, 0.010 + 0.001 * rows) for rows in (1, 8)])
    policy = ModelPolicy(max_batch_size=8, best_batch_size=8)
    (other,) = w.core.add_model(("other", 1), policy, costs, 0.0)
    lane = w.core.lane(("other", 1), ((4,),))
    for _ in range(800):
        w.admit(tenant="both")
        w.admit(tenant="both", lane=lane)
        w.admit(tenant="one", lane=lane)
    served = []
    for _ in range(100):
        w.finish(w.take(), 0.0)
        batch = w.take(instance=other)
        served += [request.tenant for request in requests_of(batch)]
        w.finish(batch, 0.0)
    assert 0.15 < served.count("both") / len(served) < 0.3


def test_the_cap_meets_the_tightest_deadline(world):
    """15 ms are enough for a batch of 5 rows, not of 8."""
    w = world()
    for deadline in (0.0151, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        w.admit(deadline=deadline)
    batch = w.take()
    assert (batch.rows, batch.reason) == (5, Reason.FULL)


def test_the_cap_meets_a_deadline_that_is_tighter_than_the_head_s(world):
    """A request that goes second for all the time that the first has waited still makes the batch small enough."""
    w = world()
    head = w.admit(deadline=100.0)
    tight = w.admit(now=0.99, deadline=0.99 + 0.0151)
    others = [w.admit(now=0.99) for _ in range(5)]
    batch = w.take(0.99)
    assert requests_of(batch) == [head, tight, *others[:3]]
    assert batch.reason is Reason.FULL


def test_what_can_not_go_along_is_left_for_the_next_batch(world):
    """Seven rows take 17 ms: one with 15.1 left is not put to six, and the other instance takes it at once."""
    w = world(instances=2)
    patient = [w.admit(deadline=100.0) for _ in range(6)]
    tight = w.admit(now=0.98, deadline=0.99 + 0.0151)
    batch = w.take(0.99)
    assert requests_of(batch) == patient
    assert batch.reason is Reason.FULL
    assert requests_of(w.take(0.99, w.instances[1])) == [tight]


@pytest.mark.parametrize(("others", "runs"), [(7, True), (8, False)])
def test_a_batch_must_have_time_to_spare_only_while_more_than_a_full_one_waits(world, others, runs):
    """20 ms are enough for the 18 ms of a full batch, but not for a quarter more: then another takes the place."""
    w = world()
    tight = w.admit(deadline=0.020)
    rest = [w.admit(deadline=1.0) for _ in range(others)]
    batch = w.take()
    assert requests_of(batch) == ([tight, *rest] if runs else rest)
    assert w.settle() == ([] if runs else [tight])


def test_what_can_not_meet_its_deadline_even_alone_is_not_run(world):
    """It expires at once, and does not make the batch small."""
    w = world()
    late = w.admit(deadline=0.0150)
    others = [w.admit(deadline=1.0) for _ in range(4)]
    batch = w.take(0.0041)
    assert requests_of(batch) == others
    assert w.settle() == [late]
    assert isinstance(late.error, DeadlineExpired)
    assert late.state is State.EXPIRED


def test_cancelled_ones_do_not_run(world):
    """Cancelling corrects the counts at once; the others are not disturbed."""
    w = world()
    requests = [w.admit(deadline=10.0 + index) for index in range(6)]
    for request in requests[::2]:
        assert w.core.cancel(request, 0.0) is True
        assert w.core.cancel(request, 0.0) is False
    assert (w.figures().queued_rows, w.figures().held_bytes) == (3, 30)
    assert requests_of(w.take()) == requests[1::2]


def test_a_cancelled_request_that_runs_is_told_nothing(world):
    """Its bytes are held until the batch is back."""
    w = world()
    gone, stays = w.admit(), w.admit()
    batch = w.take()
    assert w.core.cancel(gone, 0.0) is False
    assert w.core.held_bytes == 20
    assert w.finish(batch, 0.012) == [stays]
    assert (gone.state, w.core.held_bytes) == (State.CANCELLED, 0)


def test_a_result_after_the_deadline_is_not_handed_out(world):
    """The request has expired while it ran."""
    w = world()
    late, stays = w.admit(deadline=0.020), w.admit(deadline=1.0)
    batch = w.take()
    assert w.finish(batch, 0.021) == [stays]
    assert late.state is State.EXPIRED
    assert isinstance(late.error, DeadlineExpired)


def test_waiting_requests_expire_on_time_while_the_engine_is_busy(world):
    """`next_wakeup` names the first deadline, `tick` fails exactly those that are due."""
    w = world()
    w.admit(rows=8)
    batch = w.take()
    first, second = w.admit(deadline=0.5), w.admit(deadline=0.6, tenant="b")
    early = w.admit(deadline=0.4)
    assert w.core.next_wakeup() == 0.4
    w.core.tick(0.4)
    assert w.settle() == [early]
    assert w.core.next_wakeup() == 0.5
    w.core.tick(0.55)
    assert w.settle() == [first]
    w.core.tick(0.6)
    assert w.settle() == [second]
    assert w.figures().queued_rows == 0
    w.finish(batch, 0.7)
    assert w.core.held_bytes == 0


def test_each_expires_on_time_whatever_it_stands_behind(world):
    """The order is by what is due, which says nothing about who expires first; no instant is missed."""
    w = world()
    w.admit(rows=8)
    batch = w.take()
    far = w.admit(deadline=5.0)
    near = w.admit(now=0.5, deadline=1.2)
    others = [w.admit(now=0.6, deadline=deadline) for deadline in (3.0, 1.7, 1.65, 1.5, 3.0)]
    expired = {}
    while (now := w.core.next_wakeup()) < 100.0 and len(expired) < 10:
        w.core.tick(now)
        expired.setdefault(now, []).extend(w.settle())
    assert {now: requests for now, requests in expired.items() if requests} == {
        1.2: [near], 1.5: [others[3]], 1.65: [others[2]], 1.7: [others[1]], 3.0: [others[0], others[4]], 5.0: [far],
    }  # fmt: skip
    assert w.core.next_wakeup() == 30.0  # When the batch counts as stuck.
    w.finish(batch, 5.0)
    assert w.core.held_bytes == 0
    assert w.core.next_wakeup() == inf


def test_oversized_requests_are_cut_and_put_together(world):
    """20 rows run as 8, 8 and 4 with company, and come back in order."""
    w = world()
    big = w.admit(rows=20, deadline=50.0)
    small = [w.admit(deadline=60.0) for _ in range(5)]
    sizes = []
    for _ in range(4):
        batch = w.take()
        sizes.append([(part.start, part.rows) for part in batch.parts])
        w.finish(batch, 0.0)
    assert sizes == [[(0, 8)], [(8, 8)], [(16, 4), (0, 1), (0, 1), (0, 1), (0, 1)], [(0, 1)]]
    assert big.outputs == [(0, 8), (8, 8), (16, 4)]
    assert small[0].outputs == 4
    assert w.core.held_bytes == 0
    assert w.core.idle()


def test_parts_on_two_instances_may_come_back_in_any_order(world):
    """The pieces are joined by their place in the request."""
    w = world(instances=2)
    big = w.admit(rows=16)
    first, second = w.take(), w.take(instance=w.instances[1])
    w.finish(second, 0.018)
    assert big.outputs is None
    w.finish(first, 0.018)
    assert big.outputs == [(0, 8), (8, 8)]


def test_cancelling_a_request_in_parts_drops_what_still_waits(world):
    """Its waiting rows leave the counts at once, its bytes when the running part is back."""
    w = world()
    big = w.admit(rows=20)
    batch = w.take()
    assert w.core.cancel(big, 0.0) is True
    assert (w.figures().queued_rows, w.core.held_bytes) == (0, 10)
    assert w.finish(batch, 0.018) == []
    assert w.core.held_bytes == 0
    assert w.take(0.018) is None


def test_batches_are_padded_to_the_next_size(world):
    """5 rows run as 8; no batch is larger than the largest size."""
    w = world(batch_sizes=(1, 2, 4, 8, 16), max_batch_size=32, best_batch_size=0)
    for _ in range(5):
        w.admit()
    batch = w.take()
    assert (batch.rows, batch.padded_rows) == (5, 8)
    w.finish(batch, 0.018)
    for _ in range(40):
        w.admit()
    assert w.take().rows == 16


def test_jobs_fill_padding_and_idle_engines_only(world, forever):
    """An online batch takes jobs into its padding and not beyond; alone, jobs make batches of their own."""
    w = world(batch_sizes=(1, 4, 8))
    jobs = [w.admit(level=Level.JOB, deadline=forever) for _ in range(5)]
    online = [w.admit() for _ in range(2)]
    batch = w.take()
    assert requests_of(batch) == online + jobs[:2]
    assert (batch.rows, batch.padded_rows) == (4, 4)
    w.finish(batch, 0.014)
    batch = w.take(0.014)
    assert requests_of(batch) == jobs[2:]
    assert batch.padded_rows == 4


def test_without_padding_no_job_rides_along(world, forever):
    """A job would make the online batch slower; it waits until no online request does, in any lane."""
    w = world()
    job = w.admit(level=Level.JOB, deadline=forever)
    online = w.admit(bucket=OTHER_BUCKET)
    assert w.run() == [[online], [job]]


def test_a_batch_of_jobs_is_small_while_online_requests_come(world, forever):
    """Where rows gain little from company: who comes next waits for one row. After a while without, as ever."""
    w = world(base=0.0001, row=0.002)
    jobs = [w.admit(level=Level.JOB, deadline=forever) for _ in range(30)]

    def run(now):
        batch = w.take(now)
        w.finish(batch, now + 0.02)
        return requests_of(batch)

    assert run(0.0) == jobs[:8]
    online = w.admit(now=1.0)
    assert run(1.0) == [online]
    assert run(1.1) == jobs[8:16]  # One request alone says nothing.
    online = w.admit(now=1.2)
    assert run(1.2) == [online]
    assert run(1.3) == jobs[16:17]
    assert run(1.0 + RECENT - 0.1) == jobs[17:18]
    assert run(1.0 + RECENT) == jobs[18:26]


def test_a_batch_of_jobs_stays_large_where_that_pays(world, forever):
    """Of 10 ms and 1 ms a row the full batch is the cheapest by far."""
    w = world()
    w.admit()
    w.run()
    jobs = [w.admit(level=Level.JOB, deadline=forever) for _ in range(8)]
    online = w.admit()
    assert w.run() == [[online], jobs]


def test_a_batch_of_jobs_is_larger_while_nobody_else_comes(world, forever):
    """Rows of a microsecond gain nothing by company in the engine; what a batch costs the dispatcher is shared."""
    w = world(base=0.0, row=1e-6, best_batch_size=0)
    jobs = [w.admit(level=Level.JOB, deadline=forever) for _ in range(12)]
    assert w.run() == [jobs[:8], jobs[8:]]
    online = [w.admit() for _ in range(2)]
    jobs = [w.admit(level=Level.JOB, deadline=forever) for _ in range(2)]
    assert w.run() == [[online[0]], [online[1]], [jobs[0]], [jobs[1]]]


def run_full(w, batches, seconds, level=Level.ONLINE):
    """Runs so many batches while plenty waits, each of which takes so long; their rows."""
    rows = []
    for _ in range(batches):
        for _ in range(32):
            w.admit(level=level)
        rows.append((batch := w.take()).rows)
        w.finish(batch, 0.0, seconds=seconds)
    return rows


@pytest.mark.parametrize("level", Level)
def test_a_wrong_measurement_does_not_keep_batches_small(world, level):
    """Two rows seemed to take as long as one, and four no better: every 32nd batch has four, which tells the truth."""
    w = world(costs={1: 0.011, 2: 0.011, 4: 0.025}, best_batch_size=0, max_batch_size=4)
    rows = run_full(w, 160, 0.011, level)
    assert rows == [4] + 31 * [2] + [4] + 15 * [2] + 112 * [4]


def test_what_is_far_from_good_is_not_tried(world):
    """Nor what was set."""
    w = world(costs={1: 0.011, 2: 0.011, 4: 0.030}, best_batch_size=0, max_batch_size=4)
    assert run_full(w, 64, 0.011) == 64 * [2]
    w = world(base=0.0, best_batch_size=2)
    assert run_full(w, 64, 0.001) == 64 * [2]


def test_only_a_full_trial_is_one(world):
    """Fewer rows than it wants: a usual batch."""
    w = world(costs={1: 0.011, 2: 0.011, 4: 0.025}, best_batch_size=0, max_batch_size=4)
    requests = [w.admit() for _ in range(3)]
    assert w.run() == [requests[:2], requests[2:]]


def test_the_way_to_a_worker_and_back_counts(world):
    """Rows of 10 ms gain nothing by company in the engine; a millisecond per batch is worth sharing."""
    w = world(base=0.0, row=0.010, best_batch_size=0)
    lane = w.lane()
    assert lane.cap == 1
    for _ in range(200):
        w.admit()
        w.finish(w.take(0.0), 0.011, seconds=0.010)
    assert lane.model.handling == pytest.approx(0.001, rel=1e-3)
    assert lane.cap == 2
    w.admit()
    w.finish(w.take(0.0), 60.0, seconds=0.010)
    assert lane.model.handling == pytest.approx(0.001 + 0.05 * 0.001, rel=1e-3)


def test_in_the_dispatcher_there_is_no_way(world):
    """What the dispatcher does between batches is not the worker's delay."""
    w = world(base=0.0, row=0.010, best_batch_size=0, inline=True)
    w.admit()
    w.finish(w.take(0.0), 0.011, seconds=0.010)
    assert w.lane().model.handling == 0.0


def test_a_large_job_runs_whole_beside_online_requests(world, forever):
    """It is not cut below the usual cap, and those behind it wait for the next batch."""
    w = world(base=0.0001, row=0.002)
    w.admit()
    w.run()
    online = w.admit()
    large = w.admit(5, level=Level.JOB, deadline=forever)
    small = w.admit(level=Level.JOB, deadline=forever)
    assert w.run() == [[online], [large], [small]]


@pytest.mark.parametrize(
    ("costs", "cap"),
    [
        ({1: 0.0030, 2: 0.0050, 3: 0.0070, 4: 0.0080, 8: 0.0120}, 2),  # 2.25 * 3.1 ms less 0.1 are 6.9
        ({1: 0.0040, 2: 0.0050, 3: 0.0070, 4: 0.0080, 5: 0.0095, 8: 0.0120}, 4),  # 9.1 ms
        ({1: 0.0056, 2: 0.0060, 3: 0.0070, 4: 0.0080, 8: 0.0120}, 8),  # 12.7 ms
    ],
)
def test_a_batch_of_jobs_is_not_much_longer_than_one_row_beside_online_requests(world, forever, costs, cap):
    """Though a longer one would do more of them; by themselves they have it."""
    w = world(costs=costs, best_batch_size=0)
    for _ in range(8):
        w.admit(level=Level.JOB, deadline=forever)
    batch = w.take()
    assert batch.rows == 8
    w.finish(batch, 0.0, seconds=costs[8])
    for _ in range(2):
        w.admit()
        w.finish(w.take(), 0.0, seconds=costs[1])
    for _ in range(8):
        w.admit(level=Level.JOB, deadline=forever)
    assert w.take().rows == cap


def test_a_delay_waits_for_company_until_the_oldest_has_waited_that_long(world):
    """DELAY, at the exact instant; the wake-up says when."""
    w = world(max_delay=0.005)
    w.admit(now=1.0)
    w.admit(now=1.003)
    assert w.take(1.0049) is None
    assert w.core.next_wakeup() == 1.005
    batch = w.take(1.005)
    assert (batch.rows, batch.reason) == (2, Reason.DELAY)


def test_a_full_batch_does_not_wait(world):
    """FULL, at once."""
    w = world(max_delay=0.005)
    for _ in range(8):
        w.admit()
    assert w.take(0.0).reason is Reason.FULL


def test_a_delay_never_costs_a_deadline(world):
    """DEADLINE: a full batch takes 18 ms, with one of slack it has to start 19 ms before."""
    w = world(max_delay=0.500)
    w.admit(deadline=0.119)
    assert w.take(0.099) is None
    assert w.core.next_wakeup() == pytest.approx(0.100)
    assert w.take(0.1001).reason is Reason.DEADLINE


def test_a_delay_goes_by_deadlines_and_not_by_the_order(world):
    """What a batch has left is due within a second, but its tightest deadline is at 3.0: a batch takes 18 ms."""
    w = world(max_delay=10.0)
    for _ in range(9):
        w.admit(deadline=100.0)
    w.admit(deadline=3.0)
    w.finish(w.take(0.0), 0.018)
    assert w.take(2.980) is None
    w.core.tick(2.980)
    assert w.core.next_wakeup() == pytest.approx(2.981)
    batch = w.take(2.9811)
    assert (batch.rows, batch.reason) == (2, Reason.DEADLINE)


def test_draining_ends_delays(world):
    """DRAIN: nobody else will come."""
    w = world(max_delay=10.0)
    w.admit()
    assert w.take() is None
    w.core.drain(0.0)
    assert w.take().reason is Reason.DRAIN


def test_no_job_goes_before_a_delayed_online_request(world, forever):
    """The instance is kept free for it."""
    w = world(max_delay=0.005)
    w.admit(level=Level.JOB, deadline=forever)
    w.admit()
    assert w.take(0.0) is None
    assert [request.level for request in requests_of(w.take(0.005))] == [Level.ONLINE]


def test_thousand_flows_come_and_go(world):
    """Flows that are idle are forgotten in time, and shares still hold after that."""
    w = world(max_queued_rows=10)
    for index in range(3000):
        w.admit(tenant=f"t{index}")
        w.finish(w.take(), 0.0, Succeeded(None))
    model = w.core._books.models["m", 1]
    assert len(model.shares) < 700
    assert len(w.core._books.tenants) < 700
    assert len(w.lane().tiers[0].queues) < 700
