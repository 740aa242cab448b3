"""Requests of the job level: never in the way of online ones, without deadlines, and alone where that is wanted."""

import pytest

from forebay_server.errors import EngineUnavailable, TenantQuota
from forebay_server.scheduling.figures import Pace
from forebay_server.scheduling.forming import RECENT
from forebay_server.scheduling.latency import CostModel
from forebay_server.scheduling.outcomes import Died, NoMemory
from forebay_server.scheduling.policy import ModelPolicy, ServerPolicy, TenantPolicy
from forebay_server.scheduling.request import Level
from forebay_server.scheduling.slots import LEFT_OVER

KEY = ("m", 1)
OTHER_BUCKET = ((8,),)


def requests_of(batch):
    return [part.request for part in batch.parts]


def test_what_is_apart_shares_no_batch(world, forever):
    """A job in a lane of its own runs by itself, not even in the padding of an online batch."""
    w = world(batch_sizes=(1, 4, 8))
    lane = w.core.apart(w.lane())
    assert lane is w.core.apart(w.lane()) is not w.lane()
    assert (lane.cap, lane.cap_seconds, lane.bucket) == (w.lane().cap, w.lane().cap_seconds, w.lane().bucket)
    suspect = w.admit(level=Level.JOB, deadline=forever, lane=lane)
    jobs = [w.admit(level=Level.JOB, deadline=forever) for _ in range(2)]
    online = [w.admit() for _ in range(3)]
    ran = w.run()
    assert ran[0] == [*online, jobs[0]]
    assert [suspect] in ran
    assert [jobs[1]] in ran


def test_lanes_apart_are_bounded_with_the_others(world):
    """An idle lane is dropped for one; parameters have theirs each."""
    w = world(max_lanes=2)
    w.admit(lane=w.lane())
    w.lane(OTHER_BUCKET)
    apart = w.core.apart(w.lane())
    assert w.figures().lanes == 2
    other = w.core.apart(w.core.lane(KEY, w.lane().bucket, {"a": 1}))
    assert other is not apart
    assert other.parameters == {"a": 1}


def test_online_requests_come_while_two_batches_of_them_are_recent(world, forever):
    """One alone says nothing, and jobs do not count."""
    w = world()
    w.admit(level=Level.JOB, deadline=forever)
    w.run()
    for now, after in ((5.0, False), (6.0, True), (9.0, False), (9.5, True)):
        w.admit(now=now)
        w.finish(w.take(now), now)
        assert w.core.online(now) is after
    assert w.core.online(9.0 + RECENT - 1e-6)
    assert not w.core.online(9.0 + RECENT)


def test_pace_is_that_of_a_full_batch(world):
    """Seconds per row of the best size; before the first batch by what warm-up measured; None for nobody."""
    w = world()
    assert w.core.pace("m") == Pace(8, 1, pytest.approx(0.018 / 8))
    assert w.core.pace("x") is None
    w.core.add_model(("m", 2), ModelPolicy(max_batch_size=4, instances=3), CostModel([(((4,),), 4, 1.0)]), 0.0)
    assert w.core.pace("m") == Pace(4, 3, 0.25)
    w.core.remove_model(("m", 2), 0.0)
    w.core.lane(KEY, OTHER_BUCKET)
    for _ in range(3):
        w.admit()
        w.run()
    assert w.core.pace("m").row_seconds == pytest.approx(0.018 / 8)
    w.core.lost(w.instances[0], 0.0)
    assert w.core.pace("m") is None


def test_pace_without_any_costs(world):
    """Something positive."""
    w = world(sizes=())
    assert w.core.pace("m") == Pace(8, 1, 0.001)


def test_how_long_jobs_wait_does_not_refuse_online_requests(world, forever):
    """A job that waited ten seconds for a gap leaves the margin of predicted waits as it is."""
    w = world()
    w.admit(level=Level.JOB, deadline=forever)
    w.take(10.0)
    assert w.figures().wait_margin == 1.0


def test_jobs_do_not_use_up_a_tenants_quota(world, forever):
    """Rows of jobs that wait are not counted; online rows are, and are given back."""
    w = world(server=ServerPolicy(tenants={"t": TenantPolicy(max_queued_rows=2)}))
    for _ in range(5):
        w.admit(level=Level.JOB, deadline=forever, tenant="t")
    online = [w.admit(tenant="t") for _ in range(2)]
    assert isinstance(w.refuse(tenant="t"), TenantQuota)
    assert w.run()[0] == online
    for _ in range(2):
        w.admit(tenant="t")
    assert isinstance(w.refuse(tenant="t"), TenantQuota)


@pytest.mark.parametrize("outcome", [Died(), NoMemory()])
def test_an_error_says_whether_the_engine_ran_the_request(world, forever, outcome):
    """So that a job which may be the cause uses up its attempts, and others don't."""
    w = world(max_batch_size=1, best_batch_size=1)
    ran, waits = (w.admit(level=Level.JOB, deadline=forever) for _ in range(2))
    w.finish(w.take(), 0.1, outcome)
    assert isinstance(ran.error, EngineUnavailable)
    assert ran.error.ran
    if isinstance(outcome, Died):
        assert isinstance(waits.error, EngineUnavailable)
        assert not waits.error.ran


def test_a_stuck_engine_says_so_too(world, forever):
    """Of what it runs."""
    w = world(max_batch_size=1, best_batch_size=1, max_execution=1.0)
    ran, waits = (w.admit(level=Level.JOB, deadline=forever) for _ in range(2))
    w.take()
    w.core.tick(1.0)
    w.settle()
    assert ran.error.ran
    assert not waits.error.ran


def test_jobs_without_deadline_go_everywhere(world, forever):
    """Queued before and after such with one, cut into parts, shed, cancelled, and never woken for: all come out."""
    w = world(max_queued_rows=24)
    endless = [w.admit(level=Level.JOB, deadline=forever) for _ in range(3)]
    near = w.admit(level=Level.JOB, deadline=50.0)
    large = w.admit(rows=19, level=Level.JOB, deadline=forever)
    assert w.core.next_wakeup() <= 50.0
    w.core.cancel(endless[1], 0.0)
    online = w.admit(rows=8)
    ran = w.run()
    assert large.error.reason == "QUEUE_FULL"
    assert ran[0] == [online]
    assert ran[1][0] is near
    assert w.core.idle()
    assert w.figures().queued_rows == 0
    assert endless[0].outputs is not None
    assert endless[2].outputs is not None


def test_an_online_request_waits_for_one_batch_of_jobs_at_most(world, forever):
    """With any number of jobs waiting it is in the next batch."""
    w = world()
    for _ in range(1000):
        w.admit(level=Level.JOB, deadline=forever)
    batch = w.take()
    assert batch.rows == 8
    online = w.admit(now=0.001, deadline=0.040)
    w.finish(batch, 0.018)
    assert requests_of(w.take(0.018)) == [online]


@pytest.fixture
def apart(world):
    """A world with an instance for jobs alone, and its number."""

    def make(**policy):
        w = world(job_instances=1, **policy)
        return w, w.instances[1]

    return make


def test_an_instance_for_jobs_runs_nothing_else(apart, forever):
    """Nor do the others run jobs: who comes finds them idle."""
    w, for_jobs = apart()
    jobs = [w.admit(level=Level.JOB, deadline=forever) for _ in range(3)]
    assert w.take() is None
    batch = w.take(instance=for_jobs)
    assert requests_of(batch) == jobs
    online = w.admit()
    assert requests_of(w.take()) == [online]
    w.admit()
    w.finish(batch, 0.013)
    assert w.take(instance=for_jobs) is None


def test_jobs_still_fill_padding(apart, forever):
    """Slots that cost nothing are theirs on any instance."""
    w, _ = apart(batch_sizes=(1, 4, 8))
    job = w.admit(level=Level.JOB, deadline=forever)
    online = [w.admit() for _ in range(3)]
    assert requests_of(w.take()) == [*online, job]


def test_without_its_instance_jobs_run_on_the_others(apart, forever):
    """It has died: the model is as well as before for those who call, and no health has changed."""
    w, for_jobs = apart()
    job = w.admit(level=Level.JOB, deadline=forever)
    waits = w.admit(level=Level.JOB, deadline=forever, rows=8)
    batch = w.take(instance=for_jobs)
    w.finish(batch, 0.1, Died())
    assert job.error.reason == "ENGINE_RESTARTED"
    assert requests_of(w.take(0.1)) == [waits]
    assert w.core.health == []
    assert (w.figures().usable_instances, w.figures().instances) == (1, 1)


def test_who_gives_way_counts_as_stuck_later(apart, forever):
    """After ten times as long; then the others take over, and when its batch is back so is it."""
    w, for_jobs = apart(max_execution=1.0)
    job = w.admit(level=Level.JOB, deadline=forever)
    batch = w.take(instance=for_jobs)
    assert w.core.next_wakeup() == LEFT_OVER
    w.core.tick(LEFT_OVER - 1e-6)
    assert w.settle() == []
    w.core.tick(LEFT_OVER)
    assert w.settle() == [job]
    other = w.admit(level=Level.JOB, deadline=forever)
    assert w.take(instance=for_jobs) is None
    assert requests_of(w.take(LEFT_OVER)) == [other]
    w.finish(batch, LEFT_OVER + 1.0)
    last = w.admit(level=Level.JOB, deadline=forever)
    assert requests_of(w.take(LEFT_OVER + 1.0, instance=for_jobs)) == [last]
    assert w.core.health == []


def test_costs_are_learned_from_jobs_while_no_online_requests_come(apart, forever):
    """Beside these a batch takes longer than by itself."""
    w, for_jobs = apart()

    def run_job(now):
        w.admit(level=Level.JOB, deadline=forever, now=now, rows=8)
        w.finish(w.take(now, for_jobs), now, seconds=0.036)

    run_job(0.0)
    learned = w.costs.predict(((4,),), 8)
    assert learned == pytest.approx(0.018 + 0.018 / 4)
    for now in (1.0, 1.1):
        w.admit(now=now, rows=8)
        w.finish(w.take(now), now, seconds=learned)
    run_job(1.2)
    assert w.costs.predict(((4,),), 8) == pytest.approx(learned)


def test_nobody_waits_for_an_instance_for_jobs(apart, forever):
    """A busy one refuses nobody a near deadline; an idle one is none that could run what comes."""
    w, for_jobs = apart()
    w.admit(level=Level.JOB, deadline=forever, rows=8)
    assert w.take(instance=for_jobs) is not None
    online = w.admit(deadline=0.020, rows=8)
    assert requests_of(w.take()) == [online]
    w.admit(rows=8)
    assert w.core.busy_until(0.0) == pytest.approx(0.9 * 0.018)


def test_pace_is_that_of_the_instances_for_jobs(apart):
    """They run the jobs; without them the others do."""
    w, for_jobs = apart(instances=2)
    for_jobs = w.instances[2]
    assert w.core.pace("m").instances == 1
    w.core.lost(for_jobs, 0.0)
    assert w.core.pace("m").instances == 2
