"""Jobs from submission to their end, with a memory store, the real scheduler and the synthetic engine."""

import time
from copy import deepcopy

import numpy as np
import pytest

from forebay_server.errors import (
    Draining,
    InvalidRequest,
    JobKeyReused,
    JobNotFound,
    ModelLoading,
    QueueFull,
    StoreFull,
    StoreUnavailable,
    TenantQuota,
    VersionNotFound,
)
from forebay_server.jobs import claiming
from forebay_server.jobs.pending import flow_of
from forebay_server.jobs.states import JobState
from forebay_server.jobs.store import Claim, Finish, Get, Page, Reap, Release, Renew, Submit
from forebay_server.scheduling.request import Level, Priority, Request


def payload(*values):
    return np.array(values, np.float32).tobytes()


# --- The good case ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inline", [True, False])
def test_a_job_runs_and_its_result_is_found(host, inline):
    """PENDING when it is acknowledged, then run once, its outcome and version visible; the first attempt."""
    server = host(inline=inline)
    job = server.submit(payload(1, 2))
    assert job.state is JobState.PENDING
    found = server.wait(job)
    assert found.outcome == payload(1, 2)
    assert (found.job.state, found.job.attempt, found.job.served_version) == (JobState.SUCCEEDED, 1, 1)
    assert server.look(job) == found


def test_jobs_share_batches(host):
    """Rows of many jobs, of two tenants, go into one batch; nothing is claimed beyond what is wanted."""
    server = host(serve=False, batch=4)
    jobs = server.submit_all(20) + server.submit_all(20, tenant="u")
    sizes = []
    finished = server.core.finished
    server.core.finished = lambda batch, *rest: sizes.append(batch.rows) or finished(batch, *rest)
    server.desk.serve("m")
    for job in jobs:
        assert server.wait(job).job.state is JobState.SUCCEEDED
    assert max(sizes) == 4
    assert sum(sizes) == 40
    assert len(sizes) <= 20
    assert {claim.flow.tenant for claim in server.store.asked(Claim)} == {"t", "u"}


def test_jobs_that_are_alike_go_together(host):
    """Many are decoded at once, though some of a claim have deadlines or other shapes; each has its own outcome."""
    server = host(serve=False, batch=16)
    jobs = {}
    for number in range(60):
        values = [number, number] if number % 10 == 3 else [number]
        expire_after = 30.0 if number % 10 == 7 else None
        jobs[server.submit(payload(*values), expire_after=expire_after)] = payload(*values)
    server.desk.serve("m")
    found = {job: server.wait(job) for job in jobs}
    assert {job: each.outcome for job, each in found.items()} == jobs
    assert {(each.job.state, each.job.attempt) for each in found.values()} == {(JobState.SUCCEEDED, 1)}
    assert len(server.decoded) == 60
    assert max(server.at_once) > 2
    server.until(lambda: server.desk.in_flight() == 0)
    claimant = server.desk._runner._claimant
    assert (claimant._in_flight, claimant._bytes, claimant._courses["m"].held) == (0, 0, 0)
    assert (server.desk._runner._ends.nbytes, claimant._lives.current.held) == (0, 0)


def test_those_of_many_that_find_no_room_come_back(host):
    """The scheduler takes the first of them; the others are given back, without an attempt, and run later."""
    server = host(serve=False, batch=2, policy={"max_queued_rows": 2}, engine="base_ms=5,worker=true")
    jobs = server.submit_all(8)
    server.desk.serve("m")
    found = [server.wait(job) for job in jobs]
    assert [(each.job.state, each.job.attempt) for each in found] == [(JobState.SUCCEEDED, 1)] * 8
    assert server.store.asked(Release)
    assert all(release.refund for release in server.store.asked(Release))
    server.until(lambda: server.desk.in_flight() == 0)
    assert server.desk._runner._claimant._bytes == 0


def test_a_fault_of_decoding_many_costs_nobody_anything(host, monkeypatch):
    """They are decoded one by one."""
    server = host(serve=False)
    jobs = server.submit_all(5)
    monkeypatch.setattr(server, "decode_all", lambda *_: 1 / 0)
    server.desk.serve("m")
    assert [server.wait(job).job.state for job in jobs] == [JobState.SUCCEEDED] * 5


def test_a_request_without_rows_is_answered_at_once(host):
    """The decoder has the response already: the scheduler is not asked."""
    server = host()
    server.answer_at_once = b"nothing"
    found = server.wait(server.submit())
    assert (found.outcome, found.job.served_version) == (b"nothing", 7)


def test_the_same_key_gives_the_same_job(host):
    """Same key and payload: the first job, which is not counted twice; other payload: an error."""
    server = host(serve=False)
    first = server.submit(request_id="k")
    assert server.submit(request_id="k") == first
    assert isinstance(server.submit(payload(9), request_id="k"), JobKeyReused)
    assert server.desk._pending.total == 1


def test_pages_list_the_newest_first(host):
    """Through the keeper as they are."""
    server = host(serve=False)
    jobs = [server.submit() for _ in range(3)]
    assert server.ask("page", Page("t", (), "", 0, 2)) == [jobs[2], jobs[1]]


# --- Errors of the run ------------------------------------------------------------------------------------------------


def test_an_error_of_the_request_ends_the_job(host):
    """What the decoder refuses for good is FAILED with that error, and not tried again."""
    server = host()
    for error in (InvalidRequest([("inputs", "no")]), VersionNotFound("none")):
        server.fail_decode = error
        found = server.wait(server.submit())
        assert (found.job.state, found.outcome) == (JobState.FAILED, error.reason.encode())
        assert found.job.attempt == 1


def test_a_fault_of_the_decoder_is_internal(host):
    """An exception that nobody foresaw fails that job, with a fixed text."""
    server = host()
    server.fail_decode = ValueError("secret")
    found = server.wait(server.submit())
    assert (found.job.state, found.outcome) == (JobState.FAILED, b"INTERNAL")
    server.fail_decode = None
    assert server.wait(server.submit()).job.state is JobState.SUCCEEDED


def test_a_poisonous_job_fails_alone(host):
    """The batch is bisected: the culprit alone is FAILED."""
    server = host(serve=False, engine="poison=13")
    good = server.submit_all(3)
    bad = server.submit(payload(13))
    server.desk.serve("m")
    assert server.wait(bad).outcome == b"INTERNAL"
    assert [server.wait(job).job.state for job in good] == [JobState.SUCCEEDED] * 3


def test_no_room_gives_the_job_back_without_an_attempt(host):
    """A model that is loading: Release with a refund and a pause that grows; run once it is ready."""
    server = host()
    server.fail_decode = ModelLoading("soon")
    job = server.submit()
    server.until(lambda: len(server.store.asked(Release)) == 3)
    releases = server.store.asked(Release)
    assert all(release.refund for release in releases)
    assert [round(release.delay, 2) for release in releases] == [0.1, 0.2, 0.4]
    server.fail_decode = None
    found = server.wait(job)
    assert (found.job.state, found.job.attempt) == (JobState.SUCCEEDED, 1)


def test_jobs_give_way_to_online_requests(host):
    """A job that is shed for an online request comes back: Release with a refund, and it runs later."""

    class Online(Request):
        __slots__ = ("result",)

        def succeed(self, outputs, start, batch):
            self.result = True

        def fail(self, error):
            self.result = error

    server = host(engine="base_ms=30,worker=true", batch=1, policy={"max_queued_rows": 2}, seconds=1e-3)
    jobs = server.submit_all(3)
    server.until(lambda: server.core.figures(server.key).queued_rows == 2)
    now = time.monotonic()
    request = Online(server.core.lane(server.key, ((1,),)), 1, 4, now + 60, [payload(5)], arrival=now)
    assert server.runner.admit(request, now) is None
    server.until(lambda: server.store.asked(Release))
    assert all(release.refund for release in server.store.asked(Release))
    found = [server.wait(job) for job in jobs]
    assert [(each.job.state, each.job.attempt) for each in found] == [(JobState.SUCCEEDED, 1)] * 3
    assert request.result is True
    assert request.level is Level.ONLINE


def test_claims_are_small_and_rare_beside_online_requests(host, monkeypatch):
    """Each is followed by a rest; when no online requests come any more, what is left is claimed at once."""
    server = host(batch=64)
    online = [True]
    monkeypatch.setattr(server.core, "online", lambda now: online[0])
    monkeypatch.setattr(server.core, "online_share", lambda now: 1.0)
    began = time.monotonic()
    jobs = server.submit_all(4 * claiming.MOST_BESIDE)
    server.until(lambda: len(server.decoded) >= 3 * claiming.MOST_BESIDE)
    pace = server.core.pace("m")
    assert time.monotonic() - began >= 2 * claiming.rest(claiming.MOST_BESIDE, pace, 1.0, 1.0)
    assert {claim.limit for claim in server.store.asked(Claim)} == {claiming.MOST_BESIDE}
    online[0] = False
    assert [server.wait(job).job.state for job in jobs] == [JobState.SUCCEEDED] * len(jobs)


def test_a_job_that_kills_its_engine_uses_up_its_attempts(host):
    """The only instance dies each time: attempts count (one that runs is not refunded), and the last one is FAILED."""
    server = host(engine="dies=13", instances=3, max_attempts=2)
    job = server.submit(payload(13))
    found = server.wait(job)
    assert (found.job.state, found.job.attempt, found.outcome) == (JobState.FAILED, 2, b"ENGINE_RESTARTED")
    assert server.wait(server.submit(payload(1))).job.state is JobState.SUCCEEDED


def test_the_last_engine_that_dies_counts_too(host):
    """EngineUnavailable while it ran: no refund, so that it can't go on for ever."""
    server = host(engine="dies=13", max_attempts=1)
    found = server.wait(server.submit(payload(13)))
    assert (found.job.state, found.outcome) == (JobState.FAILED, b"ENGINE_UNAVAILABLE")


# --- Cancelling and expiry --------------------------------------------------------------------------------------------


def test_cancel_while_pending(host):
    """It never runs, and no longer counts as waiting."""
    server = host(serve=False)
    job = server.submit()
    assert server.ask("cancel", job.id, "t").state is JobState.CANCELLED
    server.until(lambda: server.desk._pending.total == 0)
    server.desk.serve("m")
    server.settle()
    assert server.decoded == []
    assert server.wait(job).outcome is None


def test_cancel_while_it_waits_in_the_scheduler_and_while_it_runs(host):
    """Both are dropped: the one is not run, the other's result is not written."""
    server = host(engine="hang=13,worker=true", batch=1)
    running, waiting = server.submit(payload(13)), server.submit(payload(1))
    server.until(lambda: len(server.decoded) == 2 and server.core.figures(server.key).queued_rows == 1)
    for job in (waiting, running):
        assert server.ask("cancel", job.id, "t").state is JobState.CANCELLED
    assert server.core.figures(server.key).queued_rows == 0
    assert server.desk._runner.in_flight() == 0
    server.engine.release()
    server.settle()
    assert server.store.asked(Finish) == []
    assert server.wait(server.submit(payload(2))).job.state is JobState.SUCCEEDED
    assert server.wait(running).job.state is JobState.CANCELLED


def test_cancel_of_a_finished_or_foreign_job(host):
    """A finished one stays as it is; another tenant's is not found."""
    server = host()
    job = server.submit()
    found = server.wait(job)
    assert server.ask("cancel", job.id, "t") == found.job
    assert isinstance(server.ask("cancel", job.id, "other"), JobNotFound)


def test_whoever_sends_messages_is_told_of_each_end(host):
    """Of jobs that have run, and of those that were cancelled; not of what was only submitted."""
    server = host(serve=False)
    job = server.submit()
    server.settle()
    assert server.finished == 0
    server.ask("cancel", job.id, "t")
    assert server.finished == 1
    server.desk.serve("m")
    server.wait(server.submit())
    assert server.finished == 2


def test_a_job_expires_while_it_waits(host):
    """EXPIRED with an error as its outcome, and whoever waits hears of it."""
    server = host(serve=False)
    job = server.submit(expire_after=0.05)
    found = server.wait(job)
    assert (found.job.state, found.outcome) == (JobState.EXPIRED, b"DEADLINE_EXPIRED")


def test_a_job_expires_while_it_runs(host):
    """It is dropped here, and its result is not written."""
    server = host(engine="hang=13,worker=true")
    job = server.submit(payload(13), expire_after=0.3)
    assert server.wait(job).job.state is JobState.EXPIRED
    server.engine.release()
    server.until(lambda: server.desk._runner.in_flight() == 0)
    assert server.look(job).job.state is JobState.EXPIRED


def test_the_deadline_goes_by_the_clock_of_the_store(host):
    """A store whose clock is an hour ahead: a job with ten seconds is not late."""
    server = host()
    server.wall.shift = 3600.0
    assert server.wait(server.submit(expire_after=10.0)).job.state is JobState.SUCCEEDED


# --- Owners -----------------------------------------------------------------------------------------------------------


def test_jobs_of_a_lost_owner_are_taken_over(host):
    """Another server's life ends: its job runs here, as the second attempt; the old claim is worth nothing."""
    server = host(serve=False)
    job = server.submit()
    flow = server.store.inner.apply([Renew("ghost", 0.2), Claim("ghost", flow_of(job), 1)])[1]
    assert flow[0].job.attempt == 1
    server.desk.serve("m")
    found = server.wait(job)
    assert (found.job.state, found.job.attempt, found.job.crashes) == (JobState.SUCCEEDED, 2, 1)


def test_a_life_that_ended_drops_all_claims(host):
    """The store says that the owner is dead: what ran under it is dropped, and runs again under a new name."""
    server = host(engine="hang=13,worker=true,base_ms=1", claim_s=0.6, batch=1, instances=2)
    job = server.submit(payload(13))
    server.until(lambda: server.decoded)
    name = server.decoded[0].owner.name
    server.store.inner.apply([Renew(name, 0.0)])
    server.until(lambda: server.desk._runner._claimant._lives.current.name != name)
    server.engine.release()
    found = server.wait(job)
    assert (found.job.state, found.job.attempt, found.job.crashes) == (JobState.SUCCEEDED, 2, 1)
    assert server.store.asked(Finish)[-1].owner != name


def test_a_quarantined_job_runs_alone(host):
    """A job that was running on two owners when they went away shares no batch, and runs when no other does."""
    server = host(serve=False, batch=8)
    suspect = server.submit(payload(1))
    for ghost in ("a", "b"):
        server.store.inner.apply(
            [Renew(ghost, 10.0), Claim(ghost, flow_of(suspect), 1), Renew(ghost, 0.0), Reap(10, 9, b"", b"")]
        )
    others = server.submit_all(40)
    together = []
    finished = server.core.finished

    def watch(batch, *rest):
        together.append([part.request.run.job.id for part in batch.parts])
        return finished(batch, *rest)

    server.core.finished = watch
    server.desk.serve("m")
    server.until(lambda: server.desk._pending.total == 41 or together)
    found = server.wait(suspect)
    assert (found.job.state, found.job.crashes) == (JobState.SUCCEEDED, 2)
    for job in others:
        server.wait(job)
    assert [suspect.id] in together
    assert sum(suspect.id in batch for batch in together) == 1


def test_a_crashed_job_out_of_attempts_is_failed(host):
    """The reaper gives it its end, and its reason."""
    server = host(serve=False, max_attempts=1)
    job = server.submit()
    server.store.inner.apply([Renew("ghost", 0.1), Claim("ghost", flow_of(job), 1)])
    found = server.wait(job)
    assert (found.job.state, found.outcome) == (JobState.FAILED, b"PAYLOAD_QUARANTINED")


# --- The store away ---------------------------------------------------------------------------------------------------


def test_submit_fails_at_once_while_the_store_is_away(host):
    """The first waits for its time, the next are refused at once; after the return all is as before."""
    server = host(timeout=0.2)
    server.store.fault = StoreUnavailable("down")
    assert isinstance(server.submit(), StoreUnavailable)
    began = time.monotonic()
    assert isinstance(server.submit(), StoreUnavailable)
    assert time.monotonic() - began < 0.15
    assert isinstance(server.ask("look", "0" * 32, "t"), StoreUnavailable)
    server.store.fault = None
    server.until(lambda: server.keeper.healthy)
    assert server.wait(server.submit()).job.state is JobState.SUCCEEDED


def test_an_outcome_is_kept_until_the_store_is_back(host):
    """The store goes away while a job runs: its result is written afterwards, and it does not run again."""
    server = host(engine="hang=13,worker=true")
    job = server.submit(payload(13))
    server.until(lambda: server.decoded and server.core.figures(server.key).running_batches)
    server.store.fault = StoreUnavailable("down")
    server.engine.release()
    server.until(lambda: server.decoded[0].ended)
    server.settle(0.3)
    assert not server.keeper.healthy
    server.store.fault = None
    found = server.wait(job)
    assert (found.job.state, found.job.attempt, found.outcome) == (JobState.SUCCEEDED, 1, payload(13))
    assert len(server.decoded) == 1


def test_a_store_that_is_full_takes_the_outcome_later(host):
    """Room comes back: the result is written, once."""
    server = host(engine="hang=13,worker=true")
    job = server.submit(payload(13))
    server.until(lambda: server.decoded and server.core.figures(server.key).running_batches)
    server.store.fault = StoreFull("full", retry_after=1.0)
    server.engine.release()
    server.until(lambda: server.desk._runner._ends._again)
    server.store.fault = None
    assert server.wait(job).outcome == payload(13)
    assert len(server.decoded) == 1


@pytest.mark.parametrize("kind", [Submit, Finish, Release, Renew, Reap])
def test_a_lost_acknowledgement_is_made_up_for(host, kind):
    """The group was done, its answer was lost: each job ends once all the same."""
    server = host(claim_s=1.0)
    if kind is Release:
        server.fail_decode = ModelLoading("soon")
    server.until(lambda: server.desk._runner._claimant._lives.current.alive)
    server.store.lose, server.store.lose_acknowledgement = kind, 1
    got = []
    submitted = server.job()
    server.desk.submit(submitted, got.append)
    server.until(lambda: got)
    server.until(lambda: server.store.lose_acknowledgement == 0)
    server.fail_decode = None
    found = server.wait(got[0])
    assert (found.job.state, found.outcome) == (JobState.SUCCEEDED, payload(1))
    assert found.job.attempt == 1


def test_a_claim_of_which_nobody_knows_is_given_up(host):
    """The answer to a claim was lost: that owner's life is ended, so that its jobs are taken over, and run."""
    server = host(serve=False)
    jobs = server.submit_all(3)
    server.until(lambda: server.desk._runner._claimant._lives.current.alive)
    server.store.lose, server.store.lose_acknowledgement = Claim, 1
    server.desk.serve("m")
    found = [server.wait(job) for job in jobs]
    assert [(each.job.state, each.job.attempt) for each in found] == [(JobState.SUCCEEDED, 2)] * 3
    owner = server.store.asked(Claim)[0].owner
    assert Renew(owner, 0.0) in server.store.asked(Renew)


def test_a_store_that_comes_back_with_less_than_it_had_confirmed(host):
    """A disk that failed has lost the end of a job: it is held by nobody who runs it, and so it runs again."""
    server = host(claim_s=60.0)
    earlier = []
    apply = server.store.inner.apply

    def keep(operations):
        if any(isinstance(operation, Finish) for operation in operations):
            earlier.append(deepcopy(server.store.inner))
        return apply(operations)

    server.store.inner.apply = keep
    job = server.submit()
    assert server.wait(job).job.state is JobState.SUCCEEDED
    server.store.fault = StoreUnavailable("the disk has failed")
    assert isinstance(server.submit(), StoreUnavailable)
    del earlier[0].apply
    server.store.inner = earlier[0]
    assert server.store.inner.apply([Get(job.id, job.tenant)])[0].job.state is JobState.RUNNING
    server.store.fault = None
    found = server.wait(job)
    assert (found.job.state, found.job.attempt, found.outcome) == (JobState.SUCCEEDED, 2, payload(1))


# --- Limits -----------------------------------------------------------------------------------------------------------


def test_too_many_jobs_are_refused(host):
    """Those that wait and those on their way count; the refusal says when to come again."""
    server = host(serve=False, max_pending=3)
    got = []
    for _ in range(5):
        server.desk.submit(server.job(), got.append)
    server.until(lambda: len(got) == 5)
    assert [type(each) for each in got].count(QueueFull) == 2
    assert all(each.retry_after >= 1.0 for each in got if isinstance(each, QueueFull))


def test_claims_are_bounded_by_bytes(host):
    """Large payloads are claimed a few at a time, and all of them run."""
    server = host(serve=False, max_held_bytes=8 << 20, batch=8192)
    jobs = server.submit_all(6, payload(*range(100_000)))  # 400 kB each; 1 MiB may be held
    server.desk.serve("m")
    for job in jobs:
        assert server.wait(job).job.state is JobState.SUCCEEDED
    assert all(claim.nbytes <= 1 << 20 for claim in server.store.asked(Claim))


def test_unserved_models_wait(host):
    """A job of a model that is not here stays PENDING, without a prospect; nor after `unserve`."""
    server = host()
    job = server.submit(model="other")
    server.settle()
    assert server.look(job).job.state is JobState.PENDING
    assert server.desk.prospect(job) == (0, None)
    server.desk.unserve("m")
    mine = server.submit()
    server.settle()
    assert server.look(mine).job.state is JobState.PENDING


def test_jobs_do_not_run_where_they_shall_not(host):
    """Taken in and counted; never claimed, without an estimate of their wait; time and callers still end them."""
    server = host(run=False)
    jobs = [*server.submit_all(3), server.submit(expire_after=30.0)]
    server.settle()
    assert server.store.asked(Claim) == []
    assert {server.look(job).job.state for job in jobs} == {JobState.PENDING}
    assert [server.desk.prospect(job) for job in jobs] == [(place, None) for place in range(4)]
    assert server.ask("cancel", jobs[0].id, "t").state is JobState.CANCELLED
    server.wall.shift = 31.0
    assert server.wait(jobs[-1]).job.state is JobState.EXPIRED


def test_the_prospect_counts_those_ahead(host):
    """Jobs of equal or better priority that came before; the wait is by the model's speed."""
    server = host(serve=False, seconds=0.008, batch=4)  # 2 ms per row
    server.desk.serve("m")
    server.desk._runner._claimant.stop()
    low = [server.submit(priority=Priority.LOW) for _ in range(2)]
    high = [server.submit(priority=Priority.HIGH) for _ in range(3)]
    assert [server.desk.prospect(job)[0] for job in high] == [0, 1, 2]
    assert server.desk.prospect(low[1])[0] == 1 + 3 - 3  # those of better priority came later
    ahead, seconds = server.desk.prospect(high[2])
    assert (ahead, seconds) == (2, pytest.approx(0.004))


# --- Waiting calls ----------------------------------------------------------------------------------------------------


def test_watching_tells_each_change(host):
    """PENDING, RUNNING, SUCCEEDED, and nothing after that."""
    server = host(serve=False)
    job = server.submit()
    told = []
    server.desk.watch(job.id, "t", "c", lambda change: told.append(getattr(change, "state", change)))
    server.until(lambda: told == [JobState.PENDING])
    server.desk.serve("m")
    server.until(lambda: told[-1] is JobState.SUCCEEDED)
    assert told == [JobState.PENDING, JobState.RUNNING, JobState.SUCCEEDED]
    assert server.desk._waiters._by_job == {}


def test_a_result_is_told_from_memory(host):
    """Whoever waits for a job that finishes here costs the store one read, however long it takes."""
    server = host(serve=False)
    job = server.submit()
    got = []
    for _ in range(50):
        server.desk.wait(job.id, "t", "c", time.monotonic() + 20, got.append)
    server.until(lambda: len(server.store.asked(Get)) == 50)
    server.desk.serve("m")
    server.until(lambda: len(got) == 50)
    assert {each.outcome for each in got} == {payload(1)}
    assert len(server.store.asked(Get)) == 50


def test_a_wait_ends_with_the_job_as_it_is(host):
    """At its time, not before; a waiter that has left is told nothing."""
    server = host(serve=False)
    job = server.submit()
    got = []
    gone = server.desk.wait(job.id, "t", "c", time.monotonic() + 0.1, lambda found: got.append("gone"))
    server.desk.leave(gone)
    began = time.monotonic()
    found = server.wait(job, 0.2)
    assert 0.19 <= time.monotonic() - began < 2.0
    assert (found.job, found.outcome, got) == (job, None, [])


def test_waiting_calls_are_bounded(host):
    """Per tenant and per connection (a quarter of its streams): more waits are answered at once, watches refused."""
    server = host(serve=False, max_waiting=3, max_streams=8)
    job = server.submit()
    later = time.monotonic() + 60
    held = [server.desk.wait(job.id, "t", "c", later, lambda found: None) for _ in range(2)]
    assert server.wait(job, 60).job.state is JobState.PENDING  # of the same connection
    assert isinstance(server.ask("watch", job.id, "t", "c"), TenantQuota)
    server.desk.wait(job.id, "t", "d", later, lambda found: None)
    assert isinstance(server.ask("watch", job.id, "t", "e"), TenantQuota)
    server.desk.leave(held[0])
    assert server.ask("watch", job.id, "t", "e").state is JobState.PENDING


def test_a_foreign_job_is_not_told_to_others(host):
    """Another tenant that waits for the id hears that there is none, whatever happens meanwhile."""
    server = host()
    submitted = server.job()
    got, told = [], []
    server.desk.submit(submitted, got.append)
    server.desk.watch(submitted.id, "other", "c", told.append)
    server.until(lambda: got)
    server.wait(got[0])
    assert [type(each) for each in told] == [JobNotFound]


def test_changes_of_other_servers_wake_who_waits(host):
    """By the store's word: the jobs concerned are read again, once; others are not."""
    server = host(serve=False, shared=False)
    mine, other = server.submit(), server.submit()
    told = []
    server.desk.watch(mine.id, "t", "c", lambda change: told.append(getattr(change, "state", change)))
    server.desk.watch(other.id, "t", "c", lambda change: None)
    server.until(lambda: len(told) == 1)
    before = len(server.store.asked(Get))
    server.store.inner.apply([Renew("far", 60.0), Claim("far", flow_of(mine), 1)])
    server.store.changed([mine.id, "0" * 32])
    server.until(lambda: len(told) == 2)
    assert told == [JobState.PENDING, JobState.RUNNING]
    assert len(server.store.asked(Get)) == before + 1


def test_a_lost_message_is_made_up_for_by_a_look_each_second(host):
    """Only where others use the store."""
    server = host(serve=False, shared=True)
    job = server.submit()
    got = []
    server.desk.wait(job.id, "t", "c", time.monotonic() + 20, got.append)
    server.until(lambda: server.store.asked(Get))
    server.store.inner.apply([Renew("far", 60.0), Claim("far", flow_of(job), 1)])
    server.store.inner.apply([Finish(job.id, "far", 1, JobState.SUCCEEDED, b"done", 1)])
    began = time.monotonic()
    server.until(lambda: got)
    assert got[0].outcome == b"done"
    assert time.monotonic() - began < 2.0


# --- The end ----------------------------------------------------------------------------------------------------------


def test_drain_gives_back_what_does_not_run(host):
    """What waits in the scheduler is released with a refund, what runs is finished, who waits is answered."""
    server = host(engine="hang=13,worker=true", batch=1)
    running, waiting = server.submit(payload(13)), server.submit()
    server.until(lambda: len(server.decoded) == 2 and server.core.figures(server.key).running_batches)
    got, told = [], []
    server.desk.wait(waiting.id, "t", "c", time.monotonic() + 60, got.append)
    server.desk.watch(waiting.id, "t", "c", told.append)
    server.until(lambda: told)
    server.desk.drain()
    assert isinstance(server.submit(), Draining)
    server.until(lambda: got)
    assert isinstance(told[-1], Draining)
    server.until(lambda: server.store.asked(Release))
    server.until(lambda: server.desk.in_flight() == 1)
    assert server.look(waiting).job.state is JobState.PENDING
    assert server.look(waiting).job.attempt == 0
    server.engine.release()
    server.until(lambda: server.desk.in_flight() == 0)
    assert server.look(running).outcome == payload(13)


def test_close_ends_the_owners_life(host):
    """So that nobody has to wait until it runs out."""
    server = host(serve=False)
    server.until(lambda: server.desk._runner._claimant._lives.current.alive)
    name = server.desk._runner._claimant._lives.current.name
    server.desk.close()
    server.until(lambda: server.desk.in_flight() == 0)
    assert server.store.asked(Renew)[-1] == Renew(name, 0.0)
    assert not server.store.inner._alive(name)


def test_nothing_happens_while_nothing_happens(host):
    """A thousand calls wait; the store is asked for its rounds only, and no job is read."""
    server = host(serve=False, max_waiting=2000, max_streams=8000)
    job = server.submit()
    for _ in range(1000):
        server.desk.wait(job.id, "t", "c", time.monotonic() + 60, lambda found: None)
    server.until(lambda: len(server.store.asked(Get)) == 1000)
    before = len(server.store.seen)
    server.settle(1.2)
    assert len(server.store.asked(Get)) == 1000
    assert len(server.store.seen) - before < 8


# --- Figures ----------------------------------------------------------------------------------------------------------


def test_jobs_are_counted_by_state(host):
    """What waits, and what has ended through here; a cancelled job that had ended already does not count again."""
    server = host(serve=False)
    jobs = server.submit_all(3)
    assert server.desk.states() == {state: 3 if state is JobState.PENDING else 0 for state in JobState}
    server.ask("cancel", jobs[0].id, "t")
    server.desk.serve("m")
    for job in jobs[1:]:
        server.wait(job)
    server.ask("cancel", jobs[1].id, "t")
    server.until(lambda: server.desk.states()[JobState.PENDING] == 0)
    assert server.desk.states() == {
        JobState.PENDING: 0,
        JobState.RUNNING: 0,
        JobState.SUCCEEDED: 2,
        JobState.FAILED: 0,
        JobState.CANCELLED: 1,
        JobState.EXPIRED: 0,
    }


def test_a_job_that_runs_and_one_that_expires_are_counted(host):
    """RUNNING while it is claimed, and EXPIRED when the store has reaped it."""
    server = host(engine="base_ms=300", seconds=0.3)
    running = server.submit()
    server.until(lambda: server.desk.states()[JobState.RUNNING] == 1)
    server.desk.unserve("m")
    server.submit(expire_after=1.0)
    server.wait(running)
    assert server.desk.states()[JobState.RUNNING] == 0
    server.wall.shift += 5.0
    server.until(lambda: server.desk.states()[JobState.EXPIRED] == 1)
    assert server.desk.states()[JobState.SUCCEEDED] == 1
