"""Lookups have a limit on time, and hanging ones a limit on their number."""

import socket
import threading
import time
from ipaddress import ip_address

import pytest

from forebay_server.jobs.webhooks.names import LOOKUPS, Resolver
from tests.waiting import eventually


def test_the_system_is_asked():
    """`localhost` is looked up as everybody does it, and each address is named once."""
    found = Resolver()("localhost", 10.0)
    assert ip_address("127.0.0.1") in found or ip_address("::1") in found
    assert len(set(found)) == len(found)


def test_zones_stay_with_their_addresses():
    """A link-local address comes with its zone."""
    assert Resolver(lambda _: ["fe80::1%lo"])("x", 1.0) == [ip_address("fe80::1%lo")]


@pytest.mark.parametrize(
    "fault",
    [socket.gaierror(-2, "Name or service not known"), UnicodeError("label too long"), OSError("no descriptors")],
)
def test_what_fails(fault):
    """Whatever goes wrong is an OSError."""

    def fail(_):
        raise fault

    with pytest.raises(OSError, match=str(fault.args[-1])):
        Resolver(fail)("x", 1.0)


def test_lookups_that_hang():
    """Nobody waits longer than they may; so many may hang, then no more are begun, until one ends."""
    gate, asked = threading.Event(), []

    def hang(host):
        asked.append(host)
        gate.wait(20)
        return ["1.1.1.1"]

    resolver = Resolver(hang)
    began = time.monotonic()
    for number in range(LOOKUPS + 2):
        with pytest.raises(TimeoutError):
            resolver(f"host{number}", 0.02)
    assert time.monotonic() - began < 5.0
    assert len(asked) == LOOKUPS
    gate.set()
    assert resolver("after", 10.0) == [ip_address("1.1.1.1")]
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name == "forebay-lookup"])
