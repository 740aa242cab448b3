"""What is sent again, when and how often, at exact instants and without a network."""

import pytest
from google.protobuf.message import Message

from forebay_client import (
    BytesLimit,
    DeadlineExceeded,
    Draining,
    ForebayError,
    InternalError,
    InvalidRequest,
    MessageTooLarge,
    ModelLoading,
    Overloaded,
    QueueFull,
    Retry,
    Unavailable,
)
from forebay_client._retries import Budget, repeatable, retried
from forebay_client._steps import Await, Call, Launch, Pause

RETRY = Retry()


class World:
    """A clock that only plans move, and calls that end as a test has written down.

    Each entry of the script is (seconds that the call takes, response or error), in the order in which they begin.
    """

    def __init__(self, *script) -> None:
        self.now = 1000.0
        self.script = list(script)
        self.calls: list[tuple[float, float]] = []
        """The instant and the timeout of each call."""
        self.pauses: list[float] = []
        self.running: list[tuple[float, object]] = []

    def clock(self) -> float:
        return self.now

    def begin(self, call):
        self.calls.append((round(self.now - 1000, 6), round(call.timeout, 6)))
        took, outcome = self.script.pop(0)
        return self.now + took, outcome

    def run(self, plan):
        step, outcome = next(plan), None
        try:
            while True:
                outcome = None
                match step:
                    case Pause():
                        self.pauses.append(round(step.seconds, 6))
                        self.now += step.seconds
                    case Call():
                        self.now, outcome = self.begin(step)
                        if isinstance(outcome, ForebayError):
                            step = plan.throw(outcome)
                            continue
                    case Launch():
                        self.running.append(self.begin(step.call))
                    case Await():
                        first = min(self.running, key=lambda run: run[0])
                        if step.seconds is not None and first[0] > self.now + step.seconds:
                            self.now += step.seconds
                        else:
                            self.running.remove(first)
                            self.now, outcome = first
                step = plan.send(outcome)
        except StopIteration as end:
            return end.value


def plan(world, *, until=10.0, retry=RETRY, budget=None, **options):
    return retried(
        "Predict",
        Message,
        1000.0 + until,
        retry,
        budget or Budget(retry),
        clock=world.clock,
        chance=lambda: 0.0,  # the shortest pauses: 0.05, 0.1, 0.2 ... 1 s
        **options,
    )


SHED = QueueFull("full", retry_delay=0.3)


def test_what_was_shed_is_sent_again_after_the_servers_time():
    """Not before it, however short our own pause would be; and with what is left of the one deadline."""
    world = World((0.1, SHED), (0.1, QueueFull("full", retry_delay=0.01)), (0.1, "answer"))

    assert world.run(plan(world)) == "answer"
    assert world.pauses == [0.3, 0.1]
    assert world.calls == [(0.0, 10.0), (0.4, 9.6), (0.6, 9.4)]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (QueueFull("x", retry_delay=0.3), True),
        (BytesLimit("x", retry_delay=0.3), True),
        (Unavailable("x"), True),
        (Draining("x"), True),
        (ModelLoading("x"), True),
        (Overloaded("a proxy's, that does not say when"), False),
        (MessageTooLarge("x"), False),
        (MessageTooLarge("x", retry_delay=0.3), False),
        (DeadlineExceeded("x"), False),
        (InvalidRequest("x"), False),
        (InternalError("x"), False),
    ],
)
def test_only_what_may_succeed_soon_is_sent_again(error, expected):
    """A message over the limit never is, though its status code is that of overload."""
    world = World((0.1, error), (0.1, "answer"))

    assert expected is repeatable(error)
    if expected:
        assert world.run(plan(world)) == "answer"
    else:
        with pytest.raises(type(error)):
            world.run(plan(world))
        assert world.pauses == []


def test_the_attempts_are_counted():
    """The last error is the one that is raised."""
    world = World((0, SHED), (0, SHED), (0, Unavailable("last")), (0, "answer"))
    with pytest.raises(Unavailable, match="last"):
        world.run(plan(world, retry=Retry(attempts=3)))

    assert len(world.calls) == 3


def test_nobody_waits_beyond_the_deadline():
    """If the server's time is longer than what is left, the error comes at once."""
    world = World((0.1, QueueFull("full", retry_delay=0.9)))
    with pytest.raises(QueueFull):
        world.run(plan(world, until=1.0))

    assert world.now == 1000.1


def test_the_budget_bounds_repetitions_over_time():
    """Two at first, then one for each ten calls, whoever makes them."""
    retry = Retry(ratio=0.1, reserve=2)
    budget = Budget(retry)
    repeated = 0
    for _ in range(100):
        world = World((0, SHED), (0, "answer"))
        try:
            world.run(plan(world, retry=retry, budget=budget))
        except QueueFull:
            continue
        repeated += 1

    assert repeated == 2 + 9
    budget = Budget(retry)
    for _ in range(100):
        budget.call()
    assert budget.left == 2


@pytest.mark.parametrize("values", [{"attempts": 0}, {"ratio": -0.1}, {"ratio": 2}, {"reserve": float("inf")}])
def test_a_policy_out_of_range_is_refused(values):
    """At once."""
    with pytest.raises(ValueError):
        Retry(**values)


def test_a_slow_call_gets_company():
    """After the time of the hedge; the first answer counts, whichever call it is of."""
    world = World((5.0, "slow"), (0.1, "quick"))

    assert world.run(plan(world, hedge=0.2)) == "quick"
    assert world.calls == [(0.0, 10.0), (0.2, 9.8)]
    assert world.now == pytest.approx(1000.3)

    world = World((0.25, "slow"), (0.1, "quick"))
    assert world.run(plan(world, hedge=0.2)) == "slow"


def test_a_quick_call_gets_none():
    """The second request costs the server something."""
    world = World((0.19, "answer"))

    assert world.run(plan(world, hedge=0.2)) == "answer"
    assert len(world.calls) == 1


def test_one_of_two_may_fail():
    """Then the other is waited for; if that fails, too, both are repeated."""
    world = World((0.3, Unavailable("gone")), (0.5, "answer"))
    assert world.run(plan(world, hedge=0.2)) == "answer"
    assert len(world.calls) == 2

    world = World((0.3, Unavailable("gone")), (0.5, SHED), (0.1, "answer"))
    assert world.run(plan(world, hedge=0.2)) == "answer"
    assert world.calls == [(0.0, 10.0), (0.2, 9.8), (1.0, 9.0)]
    assert world.pauses == [0.3]


def test_an_error_that_both_would_meet_is_not_waited_out():
    """A request that is wrong is wrong everywhere."""
    world = World((0.3, InvalidRequest("wrong")), (9.0, "late"))
    with pytest.raises(InvalidRequest):
        world.run(plan(world, hedge=0.2))
    assert world.now == pytest.approx(1000.3)


def test_without_budget_there_is_no_company():
    """Hedges are repetitions."""
    retry = Retry(ratio=0, reserve=0)
    world = World((5.0, "slow"))

    assert world.run(plan(world, hedge=0.2, retry=retry)) == "slow"
    assert len(world.calls) == 1
