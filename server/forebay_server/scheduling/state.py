"""The scheduler's books: what the core's modules read and write, and the few moves that several of them make.

`Books` is everything there is; `Model` and `Slot` are its parts. No decisions here: `admission` lets in, `forming` puts
batches together, `completing` and `bisection` deal with their outcomes, `waking` with time, and `core` is the door to
all of it.
"""

from collections import deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf
from typing import TYPE_CHECKING, Any

from forebay_server.errors import DeadlineExpired, ForebayError
from forebay_server.scheduling.events import CANCELLED, DONE, Event
from forebay_server.scheduling.latency import CostModel
from forebay_server.scheduling.load import Load
from forebay_server.scheduling.policy import ModelKey, ModelPolicy, ServerPolicy, TenantPolicy
from forebay_server.scheduling.queue import Lane, Queue, Split, Tier, next_serial
from forebay_server.scheduling.request import Part, Request, State
from forebay_server.scheduling.shares import Flow, Share, Tenant
from forebay_server.scheduling.slots import Slot

if TYPE_CHECKING:
    from forebay_server.scheduling.bisection import Rerun

TRUST = 1.0
"""Seconds for which predictions are believed after a batch of the model has confirmed them."""
DOUBT = 0.25
"""After that they are multiplied by this where they would turn a request away: one that is perhaps served is let
through and brings a new measurement, so a wrong cost can't shut a model for good."""
NOISE = 1.25
"""Batches take up to about this much longer than the mean that is predicted."""
UNKNOWN_ROW_COST = 1e-3
"""Seconds per row of a bucket without costs."""
_SWEEP_AT = 256

JOBS_WITHIN = 0.9
"""Of the most jobs per second: what is left of it while online requests come, because each waits for the batch of jobs
that runs."""
JOB_LENGTH = 2.25
"""So many times as long as a batch of one row may one of jobs take meanwhile, handling included: a little more than two
rows do that gain nothing by their company. So who comes waits about as long as for two others."""
JOB_HANDLING = 5e-6
"""Seconds that the dispatcher spends on a job besides its batch (about, by a profile); it answers nobody meanwhile."""
JOB_BATCH_HANDLING = 1e-4
"""Seconds that it spends on a batch of jobs, however many they are (by its time per job in batches of 27 and 105)."""

_HANDLING_STEP = 0.05
"""The part of the difference by which a batch corrects it."""
_HANDLING_MOST = 2e-3
"""Seconds; what takes longer was a stall of the machine."""


class Model:
    """One version of a model that is served."""

    __slots__ = (
        "busy",
        "busy_weight",
        "confirmed",
        "cost",
        "costs",
        "fattest",
        "handling",
        "held_bytes",
        "job_slots",
        "key",
        "lanes",
        "margin",
        "policy",
        "removed",
        "reruns",
        "rows",
        "shares",
        "sheds",
        "slots",
        "start_at",
        "sweep_at",
        "usable",
        "usable_for_jobs",
        "virtual",
    )

    def __init__(self, key: ModelKey, policy: ModelPolicy, costs: CostModel, now: float) -> None:
        self.key = key
        self.policy = policy
        self.costs = costs
        self.lanes: dict[Any, Lane] = {}
        self.slots: list[Slot] = []
        """All instances but those that run jobs alone."""
        self.usable: list[Slot] = []
        """Those of them that are neither dead nor stuck."""
        self.job_slots: list[Slot] = []
        """The instances that run jobs alone."""
        self.usable_for_jobs: list[Slot] = []
        """Likewise."""
        self.shares: dict[tuple[str, int, int], Share] = {}
        """By tenant, priority and level."""
        self.sweep_at = _SWEEP_AT
        self.virtual = [0.0, 0.0]
        """V, by level."""
        self.busy_weight = 0.0
        """Weights of the online shares that have something waiting."""
        self.busy: tuple[dict[Lane, None], dict[Lane, None]] = ({}, {})
        """Lanes that have something waiting, by level; some no longer have."""
        self.rows = 0
        """Rows that wait."""
        self.cost = 0.0
        """Engine seconds that they stand for."""
        self.handling = 0.0
        """Seconds that a batch takes on its way to a worker and back, besides the engine's."""
        self.held_bytes = 0
        self.margin = 1.0
        """How much longer requests wait than was predicted."""
        self.confirmed = now
        """When a batch last told whether the costs are right."""
        self.start_at = inf
        """When a batch that is being delayed starts at the latest."""
        self.reruns: deque[Rerun] = deque()
        self.fattest: Share | None = None
        """Perhaps the share that is most over its part of the queue."""
        self.sheds = 0
        """How often that was used since it was last looked for among all."""
        self.removed = False

    def peers(self, slot: Slot) -> list[Slot]:
        """The usable instances of a slot's kind."""
        return self.usable_for_jobs if slot.for_jobs else self.usable

    def learn_handling(self, seconds: float) -> None:
        """A batch took so long besides the engine's time."""
        self.handling += _HANDLING_STEP * (min(max(seconds, 0.0), _HANDLING_MOST) - self.handling)


class Books:
    """All that the scheduler knows."""

    __slots__ = (
        "alarms",
        "alarms_most",
        "dead_devices",
        "draining",
        "events",
        "external_bytes",
        "failures",
        "flows",
        "health",
        "held_bytes",
        "lost_devices",
        "models",
        "online_at",
        "online_before",
        "online_load",
        "policy",
        "random",
        "slots",
        "tenants",
    )

    def __init__(self, policy: ServerPolicy, random: Callable[[], float]) -> None:
        self.policy = policy
        self.random = random
        """Uniform over [0, 1), for the jitter of retry delays."""
        self.models: dict[ModelKey, Model] = {}
        self.slots: dict[int, Slot] = {}
        self.tenants: dict[str, Tenant] = {}
        self.flows: dict[tuple[str, str, int, int], Flow] = {}
        self.held_bytes = 0
        self.external_bytes = 0
        self.draining = False
        self.online_at = self.online_before = -inf
        """When the last batch of online requests was formed, and the one before it."""
        self.online_load = Load()
        """What they take of the dispatcher's core."""
        self.alarms: list[tuple[float, int, Queue]] = []
        """When to look for expired requests in which queue; see `arm`."""
        self.alarms_most = _SWEEP_AT
        self.failures: list[tuple[Request, ForebayError]] = []
        """Requests that have ended without a result, for the runner to tell."""
        self.health: list[tuple[ModelKey, int, int]] = []
        """(model, usable instances, all instances) after each change, for the runner to tell."""
        self.events: list[Event] = []
        self.dead_devices: set[str] = set()
        """Nothing will ever run there again in this process."""
        self.lost_devices: list[str] = []
        """Those of them that the runner has not told yet."""

    def arm(self, queue: Queue, at: float) -> None:
        """Makes sure that `queue` is looked at when an instant comes.

        One alarm per queue, for what is due first. When that is served the alarm stays: it rings too early, finds
        nothing, and is set again. So a request costs one comparison here, not a place in a heap of all deadlines.
        """
        queue.alarm = at
        heappush(self.alarms, (at, next_serial(), queue))
        if len(self.alarms) > self.alarms_most:
            self.alarms = [entry for entry in self.alarms if entry[2].alarm == entry[0]]
            heapify(self.alarms)
            self.alarms_most = 2 * len(self.alarms) + _SWEEP_AT

    def ring(self, now: float) -> None:
        """Expires what has to, in the queue whose alarm is the first."""
        at, _, queue = heappop(self.alarms)
        if queue.alarm != at:
            return  # An earlier alarm has taken its place.
        queue.alarm = inf
        for request in queue.expired(now):
            self.expire(request, now)
        again = queue.next_alarm()
        if again < inf:
            self.arm(queue, again)

    def share(self, model: Model, tenant_name: str, priority: int, level: int) -> Share:
        """The share of a flow in a model, made at its first request."""
        key = (tenant_name, priority, level)
        share = model.shares.get(key)
        if share is not None:
            return share
        self._sweep(model)
        tenant = self.tenants.get(tenant_name)
        if tenant is None:
            tenant = self.tenants[tenant_name] = Tenant(
                tenant_name, self.policy.tenants.get(tenant_name) or TenantPolicy()
            )
        flow_key = (model.policy.device, *key)
        flow = self.flows.get(flow_key)
        if flow is None:
            flow = self.flows[flow_key] = Flow(flow_key, tenant, priority, level)
        share = model.shares[key] = Share(flow, model.virtual[level])
        return share

    def _sweep(self, model: Model) -> None:
        """Forgets the shares that a new one would be equal to, once there are many."""
        if len(model.shares) < model.sweep_at:
            return
        for lane in model.lanes.values():
            for tier in lane.tiers:
                tier.queues = {key: queue for key, queue in tier.queues.items() if queue.active}
        in_use = {queue.share for lane in model.lanes.values() for tier in lane.tiers for queue in tier.queues.values()}
        for key, share in list(model.shares.items()):
            if share not in in_use and share.tag <= model.virtual[share.level]:
                self.forget(model, key)
        model.sweep_at = 2 * len(model.shares) + _SWEEP_AT

    def forget(self, model: Model, key: tuple[str, int, int]) -> None:
        """Drops a share, and its flow and tenant if nothing else uses them."""
        share = model.shares.pop(key)
        if model.fattest is share:
            model.fattest = None
        flow = share.flow
        flow.shares -= 1
        if flow.shares == 0:
            self.flows.pop(flow.key, None)
            tenant = flow.tenant
            tenant.flows -= 1
            if tenant.flows == 0 and not tenant.strikes:
                self.tenants.pop(tenant.name, None)

    def withdraw(self, request: Request, state: State) -> None:
        """Takes a WAITING request out of its queue, by a mark, and out of all counts."""
        queue = request.queue
        split: Split | None = request.scheduled
        rows = request.rows if split is None else request.rows - split.taken
        request.state = state
        queue.mark()
        leave(queue, rows, request.cost)
        if split is None or split.outstanding == 0:
            self.release(request)

    def release(self, request: Request) -> None:
        """A request no longer holds its bytes."""
        self.held_bytes -= request.nbytes
        request.lane.model.held_bytes -= request.nbytes

    def fail(self, request: Request, error: ForebayError, state: State, now: float) -> None:
        """Ends a WAITING or RUNNING request without a result. Parts in batches give their bytes back later."""
        if request.state is State.WAITING:
            self.withdraw(request, state)
        else:
            request.state = state
        self.failures.append((request, error))
        waited = now - request.arrival
        self.events.append((DONE, request.lane.key, request.method, error.reason, waited, waited))

    def expire(self, request: Request, now: float) -> None:
        """Ends a request whose deadline has passed, or will have before it could be done."""
        self.fail(request, DeadlineExpired("the deadline passed before the request could run"), State.EXPIRED, now)

    def cancelled(self, request: Request, now: float) -> None:
        """Leaves a trace of a cancellation. One after the deadline is the front end's word that this has passed."""
        waited = now - request.arrival
        outcome = CANCELLED if now < request.deadline else DeadlineExpired.reason
        self.events.append((DONE, request.lane.key, request.method, outcome, waited, waited))

    def retire(self, slot: Slot) -> None:
        """An instance is not usable now, or never again."""
        peers = slot.model.peers(slot)
        if slot in peers:
            peers.remove(slot)
        self._tell_health(slot)

    def bring_back(self, slot: Slot) -> None:
        """An instance is usable again."""
        if not slot.model.removed and not slot.dead:
            slot.model.peers(slot).append(slot)
            self._tell_health(slot)

    def _tell_health(self, slot: Slot) -> None:
        model = slot.model
        if not model.removed and not slot.for_jobs:  # Without those for jobs, the others run them.
            self.health.append((model.key, len(model.usable), len(model.slots)))

    def give_back(self, part: Part) -> None:
        """A part has left its batch for good; with the last of a request that has ended go its bytes."""
        request = part.request
        split: Split | None = request.scheduled
        if split is not None:
            split.outstanding -= 1
            if split.outstanding or request.state in (State.WAITING, State.RUNNING):
                return
        self.release(request)


def leave(queue: Queue, rows: int, cost: float) -> None:
    """Takes rows that no longer wait out of the counts."""
    share = queue.share
    tier: Tier = queue.tier
    model = queue.lane.model
    queue.rows -= rows
    tier.rows -= rows
    share.rows -= rows
    model.rows -= rows
    if share.level == 0:
        share.tenant.rows -= rows
    if share.rows == 0:
        share.cost = 0.0
        if share.level == 0:
            model.busy_weight -= share.weight
    else:
        share.cost -= cost
    if model.rows == 0:
        model.cost = model.busy_weight = 0.0
    else:
        model.cost -= cost


def reckon(lane: Lane) -> None:
    """Works out a lane's cap and costs from the policy, the cost model and what failures taught."""
    model = lane.model
    policy, costs, bucket = model.policy, model.costs, lane.bucket
    most = policy.limit(policy.max_batch_size)
    best = policy.best_batch_size or costs.best_size(bucket, most, per_batch=model.handling)
    handling = JOB_BATCH_HANDLING + model.handling
    backlog = policy.best_batch_size or costs.best_size(bucket, most, per_row=JOB_HANDLING, per_batch=handling)
    if lane.memory_cap:
        most = min(most, lane.memory_cap)
    best, backlog = min(best, most), min(max(best, backlog), most)
    lane.cap = cap = policy.limit(best)
    lane.backlog_cap = policy.limit(backlog)
    lane.trial_cap, lane.backlog_trial_cap = lane.cap, lane.backlog_cap
    if not policy.best_batch_size:
        lane.trial_cap = policy.limit(costs.trial_size(bucket, lane.cap, most))
        lane.backlog_trial_cap = policy.limit(costs.trial_size(bucket, lane.backlog_cap, most))
    seconds = costs.predict(bucket, policy.padded(cap))
    if seconds is None:
        lane.cap_seconds = lane.one_seconds = 0.0
        lane.row_cost = UNKNOWN_ROW_COST
    else:
        lane.cap_seconds = seconds
        lane.one_seconds = costs.predict(bucket, policy.padded(1)) or 0.0
        lane.row_cost = max(seconds / cap, 1e-9)
    job_cap = costs.best_size(bucket, cap, within=JOBS_WITHIN, per_row=JOB_HANDLING)
    longest = JOB_LENGTH * (lane.one_seconds + handling) - handling
    lane.job_cap = policy.limit(largest_within(lane, 1, job_cap, longest))


def seconds_of(lane: Lane, rows: int) -> float:
    """Predicted seconds of a batch of so many rows; 0 if unknown."""
    if rows == 1:
        return lane.one_seconds
    if rows == lane.cap:
        return lane.cap_seconds
    model = lane.model
    return model.costs.predict(lane.bucket, model.policy.padded(rows)) or 0.0


def largest_within(lane: Lane, least: int, most: int, seconds: float) -> int:
    """The largest batch between two sizes that is predicted to take no more than so long; `least` if none does."""
    while least < most:  # The costs are monotone.
        middle = (least + most + 1) // 2
        if seconds_of(lane, middle) <= seconds:
            least = middle
        else:
            most = middle - 1
    return least
