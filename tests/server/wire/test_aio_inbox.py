"""The queue between the loop's thread of the second adapter and the thread that takes."""

import math
import threading
import time

from forebay_server.wire.aio_inbox import Inbox
from forebay_server.wire.port import HALF_CLOSE, MESSAGE


def message(call, body):
    return (MESSAGE, call, 0, body, math.inf, None, None)


def test_events_come_out_in_order_and_no_more_than_asked():
    """Events leave in order of arrival, at most so many at a time."""
    inbox = Inbox()
    events = [message(index, b"") for index in range(5)]
    for event in events:
        inbox.put(event)
    assert inbox.take(2, 1.0) == (events[:2], False)
    assert inbox.take(10, 1.0) == (events[2:], False)
    assert inbox.take(10, 0.0) == ([], True)


def test_waiting_messages_are_counted():
    """The bytes of messages count from their arrival until they are taken; other events have none."""
    inbox = Inbox()
    inbox.put(message(1, b"abc"))
    inbox.put((HALF_CLOSE, 1, 0, None, math.inf, None, None))
    inbox.put(message(2, b"12345"))
    assert inbox.message_bytes == 8
    inbox.take(1, 0.0)
    assert inbox.message_bytes == 5
    inbox.take(10, 0.0)
    assert inbox.message_bytes == 0


def test_an_event_ends_a_wait():
    """A wait ends when another thread puts an event."""
    inbox = Inbox()
    threading.Timer(0.05, inbox.put, [message(1, b"")]).start()
    started = time.monotonic()
    assert inbox.take(10, 10.0) == ([message(1, b"")], False)
    assert time.monotonic() - started < 5


def test_a_wake_counts_once():
    """A wake before a wait ends that one, and not the next; it is not a timeout."""
    inbox = Inbox()
    inbox.wake()
    inbox.wake()
    assert inbox.take(10, 10.0) == ([], False)
    assert inbox.take(10, 0.0) == ([], True)


def test_a_wake_does_not_hide_events():
    """With a wake and events at once, the events are given out."""
    inbox = Inbox()
    inbox.wake()
    inbox.put(message(1, b""))
    assert inbox.take(10, 10.0) == ([message(1, b"")], False)
