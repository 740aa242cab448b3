"""The threads of one instance: they take a batch at a time, run it, and hand it back. They alone touch the instance.

The dispatcher hands over through a queue that holds at most as many batches as the instance may have; what is done goes
into a deque that it empties after `wake`. Nothing is shared beyond that, so there is no lock here.

A `Worker` is one thread. An instance of some depth has an `OverlappingWorker`, two of them: one puts batches together
and issues them, the other waits for them in the same order. Whatever happens to a batch, it comes back, and after all
those before it. A worker that can't go on says so: what it had comes back as `Died`, its end without a batch.
"""

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from forebay_server.background import can_wait
from forebay_server.engines.base import Instance, OverlappingInstance
from forebay_server.scheduling.execution import Clock, Collator, Log, Ticket, collect, execute, issue
from forebay_server.scheduling.outcomes import Died, Outcome
from forebay_server.scheduling.request import Batch

Returned = deque[tuple[int, Batch | None, Outcome]]
"""(instance, batch, outcome). Without a batch: the worker has ended, and closed its instance."""


class Worker:
    """Runs an instance's batches in a thread.

    Args:
        number: The instance's.
        instance: The worker closes it.
        collator: The model's.
        returned: Where to put what is done.
        wake: Tells the dispatcher that there is something.
        clock: Monotonic seconds.
        log: For faults.
        for_jobs: It runs jobs alone, and gives way to all other threads.
    """

    def __init__(
        self,
        number: int,
        instance: Instance,
        collator: Collator,
        *,
        returned: Returned,
        wake: Callable[[], None],
        clock: Clock,
        log: Log,
        for_jobs: bool = False,
    ) -> None:
        self.number = number
        self._instance = instance
        self._collator = collator
        self._returned = returned
        self._wake = wake
        self._clock = clock
        self._log = log
        self._for_jobs = for_jobs
        self._inbox: SimpleQueue[Batch | None] = SimpleQueue()
        # A daemon: an engine that never returns must not keep the process from ending.
        self._thread = threading.Thread(target=self._main, name=f"instance-{number}", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def hand(self, batch: Batch) -> None:
        """Gives it a batch; only while it has fewer than its instance may have."""
        self._inbox.put(batch)

    def stop(self) -> None:
        """Lets it end after the batches that it has; it closes its instance."""
        self._inbox.put(None)

    def join(self, timeout: float) -> bool:
        """Waits for its end for so many seconds; whether that has come."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def left(self) -> list[Batch]:
        """The batches that it never took up. Asked by the dispatcher after the worker has ended."""
        batches = []
        while not self._inbox.empty():
            if (batch := self._inbox.get()) is not None:
                batches.append(batch)
        return batches

    def _main(self) -> None:
        if self._for_jobs:
            can_wait()
        batch: Batch | None = None
        try:
            while (batch := self._inbox.get()) is not None:
                outcome = execute(batch, self._instance, self._collator, self._clock, self._log)
                self._returned.append((self.number, batch, outcome))
                batch = None  # It is the dispatcher's now; nothing of it may be kept alive here.
                del outcome
                self._wake()
        except BaseException:  # noqa: BLE001  # SystemExit from an engine included: no worker is lost silently
            self._ended(batch)
        finally:
            self._close()

    def _ended(self, batch: Batch | None) -> None:
        """Called while an exception is handled that ends the worker."""
        self._log.exception("worker has ended", instance=self.number)
        if batch is not None:
            self._returned.append((self.number, batch, Died()))

    def _close(self) -> None:
        try:
            self._instance.close()
        except BaseException:  # noqa: BLE001  # see above
            self._log.exception("instance did not close", instance=self.number)
        self._returned.append((self.number, None, Died()))
        self._wake()


class OverlappingWorker(Worker):
    """Runs an instance of some depth in two threads: the one of `Worker` waits for batches and ends last.

    Args:
        number, instance, collator, returned, wake, clock, log: As for `Worker`.
    """

    def __init__(self, number: int, instance: OverlappingInstance, collator: Collator, **rest: Any) -> None:
        super().__init__(number, instance, collator, **rest)
        self._overlapping = instance
        self._issued: SimpleQueue[tuple[Batch, Ticket | Outcome] | None] = SimpleQueue()
        self._issuing = threading.Thread(target=self._issue, name=f"instance-{number}-issue", daemon=True)

    def start(self) -> None:
        """Starts the threads."""
        super().start()
        self._issuing.start()

    def left(self) -> list[Batch]:
        """As of `Worker`, with those that were issued and not waited for."""
        batches = []
        while not self._issued.empty():
            if (item := self._issued.get()) is not None:
                batches.append(item[0])
        return batches + super().left()

    def _issue(self) -> None:
        batch: Batch | None = None
        try:
            while (batch := self._inbox.get()) is not None:
                issued = issue(batch, self._overlapping, self._collator, self._clock, self._log)
                self._issued.put((batch, issued))
                batch = None  # as above
                del issued
        except BaseException:  # noqa: BLE001  # as above
            self._log.exception("worker has ended", instance=self.number)
            if batch is not None:
                self._issued.put((batch, Died()))
        finally:
            self._issued.put(None)

    def _main(self) -> None:
        batch: Batch | None = None
        try:
            while (item := self._issued.get()) is not None:
                batch, issued = item
                del item
                if isinstance(issued, Ticket):
                    outcome = collect(batch, issued, self._overlapping, self._collator, self._clock, self._log)
                else:
                    outcome = issued
                del issued
                self._returned.append((self.number, batch, outcome))
                batch = None  # as above
                del outcome
                self._wake()
        except BaseException:  # noqa: BLE001  # as above
            self._ended(batch)
        finally:
            self._inbox.put(None)
            self._issuing.join()
            self._close()
