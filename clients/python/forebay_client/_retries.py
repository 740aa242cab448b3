"""What is sent again, when, and how often: decisions, at instants and with chances that are arguments.

gRPC's own policy (`_channel`) repeats UNAVAILABLE within tenths of a second. Here is what a service configuration can't
say: what was shed is sent again after the time that the server asked for, but a message over the limit, which has the
same status code, never; what stays UNAVAILABLE, because a model is being loaded, say, is given longer pauses.

All callers of an overloaded server who send everything thrice make it worse. So a client has a *budget*: each call adds
a fraction of a repetition to it, and each repetition takes one from it. When it is empty, errors are final.
"""

import random
import time
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import Message

from forebay_client._exceptions import ForebayError, Overloaded, Unavailable
from forebay_client._steps import Await, Call, Chance, Clock, Launch, Pause, Plan, T

OUTAGE: Final = 60.0  # seconds at a stretch for which a server may be away while its jobs are waited for
FIRST_PAUSE: Final = 0.1  # seconds
LONGEST_PAUSE: Final = 2.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How a client repeats predictions that were shed or met nobody, beyond what gRPC does within tenths of a second.

    Raises:
        ValueError: A value is out of range.
    """

    attempts: int = 4
    """The most times that a request is sent, the first included; 1: never again."""
    ratio: float = 0.1
    """Repetitions, hedges included, for each call, over time."""
    reserve: float = 10.0
    """Repetitions that may be saved up; the client begins with as many."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"a request is sent at least once, not {self.attempts} times")
        if not (0 <= self.ratio <= 1 and 0 <= self.reserve < float("inf")):
            raise ValueError(f"ratio is between 0 and 1 and reserve not below 0, not {self.ratio} and {self.reserve}")


class Budget:
    """Repetitions that may still be made. Threads may share one: an update that is lost costs a fraction of one."""

    __slots__ = ("_ratio", "_reserve", "left")

    def __init__(self, retry: Retry) -> None:
        self._ratio = retry.ratio
        self._reserve = retry.reserve
        self.left = retry.reserve
        """How many."""

    def call(self) -> None:
        """A call is made."""
        self.left = min(self.left + self._ratio, self._reserve)

    def take(self) -> bool:
        """Whether one more repetition may be made; it is taken then."""
        if self.left < 1:
            return False
        self.left -= 1
        return True


class Pauses:
    """The pauses between tries, longer and longer."""

    __slots__ = ("_chance", "_longest")

    def __init__(self, chance: Chance) -> None:
        self._chance = chance
        self._longest = FIRST_PAUSE

    def next(self, least: float | None = None) -> float:
        """The next one, in seconds; at least what the server asked for."""
        pause = self._longest * (0.5 + self._chance() / 2)
        self._longest = min(2 * self._longest, LONGEST_PAUSE)
        return max(pause, least or 0.0)

    def reset(self) -> None:
        """Something worked: begin with short ones again."""
        self._longest = FIRST_PAUSE


class Patience:
    """How long an outage is borne: to the monotonic instant `until`, and for `outage` seconds at a stretch."""

    __slots__ = ("_clock", "_gone_since", "_outage", "_pauses", "_until")

    def __init__(self, until: float, clock: Clock, chance: Chance, outage: float | None = None) -> None:
        self._until = until
        self._clock = clock
        self._outage = OUTAGE if outage is None else outage
        self._gone_since: float | None = None
        self._pauses = Pauses(chance)

    def after(self, error: ForebayError) -> float:
        """The pause after a call that failed so.

        Raises:
            ForebayError: This error; there is no time for another call.
        """
        now = self._clock()
        if self._gone_since is None:
            self._gone_since = now
        pause = self._pauses.next(error.retry_delay)
        if now + pause >= min(self._until, self._gone_since + self._outage):
            raise error
        return pause

    def rest(self) -> float:
        """The pause after a call that was lost while nobody owed an answer, which is no outage."""
        return self._pauses.next()

    def restore(self) -> None:
        """The server answered."""
        self._gone_since = None
        self._pauses.reset()


def repeatable(error: ForebayError) -> bool:
    """Whether the same request may succeed soon: it was shed by a server that says for how long, or met nobody."""
    return isinstance(error, Unavailable) or (isinstance(error, Overloaded) and error.retry_delay is not None)


def retried(
    method: str,
    request: Message,
    until: float,
    retry: Retry,
    budget: Budget,
    *,
    hedge: float | None = None,
    clock: Clock = time.monotonic,
    chance: Chance = random.random,
) -> Plan[T]:
    """Makes a call that may be made twice, as often as the policy, the budget and the deadline allow.

    Args:
        method: The method.
        request: The request, the same each time.
        until: The deadline of all attempts together, monotonic.
        retry: The policy.
        budget: The client's.
        hedge: Seconds after which an attempt that has no answer gets company; None: never.
        clock: Tells monotonic instants.
        chance: Gives numbers in [0, 1).

    Raises:
        ForebayError: What the last attempt met.
    """
    budget.call()
    pauses: Pauses | None = None
    for left in range(retry.attempts - 1, -1, -1):
        call = Call(method, request, max(until - clock(), 1e-3))  # a pause may have been a little too long
        try:
            if hedge is None:
                found: T = yield call
            else:
                found = yield from hedged(call, hedge, until, budget, clock=clock)
        except ForebayError as error:
            if not left or not repeatable(error):
                raise
            pauses = pauses or Pauses(chance)
            pause = pauses.next(error.retry_delay)
            if clock() + pause >= until or not budget.take():
                raise
        else:
            return found
        yield Pause(pause)
    raise AssertionError("unreachable")


def hedged(call: Call, after: float, until: float, budget: Budget, *, clock: Clock) -> Plan[T]:
    """Makes a call, and a second one like it if there is no answer after so many seconds; the first answer counts.

    An error that the other call may not meet is waited out.
    """
    yield Launch(call)
    running = 1
    wait: float | None = after
    while True:
        outcome = yield Await(wait)
        wait = None
        if outcome is None:
            left = until - clock()
            if left > 0 and budget.take():
                yield Launch(call._replace(timeout=left))
                running += 1
            continue
        running -= 1
        if not isinstance(outcome, ForebayError):
            found: T = outcome
            return found
        if not running or not repeatable(outcome):
            raise outcome
