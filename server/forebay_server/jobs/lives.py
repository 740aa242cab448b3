"""The names under which this server claims jobs, and their lives in the store.

An *owner* is a name that is never used again. Its life is renewed each third of `claim_s`; if it ends nevertheless (the
store was away, or this process stood still), others may have taken over its jobs: they are dropped here, and a new
owner takes its place. So it does when it is not known what is held under its name: a claim may have happened or not,
or the store was away, and an end that it had confirmed may be gone with a disk that failed. Jobs may then be held that
nobody runs. Such an owner is *retired*: it claims no more, lives until what it holds has ended, and then its life is
ended, so that the lost ones are taken over at once.

Used by the dispatcher alone.
"""

import secrets
from collections.abc import Callable
from functools import partial
from typing import Final

from forebay_server.jobs.failpoints import reach
from forebay_server.jobs.keeper import Keeper
from forebay_server.jobs.store import Outcome, Renew

RENEWALS: Final = 3
"""In the time for which a life lasts."""


class Owner:
    """A name, and what is held under it."""

    __slots__ = ("alive", "busy", "due", "ended", "held", "name", "retired")

    def __init__(self) -> None:
        self.name = secrets.token_hex(16)
        self.held = 0
        """Jobs, and claims whose outcome is not there."""
        self.alive = False
        """Its life has begun: it may claim."""
        self.ended = False
        """Its life is over: what it held is lost."""
        self.retired = False
        self.due = 0.0
        """When its life is to be renewed."""
        self.busy = False
        """A renewal is on its way."""


class Lives:
    """Keeps the owners of this process alive.

    Args:
        keeper: The way to the store.
        seconds: For how long a life lasts that is not renewed.
        lost: Told of an owner whose life has ended.
        begun: Told when the present owner may claim.
        clock: Monotonic seconds.

    Attributes:
        current: The owner to claim under.
        due: When `tick` wants to be called.
    """

    def __init__(
        self,
        keeper: Keeper,
        *,
        seconds: float,
        lost: Callable[[Owner], None],
        begun: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._keeper = keeper
        self._seconds = seconds
        self._lost = lost
        self._begun = begun
        self._clock = clock
        self._closing = False
        self.current = Owner()
        self._retired: list[Owner] = []
        self.due = 0.0

    def tick(self, now: float) -> None:
        """Renews what has to be renewed, and ends what nobody needs."""
        for owner in [owner for owner in self._retired if owner.held == 0 or owner.ended]:
            self._retired.remove(owner)
            if not owner.ended:
                self._keeper.do(Renew(owner.name, 0.0))
        owners = [self.current, *self._retired]
        for owner in owners:
            if not owner.busy and owner.due <= now:
                owner.busy = True
                owner.due = now + self._seconds / RENEWALS
                self._keeper.do(Renew(owner.name, self._seconds), partial(self._told, owner))
        self.due = min(owner.due for owner in owners)

    def retire(self, owner: Owner) -> None:
        """It is not known what it holds."""
        if owner is self.current and not owner.ended:
            owner.retired = True
            self._retired.append(owner)
            self._replace()

    def let_go(self, owner: Owner, many: int = 1) -> None:
        """It holds so many less."""
        owner.held -= many
        if owner.retired and owner.held == 0:
            self.due = 0.0

    def close(self) -> None:
        """Ends all lives, so that nobody has to wait for that."""
        if not self._closing:
            self._closing = True
            for owner in [self.current, *self._retired]:
                if owner.alive:
                    self._keeper.do(Renew(owner.name, 0.0))

    def _told(self, owner: Owner, outcome: Outcome) -> None:
        owner.busy = False
        if outcome is True:
            reach("renew.committed")
            if not owner.alive:
                owner.alive = True
                self._begun()
        elif outcome is False and not self._closing and not owner.ended:
            owner.ended = True
            owner.alive = False
            if owner is self.current:
                self._replace()
            self._lost(owner)
            self.due = 0.0

    def _replace(self) -> None:
        self.current = Owner()
        self.due = 0.0
