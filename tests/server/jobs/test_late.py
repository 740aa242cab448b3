"""A store that need not be there at the start."""

import pytest

from forebay_server.errors import ConfigError, StoreUnavailable
from forebay_server.jobs.late import LateStore
from forebay_server.jobs.memory import MemoryStore
from forebay_server.jobs.store import Backlog

AWAY = StoreUnavailable("away")


class Store(MemoryStore):
    """Opens as the test says."""

    name = "some"

    def __init__(self, *faults):
        super().__init__()
        self.faults = list(faults)
        self.closed = 0

    def open(self, changed):
        fault = self.faults.pop(0)
        if fault is not None:
            raise fault
        super().open(changed)

    def close(self):
        self.closed += 1


def test_one_that_is_there():
    """Nothing is added."""
    told = []
    inner = Store(None)
    store = LateStore(inner)
    store.open(told.append)

    assert store.name == "some"
    assert store.apply([Backlog()]) == [[]]
    assert told == []
    store.close()
    store.close()
    assert inner.closed == 1


def test_one_that_comes_later():
    """Groups fail until it is there; then all may have changed."""
    told = []
    inner = Store(AWAY, AWAY, None)
    store = LateStore(inner)
    store.open(told.append)
    with pytest.raises(StoreUnavailable):
        store.apply([Backlog()])
    assert told == []

    assert store.apply([Backlog()]) == [[]]

    assert told == [()]
    assert store.apply([Backlog()]) == [[]]
    assert inner.faults == []


def test_one_that_can_not_be_used():
    """Known at the start, it is the starter's; found out later, it is UNAVAILABLE until it is mended."""
    with pytest.raises(ConfigError, match="newer"):
        LateStore(Store(ConfigError("newer"))).open(print)

    store = LateStore(Store(AWAY, ConfigError("newer"), ConfigError("newer"), None))
    store.open(lambda _: None)
    for _ in range(2):
        with pytest.raises(StoreUnavailable) as caught:
            store.apply([Backlog()])
        assert "newer" not in caught.value.message
    assert store.apply([Backlog()]) == [[]]


def test_one_that_never_came():
    """Closing what is not open is harmless; what was never opened is not opened by a group."""
    inner = Store(AWAY)
    store = LateStore(inner)
    with pytest.raises(StoreUnavailable):
        store.apply([Backlog()])
    store.open(lambda _: None)
    store.close()
    assert inner.closed == 0
