"""The scheduler's core: who runs with whom, when.

It is pure: every call takes `now`, answers with plain values, and neither sleeps, locks, reads a clock nor calls back.
The runner asks, acts on the answers, and tells what came of it.

Theory
------
Requests to the same model with equal shapes and parameters may share a batch; they wait in a *lane*. Callers compete as
*flows*, a (tenant, priority) each. Between flows a start-time fair queue in units of predicted engine seconds decides,
inside a flow the earliest deadline as far as that is near (`shares`, `queue`). *Jobs* are a level below: they get slots
that online requests leave empty. A request is let in if there is room for it and its deadline can be met (`admission`);
an idle instance takes the best batch there is (`forming`); a batch that went well gives its requests their results
(`completing`), and one that failed is cut up until the culprit is alone (`bisection`).

Life of a request
-----------------
`TRANSITIONS` is all that can happen. A request that is admitted ends in exactly one of the four final states; the first
two are told through `Core.failures` or the completions of `finished`, the cancelled are told to nobody.

A request's bytes count as held until it has ended and no batch has it any more. Its rows count as queued while they
wait, and not from the moment that it is cancelled.

Threads: all calls come from one thread.
"""

import random as random_module
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

from forebay_server.errors import EngineUnavailable, ForebayError
from forebay_server.scheduling import admission, bisection, completing, forming, lanes, waking
from forebay_server.scheduling.completing import Completion
from forebay_server.scheduling.events import BATCH, MOST, Event
from forebay_server.scheduling.figures import ModelFigures, Pace, figures_of, pace_of
from forebay_server.scheduling.latency import CostModel
from forebay_server.scheduling.outcomes import Died, Outcome, Succeeded
from forebay_server.scheduling.policy import Bucket, ModelKey, ModelPolicy, ServerPolicy
from forebay_server.scheduling.queue import Lane
from forebay_server.scheduling.request import Batch, Request, State
from forebay_server.scheduling.slots import Slot, step
from forebay_server.scheduling.state import Books, Model, reckon

TRANSITIONS: Mapping[State, frozenset[State]] = {
    # `admit` refuses it, or queues it.
    State.NEW: frozenset({State.REFUSED, State.WAITING}),
    # A batch takes its last rows; or it is shed, its first part fails, or its model is lost; or `cancel`; or its
    # deadline passes.
    State.WAITING: frozenset({State.RUNNING, State.FAILED, State.CANCELLED, State.EXPIRED}),
    # Its batches are done, or one of them failed through it, or through its engine; or `cancel` while it runs; or its
    # deadline passes before its result is there.
    State.RUNNING: frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
    State.EXPIRED: frozenset(),
    State.REFUSED: frozenset(),
}

_FREE_RECKONING = 16
"""A lane's cap is worked out again after each of its first batches, then after each sixteenth."""


class Core:
    """The scheduler, without clock, threads or engines.

    Args:
        policy: Limits and shares over all models.
        random: Uniform over [0, 1), for the jitter of retry delays.
    """

    def __init__(self, policy: ServerPolicy | None = None, *, random: Callable[[], float] | None = None) -> None:
        self._books = Books(policy or ServerPolicy(), random or random_module.random)
        self._numbers = 0

    # --- Models ---------------------------------------------------------------------------------------------------

    def add_model(
        self,
        key: ModelKey,
        policy: ModelPolicy,
        costs: CostModel,
        now: float,
        *,
        inline: bool = False,
        devices: Sequence[str] = (),
    ) -> range:
        """Serves a model from now on.

        Args:
            key: Name and version; not one that is served already.
            policy: How it is batched.
            costs: As measured by its warm-up. The core reads and corrects it.
            now: Monotonic seconds.
            inline: Its batches run in the caller's thread, so they can't be found stuck.
            devices: What each instance runs on; empty: all on the policy's device.

        Returns:
            The numbers of its instances, unique over all models. The last are those that run jobs alone.
        """
        books = self._books
        if key in books.models:
            raise ValueError(f"model {key} is served already")
        model = books.models[key] = Model(key, policy, costs, now)
        numbers = range(self._numbers, self._numbers + policy.instances + policy.job_instances)
        self._numbers = numbers.stop
        places = devices or [policy.device] * len(numbers)
        slots = [
            Slot(number, model, inline=inline, depth=policy.depth, device=device, for_jobs=place >= policy.instances)
            for place, (number, device) in enumerate(zip(numbers, places, strict=True))
        ]
        model.slots, model.job_slots = slots[: policy.instances], slots[policy.instances :]
        model.usable, model.usable_for_jobs = list(model.slots), list(model.job_slots)
        books.slots.update((slot.number, slot) for slot in slots)
        return numbers

    def remove_model(self, key: ModelKey, now: float) -> None:
        """Serves a model no more: what waits fails; batches that run are still finished."""
        books = self._books
        model = books.models.pop(key)
        model.removed = True
        model.usable = []
        model.usable_for_jobs = []
        bisection.fail_all(books, model, EngineUnavailable("the model is being unloaded"), now)
        for slot in (*model.slots, *model.job_slots):
            if slot.batch is None:
                del books.slots[slot.number]
        for place in list(model.shares):
            books.forget(model, place)

    def lane(self, key: ModelKey, bucket: Bucket, parameters: Mapping[str, Any] | None = None) -> Lane | ForebayError:
        """The lane for requests of a shape; the same object for equal arguments while it is in use."""
        return lanes.find(self._books, key, bucket, parameters)

    def apart(self, lane: Lane) -> Lane:
        """A lane for what must not share a batch with others of `lane`: same model, bucket and parameters.

        It is the same object each time: whoever wants a request alone in its batch admits the next one to it when that
        one has ended. Only jobs belong there, so no online request comes in beside it. It is made in any case: if the
        model has as many lanes as it may, an idle one is dropped.
        """
        return lanes.apart(lane)

    def outage(self, key: ModelKey) -> ForebayError | None:
        """Why a model runs nothing now: it is not served, or no instance of it is usable. None if it does."""
        model = self._books.models.get(key)
        if model is None:
            return lanes.no_model(self._books, key)
        return None if model.usable else admission.no_instance(self._books, model)

    # --- Requests -------------------------------------------------------------------------------------------------

    def admit(self, request: Request, now: float) -> ForebayError | None:
        """Queues a request.

        Returns:
            None, or why it is refused. Others that had to give way for it are in `failures`.
        """
        lane = request.lane
        if lane.dropped and not lane.model.removed:
            found = self.lane(lane.key, lane.bucket, lane.parameters)
            if isinstance(found, ForebayError):
                return admission.refuse(self._books, request, found)
            request.lane = found
        return admission.admit(self._books, request, now)

    def admit_alike(self, requests: Sequence[Request], now: float) -> list[tuple[Request, ForebayError]]:
        """Queues requests that are equal but for their data, with the same outcome as `admit` one after the other.

        Returns:
            Those that are refused, and why.
        """
        refused: list[tuple[Request, ForebayError]] = []
        position, count = 0, len(requests)
        while position < count:
            request = requests[position]
            position += 1
            error = self.admit(request, now)
            if error is not None:
                refused.append((request, error))
            elif position < count and not requests[position].lane.dropped:
                position += admission.admit_alike(self._books, requests[position:], now)
        return refused

    def cancel(self, request: Request, now: float) -> bool:
        """Nobody wants the result any more. Harmless for a request that has ended.

        Returns:
            Whether it was still waiting (so at least a part of it will not run).
        """
        state = request.state
        if state is State.WAITING:
            self._books.withdraw(request, State.CANCELLED)
        elif state is State.RUNNING:
            request.state = State.CANCELLED
        else:
            return False
        self._books.cancelled(request, now)
        return state is State.WAITING

    # --- Batches --------------------------------------------------------------------------------------------------

    def next_batch(self, instance: int, now: float) -> Batch | None:
        """What an instance runs now, or next; None if it is busy, lost, or has nothing to do.

        Those that have expired go to `failures`. An instance of some depth is given its next batch behind the one that
        it has as soon as that is a full one, else shortly before it should be done.
        """
        slot = self._books.slots.get(instance)
        return None if slot is None else forming.next_batch(self._books, slot, now)

    def finished(self, batch: Batch, outcome: Outcome, now: float) -> list[Completion]:
        """A batch that was given out is done. `batch.collated` and `batch.finished` are stamped if it ran.

        Returns:
            The requests that now have their result. Those that failed are in `failures`; what is to run again is given
            out by `next_batch`.
        """
        books = self._books
        slot = books.slots[batch.instance]
        model = slot.model
        lane = batch.lane
        if slot.stuck and slot.batch is batch:
            slot.stuck = False
            books.bring_back(slot)
        if slot.depth == 1:
            slot.batch = None
            slot.stuck_at = inf
            seconds = max(0.0, batch.finished - batch.collated)
        else:
            seconds = max(0.0, step(slot, batch, now))
        if model.removed and slot.batch is None:
            del books.slots[slot.number]
        events = books.events
        if len(events) > MOST:
            del events[: MOST // 2]
        parts = batch.parts
        events.append(
            (BATCH, model.key, batch.rows, len(parts), batch.padded_rows, batch.reason, batch.predicted, seconds)
        )
        lane.batches += 1
        if isinstance(outcome, Succeeded):
            if not slot.for_jobs or not forming.online(books, now):  # Beside others it takes longer than by itself.
                completing.learn(slot, batch, seconds, now)
            if lane.memory_cap:
                bisection.recover(lane)
            if lane.batches < _FREE_RECKONING or lane.batches % _FREE_RECKONING == 0:
                reckon(lane)
            return completing.completions(books, batch, outcome.outputs, now)
        bisection.failed(books, slot, batch, outcome, now)
        if not model.usable:
            bisection.fail_all(books, model, admission.no_instance(books, model), now)
        return []

    def lost(self, instance: int, now: float) -> None:
        """An instance that runs nothing will never run anything again."""
        slot = self._books.slots.get(instance)
        if slot is not None and not slot.dead:
            bisection.died(self._books, slot, None, Died(), now)

    # --- Time -----------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Does what only the passing of time brings: requests expire, batches turn out to be stuck."""
        waking.tick(self._books, now)

    def next_wakeup(self) -> float:
        """When to call `tick` and `next_batch` again even if nothing else happens; infinity: never."""
        return waking.next_wakeup(self._books)

    def online(self, now: float) -> bool:
        """Whether online requests come: two batches of them were formed a short while ago."""
        return forming.online(self._books, now)

    def online_share(self, now: float) -> float:
        """About the part of the dispatcher's core that online requests take."""
        return self._books.online_load.share(now)

    def busy_until(self, now: float) -> float:
        """Until when nothing that comes could run; 0 if it could now."""
        return waking.busy_until(self._books, now)

    def drain(self, now: float) -> None:  # noqa: ARG002  # every call that changes anything takes the time
        """Refuses what comes from now on, and lets nothing wait for company any more."""
        self._books.draining = True

    # --- What is going on -----------------------------------------------------------------------------------------

    @property
    def external_bytes(self) -> int:
        """Bytes that the front end holds; they count against the server's budget."""
        return self._books.external_bytes

    @external_bytes.setter
    def external_bytes(self, nbytes: int) -> None:
        self._books.external_bytes = nbytes

    @property
    def events(self) -> list[Event]:
        """What has happened, oldest first; always the same list, which whoever adds it up clears."""
        return self._books.events

    @property
    def failures(self) -> list[tuple[Request, ForebayError]]:
        """Requests that have ended without a result; whoever tells them sets a new list."""
        return self._books.failures

    @failures.setter
    def failures(self, failures: list[tuple[Request, ForebayError]]) -> None:
        self._books.failures = failures

    @property
    def health(self) -> list[tuple[ModelKey, int, int]]:
        """(model, usable instances, all instances) after each change; whoever tells it sets a new list."""
        return self._books.health

    @health.setter
    def health(self, health: list[tuple[ModelKey, int, int]]) -> None:
        self._books.health = health

    def has_work(self, instance: int) -> bool:
        """Whether `next_batch` would have something for an instance (or for nobody: all of it may have expired)."""
        slot = self._books.slots.get(instance)
        if slot is None or slot.batch is not None or slot.stuck or slot.dead:
            return False
        model = slot.model
        return bool(model.reruns) or (model.rows > 0 and model.start_at == inf)

    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        books = self._books
        if any(model.rows or model.reruns for model in books.models.values()):
            return False
        return all(slot.batch is None or slot.stuck for slot in books.slots.values())

    def patience(self, instance: int) -> float:
        """Seconds that the longest batch of an instance may take, over all its lanes."""
        slot = self._books.slots.get(instance)
        if slot is None:
            return 0.0
        model = slot.model
        limits = [slot.patience(lane, model.policy.padded(lane.backlog_cap)) for lane in model.lanes.values()]
        return max(limits, default=model.policy.max_execution)

    def stuck_instances(self) -> set[int]:
        """The instances whose batch has taken longer than it may."""
        return {number for number, slot in self._books.slots.items() if slot.stuck}

    @property
    def held_bytes(self) -> int:
        """Bytes of requests that wait or run."""
        return self._books.held_bytes

    def tenant_rows(self, tenant: str) -> int:
        """Rows of online requests of a tenant that wait."""
        found = self._books.tenants.get(tenant)
        return 0 if found is None else found.rows

    @property
    def lost_devices(self) -> list[str]:
        """Devices whose death has become known, until whoever tells it sets a new list."""
        return self._books.lost_devices

    @lost_devices.setter
    def lost_devices(self, devices: list[str]) -> None:
        self._books.lost_devices = devices

    def devices(self) -> set[str]:
        """What instances that are not dead run on."""
        return {slot.device for slot in self._books.slots.values() if not slot.dead}

    def models(self) -> list[ModelKey]:
        """The models that are served."""
        return list(self._books.models)

    def pace(self, name: str) -> Pace | None:
        """About how fast a model runs what has no deadline; None if nobody runs it now."""
        return pace_of(self._books, name)

    def figures(self, key: ModelKey) -> ModelFigures:
        """What a model holds now. Raises KeyError if it is not served."""
        return figures_of(self._books, key)
