"""The queue of events between the loop's thread of `wire.aio` and the thread that takes them.

Any thread may put and wake; one thread takes, and waits without the GIL.
"""

import threading
import time
from collections import deque

from forebay_server.wire.port import Event


class Inbox:
    """Events in order of arrival, with a wait that `wake` ends."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._woken = False
        self._message_bytes = 0

    @property
    def message_bytes(self) -> int:
        """Bytes of the messages that wait here."""
        return self._message_bytes

    def put(self, event: Event) -> None:
        """Adds an event."""
        with self._changed:
            self._events.append(event)
            if event[3] is not None:
                self._message_bytes += len(event[3])
            self._changed.notify()

    def wake(self) -> None:
        """Ends the present, or else the next, `take` early."""
        with self._changed:
            self._woken = True
            self._changed.notify()

    def take(self, most: int, timeout: float) -> tuple[list[Event], bool]:
        """Waits for events.

        Args:
            most: The most events to give out.
            timeout: The longest wait in seconds; 0 only looks.

        Returns:
            The events, and whether the wait came to its end without an event and without `wake`.
        """
        with self._changed:
            until = time.monotonic() + timeout
            while not self._events and not self._woken:
                left = until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            timed_out = not self._events and not self._woken
            self._woken = False
            events = [self._events.popleft() for _ in range(min(most, len(self._events)))]
            for event in events:
                if event[3] is not None:
                    self._message_bytes -= len(event[3])
        return events, timed_out
