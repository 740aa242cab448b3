"""What the steps of a call decide, at exact instants and without a network."""

import pytest
from google.protobuf.message import Message

from forebay.v1 import job_pb2, job_service_pb2
from forebay_client import (
    BadResponse,
    DeadlineExceeded,
    Draining,
    ForebayError,
    InternalError,
    JobNotFinished,
    QueueFull,
    Unavailable,
    _job_plans,
    _plans,
    _retries,
    _steps,
)

PENDING = job_pb2.JOB_STATE_PENDING
RUNNING = job_pb2.JOB_STATE_RUNNING
SUCCEEDED = job_pb2.JOB_STATE_SUCCEEDED


class World:
    """A clock that only plans move, and a server that says what a test has written down."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.steps: list[tuple[float, object]] = []
        """Every step at its instant, in seconds from the start."""

    def clock(self) -> float:
        return self.now

    def run(self, plan, script):
        """Carries a plan out. Each entry of the script is (seconds that the call takes, response or error)."""
        script = iter(script)
        step = next(plan)
        try:
            while True:
                self.steps.append((round(self.now - 1000, 6), step))
                if isinstance(step, _steps.Pause):
                    self.now += step.seconds
                    step = plan.send(None)
                    continue
                took, outcome = next(script)
                self.now += took
                step = plan.throw(outcome) if isinstance(outcome, ForebayError) else plan.send(outcome)
        except StopIteration as end:
            return end.value

    def calls(self):
        return [(at, step.method, round(step.timeout, 6)) for at, step in self.steps if isinstance(step, _steps.Call)]

    def pauses(self):
        return [round(step.seconds, 6) for _, step in self.steps if isinstance(step, _steps.Pause)]


@pytest.fixture
def world():
    return World()


def least() -> float:
    """The shortest pauses: 0.05, 0.1, 0.2 ... 1 s."""
    return 0.0


def response(state, **outcome) -> job_service_pb2.ResultResponse:
    return job_service_pb2.ResultResponse(job=job_pb2.Job(id="a", state=state), **outcome)


def asked(world) -> list[float]:
    """The waits that were asked for."""
    requests = [step.request for _, step in world.steps if isinstance(step, _steps.Call)]
    return [request.wait.ToNanoseconds() / 1e9 for request in requests]


def test_pauses_grow_and_have_a_jitter():
    """From 0.1 s, doubled up to 2 s, of which half is by chance; at least what the server said."""
    for chance, expected in ((0.0, [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]), (1.0, [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0])):
        pauses = _retries.Pauses(lambda chance=chance: chance)
        assert [pauses.next() for _ in expected] == pytest.approx(expected)
        pauses.reset()
        assert pauses.next(0.7) == 0.7
        assert pauses.next(0.01) == pytest.approx(expected[1])


def test_insisting_spends_the_deadline_and_no_more(world):
    """Each try has what is left, and the last error is raised when the next pause would not fit."""
    request = Message
    plan = _plans.insist("Submit", request, 1.0, clock=world.clock, chance=least)
    with pytest.raises(Draining):
        world.run(plan, [(0.1, Unavailable("1")), (0.1, Unavailable("2")), (0.1, Draining("3")), (0.1, Draining("4"))])

    assert world.calls() == [
        (0, "Submit", 1.0),
        (0.15, "Submit", 0.85),
        (0.35, "Submit", 0.65),
        (0.65, "Submit", 0.35),
    ]
    assert world.pauses() == [0.05, 0.1, 0.2]


@pytest.mark.parametrize("error", [QueueFull("x", retry_delay=0.1), DeadlineExceeded("x"), InternalError("x")])
def test_only_what_is_unavailable_is_tried_again(world, error):
    """Whatever else is wrong is the caller's to judge."""
    plan = _plans.insist("Submit", Message, 10.0, clock=world.clock, chance=least)
    with pytest.raises(type(error)):
        world.run(plan, [(0.1, error)])
    assert world.pauses() == []


def test_a_result_is_waited_for_by_long_polls(world):
    """60 s each, with 10 s more for the answer; a job that is done ends it."""
    done = response(SUCCEEDED, response={"model": "m", "version": 1})
    plan = _job_plans.result("a", None, clock=world.clock, chance=least)
    found = world.run(plan, [(60, response(PENDING)), (59.9, response(RUNNING)), (3, done)])

    assert found.job.done
    assert world.calls() == [(0, "Result", 70), (60.05, "Result", 70), (120.0, "Result", 70)]
    assert asked(world) == [60, 60, 60]


def test_the_last_poll_is_as_long_as_is_left(world):
    """And then the job has not finished."""
    plan = _job_plans.result("a", 61.0, clock=world.clock, chance=least)
    with pytest.raises(JobNotFinished, match="job a is RUNNING"):
        world.run(plan, [(60, response(RUNNING)), (0.95, response(RUNNING))])
    assert asked(world) == pytest.approx([60, 0.95])


def test_answers_that_come_early_make_it_ask_less_often(world):
    """The pauses grow as after an error, until a poll is waited for again."""
    plan = _job_plans.result("a", None, clock=world.clock, chance=least)
    done = response(SUCCEEDED, response={"model": "m", "version": 1})
    world.run(plan, [(0, response(PENDING))] * 3 + [(60, response(PENDING)), (0, response(PENDING)), (0, done)])
    assert world.pauses() == [0.05, 0.1, 0.2, 0.05, 0.1]


def test_an_outage_is_borne_for_a_minute(world):
    """At a stretch; an answer in between begins a new minute."""
    plan = _job_plans.result("a", None, clock=world.clock, chance=least)
    with pytest.raises(Unavailable):
        world.run(plan, [(0, Unavailable("gone"))] * 100)
    assert 57 < world.now - 1000 < 60

    world = World()
    plan = _job_plans.result("a", None, clock=world.clock, chance=least)
    gone = [(0, Unavailable("gone"))] * 40
    done = response(SUCCEEDED, response={"model": "m", "version": 1})
    assert world.run(plan, [*gone, (60, response(PENDING)), *gone, (1, done)]).job.done
    assert world.now - 1000 > 120


def test_an_outage_is_not_borne_beyond_the_timeout(world):
    """What the caller wants to wait is the limit of all waiting."""
    plan = _job_plans.result("a", 1.0, clock=world.clock, chance=least)
    with pytest.raises(Unavailable):
        world.run(plan, [(0, Unavailable("gone"))] * 100)
    assert 0.5 < world.now - 1000 < 1


def test_a_finished_job_without_an_outcome_is_a_bad_response(world):
    """The contract promises one."""
    plan = _job_plans.result("a", 0, clock=world.clock, chance=least)
    with pytest.raises(BadResponse, match="job a is SUCCEEDED, and the server sent no outcome"):
        world.run(plan, [(0, response(SUCCEEDED))])


def news(watch, state, **fields):
    found = watch.news(job_service_pb2.WatchJobResponse(job=job_pb2.Job(id="a", state=state, **fields)))
    return None if found is None else (str(found.state), found.jobs_ahead)


def test_watching_tells_what_is_new(world):
    """A new call begins with what was told before; that is no news."""
    watch = _job_plans.Watch("a", None, clock=world.clock, chance=least)
    assert news(watch, PENDING, jobs_ahead=2) == ("PENDING", 2)
    assert news(watch, PENDING, jobs_ahead=1) == ("PENDING", 1)
    assert watch.interrupted(Draining("x")) == 0.05
    assert watch.interrupted(Unavailable("x")) == 0.1
    assert news(watch, PENDING, jobs_ahead=1) is None
    assert watch.interrupted(None) == 0.05
    assert not watch.over
    assert news(watch, SUCCEEDED) == ("SUCCEEDED", None)
    assert watch.over


def test_watching_calls_are_bounded(world):
    """By ten minutes each, and by the timeout; what is refused is raised."""
    watch = _job_plans.Watch("a", None, clock=world.clock, chance=least)
    assert watch.call_timeout() == 600
    watch = _job_plans.Watch("a", 700, clock=world.clock, chance=least)
    assert news(watch, RUNNING) == ("RUNNING", None)
    world.now += 600
    assert watch.interrupted(DeadlineExceeded("x")) == 0.05
    assert watch.call_timeout() == 100
    with pytest.raises(QueueFull):
        watch.interrupted(QueueFull("x"))
    world.now += 100
    with pytest.raises(JobNotFinished, match="job a is RUNNING"):
        watch.interrupted(DeadlineExceeded("x"))
