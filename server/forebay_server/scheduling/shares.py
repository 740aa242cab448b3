"""Who gets how much: start-time fair queueing (Goyal, Vin and Cheng, 1996) in units of engine seconds.

A *flow* is a (tenant, priority, level); its weight is its tenant's times its priority's. In each model that it uses it
has a *share* with a tag, which is a virtual time. A share that becomes busy starts at the model's virtual time V or its
own tag, whichever is later; serving it adds cost / weight to its tag; V is the tag last served. Whoever has the
smallest tag is served next. When nothing waits any more, V moves on to the last tag there is. So nobody can save up
credit while idle, nobody starves, and while two flows are both busy their service per weight differs by no more than
about one batch.

Models that share a device (`ModelPolicy.device`) share its time: a flow that is also served by other models of the
device is charged for that here, when it is served here, up to `FOREIGN` times what it takes here. Without the bound the
tags of models that run side by side would drift apart without end, and a flow that is busy on one model could starve on
another. With it a flow keeps at least a quarter of its weight everywhere.
"""

from forebay_server.scheduling.policy import TenantPolicy
from forebay_server.scheduling.request import PRIORITY_WEIGHTS, Level

FOREIGN = 3.0
DEBT_MOST = 1.0
"""Engine seconds received elsewhere that are remembered at most."""

STRIKES = 3
"""A tenant with more than so many culprits within STRIKE_WINDOW is kept apart."""
STRIKE_WINDOW = 60.0
APART = 60.0
"""Seconds for which a tenant's requests share no batch with those of others."""


class Tenant:
    """Rows and sins of one tenant, all models together."""

    __slots__ = ("apart_until", "flows", "max_rows", "name", "rows", "strikes", "weight")

    def __init__(self, name: str, policy: TenantPolicy) -> None:
        self.name = name
        self.weight = policy.weight
        self.max_rows = policy.max_queued_rows
        self.rows = 0
        self.apart_until = 0.0
        self.strikes: list[float] = []
        """When its latest culprits were found."""
        self.flows = 0

    def strike(self, now: float) -> None:
        """A request of it made a batch fail."""
        self.strikes = [at for at in self.strikes[-STRIKES:] if at > now - STRIKE_WINDOW]
        self.strikes.append(now)
        if len(self.strikes) > STRIKES:
            self.apart_until = now + APART


class Flow:
    """What a (tenant, priority, level) has received on one device."""

    __slots__ = ("key", "level", "place", "shares", "spent", "tenant", "weight")

    def __init__(self, key: tuple[str, str, int, int], tenant: Tenant, priority: int, level: int) -> None:
        self.key = key
        """Device, tenant, priority, level."""
        self.place = (tenant.name, priority)
        """Its key in the tiers of its level."""
        self.tenant = tenant
        self.level = level
        self.weight = tenant.weight * PRIORITY_WEIGHTS.get(priority, 2.0)
        self.spent = 0.0
        """Engine seconds, all models of the device together."""
        self.shares = 0
        """Models in which it has a share."""
        tenant.flows += 1


class Share:
    """A flow within one model: its tag and what it has waiting."""

    __slots__ = ("cost", "flow", "level", "own", "paid", "rows", "tag", "tenant", "weight")

    def __init__(self, flow: Flow, tag: float) -> None:
        self.flow = flow
        self.tenant = flow.tenant
        self.level: int = flow.level
        self.weight = flow.weight
        self.tag = tag
        self.rows = 0
        """Rows that wait."""
        self.cost = 0.0
        """Engine seconds that they stand for."""
        self.own = 0.0
        """Engine seconds received in this model."""
        self.paid = flow.spent
        """Engine seconds received in other models that are settled."""
        flow.shares += 1

    def wake(self, virtual: float) -> None:
        """It has something waiting again."""
        self.tag = max(self.tag, virtual)
        self.paid = self.flow.spent - self.own

    def charge(self, cost: float) -> None:
        """It has been served engine seconds worth `cost` here, which its tag already counts."""
        flow = self.flow
        flow.spent += cost
        self.own += cost
        if flow.shares > 1:
            foreign = flow.spent - self.own - self.paid
            if foreign > 0.0:
                paid = min(foreign, FOREIGN * cost)
                self.tag += paid / self.weight
                self.paid += max(paid, foreign - DEBT_MOST)

    def over(self, rows: int = 0) -> tuple[int, float]:
        """How far it is over its share of the queue, with so many rows more. Jobs are over all others."""
        return (1 if self.level is Level.JOB else 0, (self.rows + rows) / self.weight)
