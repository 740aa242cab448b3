"""Waiting calls at exact instants: who is told what, when the store is read, and what is left behind."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay_server.errors import Draining, JobNotFound, StoreUnavailable
from forebay_server.jobs.states import JobState
from forebay_server.jobs.store import Found, Job
from forebay_server.jobs.waiting import RECHECK, Waiter, Waiters


def job(state=JobState.PENDING, ident="a", tenant="t"):
    return Job(ident, tenant, 1, state, "m", "", 0, 2, "", 0, 0, 0.0, None, None, None, None)


class Rig:
    """Waiters whose reads the test answers."""

    def __init__(self, *, shared=False, per_tenant=100, per_connection=100):
        self.now = 0.0
        self.reads = []
        self.waiters = Waiters(
            lambda get, done: self.reads.append((get, done)),
            per_tenant=per_tenant,
            per_connection=per_connection,
            shared=shared,
            clock=lambda: self.now,
        )

    def wait(self, until=inf, ident="a", tenant="t", connection="c"):
        got = []
        waiter = Waiter(ident, tenant, connection, until=until, done=got.append)
        self.waiters.add(waiter)
        return waiter, got

    def watch(self, ident="a", tenant="t", connection="c"):
        told = []
        waiter = Waiter(ident, tenant, connection, tell=told.append)
        self.waiters.add(waiter)
        return waiter, told

    def answer(self, outcome):
        get, done = self.reads.pop(0)
        done(outcome)
        return get

    def at(self, now):
        self.now = now
        if self.waiters.due <= now:
            self.waiters.tick(now)

    def empty(self):
        waiters = self.waiters
        return not (len(waiters) or waiters._by_job or waiters._tenants or waiters._connections)


def test_a_wait_is_answered_at_its_end_or_at_its_time():
    """Not by a change that is not the end; at its time with the job as it was last known."""
    rig = Rig()
    _, got = rig.wait(until=5.0)
    rig.answer(Found(job(), None))
    rig.waiters.tell(job(JobState.RUNNING))
    rig.at(4.999)
    assert got == []
    assert rig.waiters.due == 5.0
    rig.at(5.0)
    assert got == [Found(job(JobState.RUNNING), None)]
    assert rig.empty()
    _, got = rig.wait(until=9.0)
    rig.answer(Found(job(), None))
    rig.waiters.tell(job(JobState.SUCCEEDED), b"y")
    assert got == [Found(job(JobState.SUCCEEDED), b"y")]
    assert rig.empty()
    assert rig.reads == []


def test_a_wait_whose_first_read_is_late_is_answered_by_it():
    """There is nothing to say before."""
    rig = Rig()
    _, got = rig.wait(until=1.0)
    rig.at(2.0)
    assert got == []
    rig.answer(Found(job(), None))
    assert got == [Found(job(), None)]


def test_a_watch_tells_what_is_new():
    """Each change once, and nothing after the last."""
    rig = Rig()
    _, told = rig.watch()
    rig.answer(Found(job(), None))
    rig.waiters.tell(job())
    rig.waiters.tell(job(JobState.RUNNING))
    rig.waiters.tell(job(JobState.CANCELLED))
    rig.waiters.tell(job(JobState.CANCELLED))
    assert [each.state for each in told] == [JobState.PENDING, JobState.RUNNING, JobState.CANCELLED]
    assert rig.empty()


def test_an_end_whose_outcome_is_not_known_is_read():
    """Those who want the job only are told at once; a cancelled job has no outcome."""
    rig = Rig()
    _, told = rig.watch()
    _, got = rig.wait()
    rig.answer(Found(job(), None))
    rig.answer(Found(job(), None))
    rig.waiters.tell(job(JobState.SUCCEEDED))
    assert [each.state for each in told] == [JobState.PENDING, JobState.SUCCEEDED]
    assert got == []
    rig.at(0.0)
    rig.answer(Found(job(JobState.SUCCEEDED), b"y"))
    assert got == [Found(job(JobState.SUCCEEDED), b"y")]
    _, got = rig.wait()
    rig.answer(Found(job(), None))
    rig.waiters.tell(job(JobState.CANCELLED))
    assert got == [Found(job(JobState.CANCELLED), None)]
    assert rig.reads == []


def test_a_foreign_waiter_hears_nothing_of_a_job():
    """Neither from memory nor by another's read."""
    rig = Rig()
    _, mine = rig.watch()
    _, foreign = rig.watch(tenant="other")
    rig.answer(Found(job(), None))
    rig.waiters.tell(job(JobState.RUNNING))
    rig.waiters.changed(["a"])
    rig.at(0.0)
    assert {get.tenant for get, _ in rig.reads} == {"t", "other"}
    assert foreign == []
    while rig.reads:
        get, done = rig.reads.pop()
        done(Found(job(JobState.RUNNING), None) if get.tenant == "t" else JobNotFound("no"))
    assert [type(each) for each in foreign] == [JobNotFound]
    assert [each.state for each in mine] == [JobState.PENDING, JobState.RUNNING]


def test_changes_are_read_once_and_in_one_go():
    """However many wait and however often it is said; the next go comes when this one is done."""
    rig = Rig()
    for number in range(30):
        rig.wait(ident=str(number % 3))
    while rig.reads:
        rig.answer(Found(job(), None))
    for _ in range(5):
        rig.waiters.changed(["0", "1", "unknown"])
    rig.at(0.0)
    assert [get.id for get, _ in rig.reads] == ["0", "1"]
    rig.waiters.changed(())
    rig.at(0.1)
    assert len(rig.reads) == 2
    rig.answer(Found(job(ident="0"), None))
    rig.answer(Found(job(ident="1"), None))
    rig.at(0.1)
    assert [get.id for get, _ in rig.reads] == ["0", "1", "2"]


def test_a_store_that_does_not_answer_costs_nobody_the_wait():
    """A read again that fails is not told; a first one is."""
    rig = Rig()
    _, got = rig.wait()
    rig.answer(Found(job(), None))
    rig.waiters.changed(["a"])
    rig.at(0.0)
    rig.answer(StoreUnavailable("gone"))
    assert got == []
    _, second = rig.wait()
    rig.answer(StoreUnavailable("gone"))
    assert [type(each) for each in second] == [StoreUnavailable]


@pytest.mark.parametrize("shared", [True, False])
def test_all_are_read_again_each_second_only_if_others_use_the_store(shared):
    """At exact instants; nothing is due where nobody else changes anything."""
    rig = Rig(shared=shared)
    rig.wait()
    rig.answer(Found(job(), None))
    rig.at(RECHECK - 0.001)
    assert rig.reads == []
    assert rig.waiters.due == (RECHECK if shared else inf)
    rig.at(RECHECK)
    assert len(rig.reads) == shared


def test_the_end_of_the_server_answers_all():
    """Waits get the job as it is, watches the error, and one whose first read is on its way is answered by that."""
    rig = Rig()
    _, got = rig.wait()
    _, told = rig.watch()
    rig.answer(Found(job(), None))
    rig.answer(Found(job(), None))
    _, late = rig.wait()
    rig.waiters.end(Draining("end"))
    assert got == [Found(job(), None)]
    assert [type(each) for each in told] == [Job, Draining]
    assert late == []
    rig.answer(Found(job(), None))
    assert late == [Found(job(), None)]
    assert rig.empty()


def test_those_that_leave_are_forgotten():
    """Twice is harmless; alarms of the gone do not pile up."""
    rig = Rig(per_tenant=3, per_connection=2)
    first, _ = rig.wait()
    rig.wait()
    assert rig.waiters.full("t", "c")
    assert not rig.waiters.full("t", "d")
    rig.wait(connection="d")
    assert rig.waiters.full("t", "d")
    assert not rig.waiters.full("u", "d")
    rig.waiters.leave(first)
    rig.waiters.leave(first)
    assert not rig.waiters.full("t", "c")
    rig = Rig()
    for number in range(10_000):
        waiter, _ = rig.wait(until=1000.0 + number)
        rig.waiters.leave(waiter)
    assert len(rig.waiters._alarms) < 200
    assert rig.empty()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["wait", "watch", "leave", "tell", "answer", "changed", "time"]),
            st.integers(0, 2),
            st.sampled_from(list(JobState)),
        ),
        max_size=60,
    )
)
def test_each_wait_is_answered_once_and_nothing_is_left(steps):  # noqa: C901  # one branch per kind of step
    """Whatever happens in whatever order: one answer per wait, none after leaving, and all counts end at zero."""
    rig = Rig()
    made, final = [], {}
    for step, number, state in steps:
        ident = str(number)
        if step in ("wait", "watch"):
            waiter, got = rig.wait(rig.now + 2.0, ident) if step == "wait" else rig.watch(ident)
            made.append((step, waiter, got))
        elif step == "leave" and made:
            rig.waiters.leave(made[number % len(made)][1])
        elif step == "tell":
            now = final.setdefault(ident, state) if state >= JobState.SUCCEEDED else final.get(ident, state)
            rig.waiters.tell(job(now, ident), b"y" if now in (3, 4, 6) else None)
        elif step == "answer" and rig.reads:
            get = rig.reads[0][0]
            rig.answer(Found(job(final.get(get.id, JobState.PENDING), get.id), b"y"))
        elif step == "changed":
            rig.waiters.changed([ident] if number else ())
        rig.at(rig.now + (1.0 if step == "time" else 0.0))
    while rig.reads:
        get = rig.reads[0][0]
        rig.answer(Found(job(JobState.SUCCEEDED, get.id), b"y"))
    for number in range(3):
        rig.waiters.tell(job(JobState.SUCCEEDED, str(number)), b"y")
    for step, waiter, got in made:
        assert waiter.gone
        if step == "wait":
            assert len(got) <= 1
        else:
            assert sum(each.state >= JobState.SUCCEEDED for each in got) <= 1
    assert rig.empty()
