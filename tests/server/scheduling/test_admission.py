"""Who is let in: limits, quotas, shedding, feasibility."""

import pytest

from forebay_server.errors import (
    BytesLimit,
    DeadlineExpired,
    DeadlineUnreachable,
    Draining,
    EngineUnavailable,
    MessageTooLarge,
    ModelFailed,
    ModelNotFound,
    QueueFull,
    TenantQuota,
    VersionNotFound,
)
from forebay_server.scheduling.policy import ServerPolicy, TenantPolicy
from forebay_server.scheduling.request import Level, Priority, State

KEY = ("m", 1)


def test_counts_what_waits_and_runs(world):
    """Rows count while they wait, bytes until the batch has come back."""
    w = world()
    w.admit(rows=3, nbytes=30)
    assert (w.figures().queued_rows, w.figures().held_bytes, w.core.held_bytes) == (3, 30, 30)
    batch = w.take()
    assert (w.figures().queued_rows, w.figures().held_bytes, w.figures().running_batches) == (0, 30, 1)
    w.finish(batch, 0.013)
    assert (w.figures().held_bytes, w.core.held_bytes, w.figures().running_batches) == (0, 0, 0)
    assert w.core.idle()


def test_refuses_over_the_bytes_budget_with_what_the_front_end_holds(world):
    """Waiting, running and the front end's bytes share one budget; the retry delay is jittered and at least 10 ms."""
    w = world(server=ServerPolicy(max_held_bytes=100))
    w.admit(nbytes=60)
    w.core.external_bytes = 31
    error = w.refuse(nbytes=10)
    assert isinstance(error, BytesLimit)
    assert error.retry_after == 0.010
    w.core.external_bytes = 30
    w.admit(nbytes=10)
    assert w.core.held_bytes == 70


@pytest.mark.parametrize("what", [{"rows": 11}, {"nbytes": 1001}, {"rows": 6, "tenant": "small"}])
def test_what_never_fits_is_not_to_be_retried(world, what):
    """A request larger than a whole limit is refused without a retry delay."""
    server = ServerPolicy(max_held_bytes=1000, tenants={"small": TenantPolicy(max_queued_rows=5)})
    assert isinstance(world(server=server, max_queued_rows=10).refuse(**what), MessageTooLarge)


def test_retry_delay_is_the_time_to_drain_the_excess(world):
    """Excess rows times the cost of a row in the best batch (18 ms / 8), with the middle of the jitter."""
    w = world(max_queued_rows=40)
    w.admit(rows=40)
    error = w.refuse(rows=8)
    assert isinstance(error, QueueFull)
    assert error.retry_after == pytest.approx(0.018)


def test_tenant_quota_counts_all_models(world):
    """A tenant's own limit holds over all its requests and spares the others."""
    w = world(server=ServerPolicy(tenants={"a": TenantPolicy(max_queued_rows=3)}))
    w.admit(rows=2, tenant="a")
    assert isinstance(w.refuse(rows=2, tenant="a"), TenantQuota)
    w.admit(rows=1, tenant="a", priority=Priority.HIGH)
    w.admit(rows=2, tenant="b")


def test_full_queue_sheds_the_newest_of_the_flow_most_over_its_share(world):
    """A newcomer of a modest flow is let in; the greedy flow's last request gives way."""
    w = world(max_queued_rows=10)
    greedy = [w.admit(tenant="greedy", deadline=50.0 + index) for index in range(9)]
    w.admit(tenant="other")
    w.admit(tenant="modest")
    assert w.settle() == [greedy[-1]]
    assert isinstance(greedy[-1].error, QueueFull)
    assert greedy[-1].state is State.FAILED
    assert w.figures().queued_rows == 10


def test_full_queue_refuses_the_flow_that_is_most_over_its_share(world):
    """Nobody else pays for the greedy flow's own next request."""
    w = world(max_queued_rows=10)
    for _ in range(9):
        w.admit(tenant="greedy")
    w.admit(tenant="modest")
    assert isinstance(w.refuse(tenant="greedy"), QueueFull)
    assert w.settle() == []


def test_weights_say_who_is_over_the_share(world):
    """A tenant of weight 4 with six rows is less over its share than one of weight 1 with four."""
    w = world(max_queued_rows=10, server=ServerPolicy(tenants={"big": TenantPolicy(weight=4.0)}))
    for _ in range(6):
        w.admit(tenant="big")
    small = [w.admit(tenant="small") for _ in range(4)]
    w.admit(tenant="new")
    assert w.settle() == [small[-1]]


def test_jobs_give_way_to_online_requests_and_not_the_other_way_round(world, forever):
    """A full queue sheds jobs first, and takes no job in exchange for anything."""
    w = world(max_queued_rows=4)
    w.admit(rows=2, tenant="a")
    job = w.admit(rows=2, tenant="b", level=Level.JOB, deadline=forever)
    w.admit(tenant="a")
    assert w.settle() == [job]
    w.admit(tenant="a")
    assert isinstance(w.refuse(tenant="b", level=Level.JOB, deadline=forever), QueueFull)


def test_shedding_makes_room_for_many_rows_or_sheds_nobody(world):
    """Several of the greedy flow go for a larger newcomer; if they would not be enough, none does."""
    w = world(max_queued_rows=10)
    greedy = [w.admit(tenant="greedy") for _ in range(10)]
    w.admit(rows=3, tenant="modest")
    assert w.settle() == greedy[:6:-1]
    assert isinstance(w.refuse(rows=8, tenant="third"), QueueFull)
    assert w.settle() == []


def test_a_deadline_that_the_work_ahead_does_not_allow_is_refused(world):
    """Two whole batches ahead take 36 ms, its own 18 ms and a quarter for noise: 58.5 ms are just enough."""
    w = world()
    for _ in range(16):
        w.admit(deadline=0.058)
    assert isinstance(w.refuse(deadline=0.0584), DeadlineUnreachable)
    w.admit(deadline=0.0586)


def test_what_rides_along_waits_for_nothing(world):
    """Seven rows ahead and this one are one batch, of 18 ms; with eight ahead it is the next."""
    w = world()
    for _ in range(7):
        w.admit(deadline=0.0181)
    w.admit(deadline=0.0181)
    assert isinstance(w.refuse(deadline=0.0359), DeadlineUnreachable)
    w.admit(deadline=0.0361)


def test_the_running_batch_counts_until_it_should_be_done(world):
    """A batch of 8 takes 18 ms; 10 ms later 8 are left, and one row takes 11."""
    w = world()
    w.admit(rows=8)
    w.take(0.0)
    assert isinstance(w.refuse(now=0.010, deadline=0.0289), DeadlineUnreachable)
    w.admit(now=0.010, deadline=0.0291)


def test_an_idle_instance_does_not_wait_for_the_busy_one(world):
    """With a second instance idle, nothing is ahead."""
    w = world(instances=2)
    w.admit(rows=8)
    w.take(0.0)
    w.admit(now=0.001, deadline=0.0121)


def test_earlier_deadlines_only_count_what_goes_before_them(world):
    """A request that goes to the front of its flow does not pay for those behind it."""
    w = world()
    for index in range(80):
        w.admit(deadline=10.0 + index)
    w.admit(deadline=0.020)


def test_a_far_deadline_counts_all_that_came_before(world):
    """600 rows take 1.35 s: who has 1.3 s does not overtake those with a hundred, whose turn comes first."""
    w = world()
    for _ in range(600):
        w.admit(deadline=100.0)
    assert isinstance(w.refuse(deadline=1.3), DeadlineUnreachable)
    w.admit(deadline=1.4)
    w.admit(deadline=0.9)


def test_a_modest_flow_does_not_pay_for_a_greedy_one(world):
    """When the queue is 5 s long for one tenant, another tenant's first request can be served at once."""
    w = world()
    waiting = 0
    while w.core.admit(w.request(tenant="greedy", deadline=5.0), 0.0) is None:
        waiting += 1
    assert waiting == 5000 // 18 * 8  # whole batches
    assert isinstance(w.refuse(tenant="greedy", deadline=5.0), DeadlineUnreachable)
    w.admit(tenant="modest", deadline=0.1)


def test_an_expired_request_is_not_let_in(world):
    """A deadline that has passed on arrival is said to have passed."""
    assert isinstance(world().refuse(now=1.0, deadline=1.0), DeadlineExpired)


def test_an_unknown_bucket_refuses_nothing_for_its_cost(world):
    """Nothing is known, so every deadline in the future may be met."""
    w = world()
    for _ in range(100):
        w.admit(bucket=((99,),), deadline=1e-6)


def test_predictions_that_nothing_confirms_do_not_shut_a_model(world):
    """After a second without a batch only what lacks a fourfold is refused: a wrong cost gets its chance to be seen."""
    w = world()
    assert isinstance(w.refuse(now=1.0, deadline=1.010), DeadlineUnreachable)
    assert isinstance(w.refuse(now=1.001, deadline=1.001 + 0.0027), DeadlineUnreachable)
    w.admit(now=1.001, deadline=1.001 + 0.0028)
    batch = w.take(1.001)
    assert batch is not None
    w.finish(batch, 1.002, seconds=0.001)
    assert w.costs.predict(((4,),), 1) == pytest.approx(0.011 - 0.010 / 4)


def test_the_margin_follows_real_waits_and_falls_back(world):
    """Waits twice as long as predicted raise the margin up to 4; good predictions bring it back to 1."""
    w = world()
    now = 0.0
    for _ in range(200):
        request = w.admit(now=now)
        request.expected = 0.010
        now += 0.100
        w.finish(w.take(now), now)
    assert w.figures().wait_margin == 4.0
    for _ in range(200):
        w.admit(now=now)
        w.finish(w.take(now), now)
    assert w.figures().wait_margin == pytest.approx(1.0, abs=0.001)


@pytest.mark.parametrize(("waited", "margin"), [(0.009, 1.95), (0.019, 2.0), (0.021, 2.05), (10.0, 2.25)])
def test_the_margin_rises_faster_than_it_falls(world, waited, margin):
    """By a quarter of what a wait is over it, but of no more than 1, and by a twentieth of what one is under it."""
    w = world()
    now = 0.0
    for _ in range(4):
        w.admit(now=now)
        now += 10.0
        w.finish(w.take(now), now)
    assert w.figures().wait_margin == 2.0
    request = w.admit(now=now)
    request.expected = 0.009  # A millisecond is added to both waits.
    w.take(now + waited)
    assert w.figures().wait_margin == pytest.approx(margin)


def test_drain_refuses_and_finishes(world):
    """After `drain` nothing new is let in; what waits runs."""
    w = world(max_delay=10.0)
    kept = w.admit()
    w.core.drain(0.0)
    assert isinstance(w.refuse(), Draining)
    w.run()
    assert kept.outputs == 0


def test_removed_and_unknown_models(world):
    """What waits for a removed model fails; its lanes refuse; running batches are finished; unknown ones have none."""
    w = world()
    lane = w.lane()
    running = w.admit(rows=8)
    batch = w.take()
    waiting = w.admit()
    assert isinstance(w.core.lane(("m", 2), ((4,),)), VersionNotFound)
    w.core.remove_model(KEY, 0.0)
    assert w.settle() == [waiting]
    assert isinstance(waiting.error, EngineUnavailable)
    assert isinstance(w.refuse(lane=lane), ModelFailed)
    assert w.finish(batch, 0.018) == [running]
    assert isinstance(w.core.lane(KEY, ((4,),)), ModelNotFound)
    assert w.core.held_bytes == 0


def test_lanes_are_bounded_and_idle_ones_make_room(world):
    """No more than `max_lanes` shapes wait at a time; a lane that was dropped while idle still takes requests."""
    w = world(max_lanes=2)
    idle = w.lane(((1,),))
    w.admit(bucket=((2,),))
    w.admit(bucket=((3,),))
    assert idle.dropped
    assert isinstance(w.lane(((4,),)), QueueFull)
    assert isinstance(w.refuse(lane=idle), QueueFull)
    w.run()
    request = w.admit(lane=idle)
    assert not request.lane.dropped
    assert request.lane is w.lane(((1,),))


def test_parameters_make_lanes(world):
    """Equal parameters share a lane; 1, 1.0 and True are not equal."""
    w = world()
    lanes = {id(w.lane(parameters={"k": value})) for value in (1, 1.0, True, "1", 1)}
    assert len(lanes) == 4
    assert w.lane(parameters={"a": 1, "b": 2}) is w.lane(parameters={"b": 2, "a": 1})


def test_refusals_and_ends_leave_events(world):
    """Telemetry hears of refusals with their reason, and of each end with its times."""
    w = world()
    w.refuse(deadline=0.001)
    cancelled = w.admit()
    w.core.cancel(cancelled, 0.5)
    w.admit(now=0.5)
    w.finish(w.take(0.6), 0.7)
    w.admit(now=0.7, deadline=0.8)
    w.core.tick(0.8)
    assert w.core.events == [
        ("refused", KEY, 0, "DEADLINE_UNREACHABLE", ""),
        ("done", KEY, 0, "CANCELLED", 0.5, 0.5),
        ("batch", KEY, 1, 1, 1, 2, pytest.approx(0.011), pytest.approx(0.011)),
        ("served", KEY, 0, pytest.approx(0.6), pytest.approx(0.7), [pytest.approx(0.5)]),
        ("done", KEY, 0, "DEADLINE_EXPIRED", pytest.approx(0.1), pytest.approx(0.1)),
    ]
