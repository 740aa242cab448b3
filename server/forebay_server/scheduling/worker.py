"""The thread of one instance: takes a batch at a time, runs it, hands it back. It alone touches the instance.

The dispatcher hands over through a queue that holds at most one batch; what is done goes into a deque that it empties
after `wake`. Nothing is shared beyond that, so there is no lock here. A worker that can't go on says so: what it had
comes back as `Died`, its end as a `Gone`.
"""

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

from forebay_server.engines.base import Instance
from forebay_server.scheduling.bisection import Died, Outcome
from forebay_server.scheduling.execution import Clock, Collator, Log, execute
from forebay_server.scheduling.request import Batch

Returned = deque[tuple[int, Batch | None, Outcome]]
"""(instance, batch, outcome). Without a batch: the worker has ended, and closed its instance."""


class Worker:
    """The thread of one instance. All methods are for the dispatcher."""

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
    ) -> None:
        self.number = number
        self._instance = instance
        self._collator = collator
        self._returned = returned
        self._wake = wake
        self._clock = clock
        self._log = log
        self._inbox: SimpleQueue[Batch | None] = SimpleQueue()
        # A daemon: an engine that never returns must not keep the process from ending.
        self._thread = threading.Thread(target=self._main, name=f"instance-{number}", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def hand(self, batch: Batch) -> None:
        """Gives it a batch; only when the one before has come back."""
        self._inbox.put(batch)

    def stop(self) -> None:
        """Lets it end after the batch that it has; it closes its instance."""
        self._inbox.put(None)

    def join(self, timeout: float) -> bool:
        """Waits for its end for so many seconds; whether that has come."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _main(self) -> None:
        batch: Batch | None = None
        try:
            while (batch := self._inbox.get()) is not None:
                outcome = execute(batch, self._instance, self._collator, self._clock, self._log)
                self._returned.append((self.number, batch, outcome))
                batch = None  # It is the dispatcher's now; nothing of it may be kept alive here.
                del outcome
                self._wake()
        except BaseException:  # noqa: BLE001  SystemExit from an engine included: no worker is lost silently
            self._log.exception("worker has ended", instance=self.number)
            if batch is not None:
                self._returned.append((self.number, batch, Died()))
        finally:
            self._close()

    def _close(self) -> None:
        try:
            self._instance.close()
        except BaseException:  # noqa: BLE001  see above
            self._log.exception("instance did not close", instance=self.number)
        self._returned.append((self.number, None, Died()))
        self._wake()
