"""The thin shell of the core: threads, clock, and who is told what. It decides nothing.

The dispatcher calls `turn` after each `take`. A turn collects the batches that workers have done, gives idle workers
new ones, runs at most one batch on each inline instance (so that arrivals are taken between batches), and tells
requests what came of them.

Threads: everything is called by the dispatcher; only `wake` is used from workers.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import structlog

from forebay_server.engines.base import Instance, OverlappingInstance
from forebay_server.errors import ForebayError, Internal
from forebay_server.scheduling.core import Core
from forebay_server.scheduling.execution import Clock, Collator, Log, execute
from forebay_server.scheduling.latency import CostModel
from forebay_server.scheduling.outcomes import Died, Outcome, Succeeded
from forebay_server.scheduling.policy import ModelKey, ModelPolicy
from forebay_server.scheduling.request import Batch, Request
from forebay_server.scheduling.worker import OverlappingWorker, Returned, Worker

LONGEST_WAIT = 1.0
"""Seconds for which `take` may wait at most, though nothing is to be done."""

Listener = Callable[[ModelKey, int, int], None]
"""Told (model, usable instances, all instances) when the number of usable ones changes."""

Watcher = Callable[[Batch, str], None]
"""Told of each batch that has run, before its requests are; with the kind of its failure, or an empty text."""


class _Station:
    """An instance with all that runs it."""

    __slots__ = ("collator", "instance", "key", "number", "overlaps", "worker")

    def __init__(
        self, number: int, key: ModelKey, instance: Instance, collator: Collator, worker: Worker | None
    ) -> None:
        self.number = number
        self.key = key
        self.instance = instance
        self.collator = collator
        self.worker = worker
        """None: it runs inline."""
        self.overlaps = isinstance(worker, OverlappingWorker)
        """Whether it may have several batches."""


class Runner:
    """Carries out what the core decides.

    Args:
        core: The core; nobody else may call what changes it.
        wake: Ends the dispatcher's present or next `take` early; called by workers.
        clock: Monotonic seconds.
        log: For faults.
        watcher: Told of batches, if anybody wants to know. It must not raise.
    """

    def __init__(
        self,
        core: Core,
        *,
        wake: Callable[[], None],
        clock: Clock = time.monotonic,
        log: Log | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        self.core = core
        self._watcher = watcher
        self._wake = wake
        self._clock = clock
        self._log: Log = log or structlog.get_logger("forebay.scheduling")
        self._stations: dict[int, _Station] = {}
        self._inline: list[_Station] = []
        self._workers: list[_Station] = []
        self._returned: Returned = deque()
        self._usable: dict[ModelKey, tuple[int, int]] = {}
        self._listeners: list[Listener] = []
        self._device_listeners: list[Callable[[str], None]] = []
        self._closing: dict[ModelKey, tuple[set[int], Callable[[], None]]] = {}

    # --- Models ---------------------------------------------------------------------------------------------------

    def listen(self, listener: Listener) -> None:
        """Has `listener` told, by the dispatcher, when instances get stuck, die, or come back."""
        self._listeners.append(listener)

    def listen_for_devices(self, listener: Callable[[str], None]) -> None:
        """Has `listener` told, by the dispatcher, when a device is lost, with its name, after its instances are."""
        self._device_listeners.append(listener)

    def add(
        self,
        key: ModelKey,
        policy: ModelPolicy,
        costs: CostModel,
        instances: Sequence[Instance],
        collator: Collator,
        inline: bool,  # noqa: FBT001  # one caller, which passes all by name
        now: float,
        for_jobs: Sequence[Instance] = (),
    ) -> range:
        """Serves a model. Its instances belong to the runner from now on, which closes them.

        Args:
            key: Name and version; not one that is served already.
            policy: How it is batched.
            costs: As measured by its warm-up.
            instances: What runs its batches.
            collator: What puts them together.
            inline: They run in the dispatcher's thread.
            now: Monotonic seconds.
            for_jobs: What runs batches of jobs alone, beside the others (`Engine.gives_way`); none of a model whose
                batches run inline, or overlap.

        Returns:
            The numbers of its instances, unique over all models.
        """
        depth = 1 if inline else min(getattr(instance, "depth", 1) for instance in instances)
        policy = replace(policy, instances=len(instances), job_instances=len(for_jobs), depth=depth)
        everyone = (*instances, *for_jobs)
        devices = [getattr(instance, "device", policy.device) for instance in everyone]
        numbers = self.core.add_model(key, policy, costs, now, inline=inline, devices=devices)
        for place, (number, instance) in enumerate(zip(numbers, everyone, strict=True)):
            alone = place >= len(instances)
            worker = None if inline else self._worker(number, instance, collator, depth, for_jobs=alone)
            if worker is not None:
                worker.start()
            station = self._stations[number] = _Station(number, key, instance, collator, worker)
            (self._inline if inline else self._workers).append(station)
        self._usable[key] = (len(instances), len(instances))
        return numbers

    def _worker(self, number: int, instance: Instance, collator: Collator, depth: int, *, for_jobs: bool) -> Worker:
        around: dict[str, Any] = {
            "returned": self._returned,
            "wake": self._wake,
            "clock": self._clock,
            "log": self._log,
        }
        if depth == 1:
            return Worker(number, instance, collator, for_jobs=for_jobs, **around)
        return OverlappingWorker(number, cast("OverlappingInstance", instance), collator, **around)

    def remove(self, key: ModelKey, now: float, closed: Callable[[], None] | None = None) -> None:
        """Serves a model no more: what waits fails, what runs is finished.

        Args:
            key: The model. KeyError if it is not served.
            now: Monotonic seconds.
            closed: Called by the dispatcher once all its instances are closed (the engine may be closed then).
        """
        self.core.remove_model(key, now)
        self._usable.pop(key, None)
        stations = [station for station in self._stations.values() if station.key == key]
        working = {station.number for station in stations if station.worker is not None}
        for station in stations:
            if station.worker is not None:
                station.worker.stop()
            else:
                self._close_inline(station)
        self._inline = [station for station in self._inline if station.key != key]
        self._tell()
        if working and closed is not None:
            self._closing[key] = (working, closed)
        elif closed is not None:
            closed()

    # --- Requests -------------------------------------------------------------------------------------------------

    def admit(self, request: Request, now: float) -> ForebayError | None:
        """Queues a request, or says why not. Another one may fail at once because it had to give way."""
        error = self.core.admit(request, now)
        if self.core.failures:
            self._tell()
        return error

    def admit_alike(self, requests: Sequence[Request], now: float) -> list[tuple[Request, ForebayError]]:
        """Queues requests that differ in their data only, as `admit` would one after the other; those refused."""
        refused = self.core.admit_alike(requests, now)
        if self.core.failures:
            self._tell()
        return refused

    def cancel(self, request: Request, now: float) -> bool:
        """Nobody wants the result any more; whether the request was still waiting. Harmless at any time."""
        return self.core.cancel(request, now)

    # --- The dispatcher's turn ------------------------------------------------------------------------------------

    def turn(self, now: float) -> float:
        """Does all that can be done now.

        Returns:
            Seconds for which `take` may wait: 0 if more is to be done at once.
        """
        core, clock = self.core, self._clock
        while self._returned:
            self._collect(*self._returned.popleft(), now)
        core.tick(now)
        self._hand_out(now)
        more = False
        for station in self._inline:
            batch = core.next_batch(station.number, now)
            if batch is None:
                continue
            try:
                outcome = execute(batch, station.instance, station.collator, clock, self._log)
            except BaseException:  # noqa: BLE001  # SystemExit and its like: it ends the instance, as it ends a worker
                self._log.exception("instance has ended", model=station.key, instance=station.number)
                outcome = Died()
            now = clock()
            self._finish(station, batch, outcome, now)
            if core.has_work(station.number):
                more = True
        self._tell()
        if self._workers:
            self._hand_out(now)  # To what the callers' callbacks have admitted.
        if more:
            return 0.0
        return min(max(core.next_wakeup() - clock(), 0.0), LONGEST_WAIT)

    def _hand_out(self, now: float) -> None:
        for station in self._workers:
            batch = self.core.next_batch(station.number, now)
            while batch is not None and station.worker is not None:
                station.worker.hand(batch)
                batch = self.core.next_batch(station.number, now) if station.overlaps else None

    def _collect(self, number: int, batch: Batch | None, outcome: Outcome, now: float) -> None:
        """Takes back what a worker has left."""
        station = self._stations[number]
        if batch is not None:
            self._finish(station, batch, outcome, max(now, batch.finished))
            return
        for never_run in station.worker.left() if station.worker is not None else ():
            never_run.collated = never_run.finished = now
            self._finish(station, never_run, Died(), now)
        del self._stations[number]
        self._workers.remove(station)
        self.core.lost(number, now)  # Harmless if its model was removed.
        closing = self._closing.get(station.key)
        if closing is not None:
            working, closed = closing
            working.discard(number)
            if not working:
                del self._closing[station.key]
                closed()

    def _finish(self, station: _Station, batch: Batch, outcome: Outcome, now: float) -> None:
        """Tells the core, and the requests that have their result."""
        batch.completed = now
        done = self.core.finished(batch, outcome, now)
        if self._watcher is not None:
            self._watcher(batch, "" if isinstance(outcome, Succeeded) else type(outcome).__name__.lower())
        outputs = getattr(outcome, "outputs", None)
        if len(done) > 1 and done[0][0].together:
            done = done[0][0].succeed_all(done, outputs)
        for request, start, pieces in done:
            try:
                if pieces is None:
                    request.succeed(outputs, start, batch)
                else:
                    joined = station.collator.join([(piece, row, rows) for _, piece, row, rows in pieces])
                    request.succeed(joined, 0, batch)
            except Exception:  # noqa: BLE001  # one caller's fault must not cost the others their results
                self._callback_failed(request)

    def _callback_failed(self, request: Request) -> None:
        error = Internal()
        self._log.exception("result could not be handed over", model=request.lane.key, error_id=error.error_id)
        try:
            request.fail(error)
        except Exception:  # noqa: BLE001  # see above
            self._log.exception("failure could not be handed over", model=request.lane.key)

    def _tell(self) -> None:
        """Tells requests that have failed, and listeners whose instances changed."""
        core = self.core
        while core.failures:
            failures, core.failures = core.failures, []
            for request, error in failures:
                try:
                    request.fail(error)
                except Exception:  # noqa: BLE001  # see above
                    self._log.exception("failure could not be handed over", model=request.lane.key)
        while core.health:
            changes, core.health = core.health, []
            for key, usable, total in changes:
                self._usable[key] = (usable, total)
                self._log.warning("instances changed", model=key, usable=usable, instances=total)
                for listener in self._listeners:
                    listener(key, usable, total)
        while core.lost_devices:
            devices, core.lost_devices = core.lost_devices, []
            for device in devices:
                self._log.error("device lost", device=device)
                for tell in self._device_listeners:
                    tell(device)

    # --- What is going on -----------------------------------------------------------------------------------------

    def busy_until(self, now: float) -> float:
        """Until when nothing that comes could run; 0 if it could now. See `Core.busy_until`."""
        return self.core.busy_until(now)

    def longest_batch(self) -> float:
        """Seconds that a turn may spend in inline batches before something is wrong; 0 without inline instances.

        For the watchdog's budget. It changes as costs are learned, so ask now and then.
        """
        return sum(self.core.patience(station.number) for station in self._inline)

    def stuck(self) -> list[ModelKey]:
        """Models with instances that are stuck or dead."""
        return [key for key, (usable, total) in self._usable.items() if usable < total]

    def idle(self) -> bool:
        """Whether nothing waits, runs, or is to be collected."""
        return not self._returned and self.core.idle()

    def drain(self, now: float) -> None:
        """Refuses what comes from now on; what waits runs without delay."""
        self.core.drain(now)

    def close(self, timeout: float = 5.0) -> bool:
        """Ends all workers and closes all instances; what still waits fails.

        Args:
            timeout: Seconds to wait for batches that run; those known to be stuck are not waited for.

        Returns:
            False if a worker did not end (it is a daemon thread: the process can).
        """
        now = self._clock()
        stuck = self.core.stuck_instances()
        for key in self.core.models():
            self.remove(key, now)
        until = now + timeout
        ended = True
        for station in list(self._stations.values()):
            if station.worker is not None:
                patience = 0.0 if station.number in stuck else max(0.0, until - self._clock())
                ended = station.worker.join(patience) and ended
        while self._returned:
            self._collect(*self._returned.popleft(), self._clock())
        self._tell()
        return ended

    def _close_inline(self, station: _Station) -> None:
        del self._stations[station.number]
        try:
            station.instance.close()
        except Exception:  # noqa: BLE001  # the engine is foreign code
            self._log.exception("instance did not close", model=station.key)
