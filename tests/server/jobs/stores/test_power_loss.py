"""Power cuts at any write, sync or deletion: nothing that was acknowledged is lost, and no group happens by half.

SQLite runs on a file system in memory that keeps apart what was synced. At the cut a random part of the rest reaches
the disk, in sectors and in any order. Large payloads are real files whose syncs are watched; the cut undoes what was
not synced. What the store must be afterwards, the store in memory says, which was given the same groups.
"""

import os
import random
from contextlib import suppress
from itertools import count

import apsw
import pytest

from forebay_server.errors import ForebayError
from forebay_server.jobs import payloads, sqlite
from forebay_server.jobs.memory import MemoryStore
from forebay_server.jobs.sqlite import SqliteStore
from forebay_server.jobs.states import JobState
from forebay_server.jobs.store import (
    Backlog,
    Cancel,
    Claim,
    Finish,
    Flow,
    Get,
    Page,
    Purge,
    Reap,
    Release,
    Renew,
    Submit,
)

SECTOR = 512


class PowerCut(BaseException):
    """Nothing after this happens."""


class Disk:
    """The files of SQLite, which outlive the power."""

    def __init__(self, rng):
        self.rng = rng
        self.files: dict[str, File] = {}
        self.named: dict[str, File] = {}
        """As they were when the folder was last synced."""

    def sync(self):
        """Syncs the folder."""
        self.named = self.files.copy()

    def cut(self):
        """What a new start finds. A file that came or went since the folder was synced is there, or is not."""
        names = sorted({*self.files, *self.named})
        found = {name: self.rng.choice([self.files.get(name), self.named.get(name)]) for name in names}
        self.files = {name: file.after_cut(self.rng) for name, file in found.items() if file}
        self.sync()


class File:
    """What was synced, what is seen, and the steps between."""

    def __init__(self, content=b""):
        self.synced = content
        self.seen = bytearray(content)
        self.steps = []

    def write(self, offset, data):
        if len(self.seen) < offset + len(data):
            self.seen.extend(bytes(offset + len(data) - len(self.seen)))
        self.seen[offset : offset + len(data)] = data
        self.steps.append((offset, data))

    def truncate(self, size):
        del self.seen[size:]
        self.seen.extend(bytes(size - len(self.seen)))
        self.steps.append((size, None))

    def sync(self):
        self.synced = bytes(self.seen)
        self.steps = []

    def after_cut(self, rng):
        """The file when some of the steps since its last sync have reached the disk."""
        pieces = []
        for offset, data in self.steps:
            if data is None:
                pieces.append((offset, None))
            else:
                pieces += [(offset + at, data[at : at + SECTOR]) for at in range(0, len(data), SECTOR)]
        kept = rng.choice([0.0, 0.5, 0.9, 1.0])
        pieces = [piece for piece in pieces if rng.random() < kept]
        if rng.random() < 0.5:
            rng.shuffle(pieces)
        file = File(self.synced)
        for offset, data in pieces:
            if data is None:
                file.truncate(offset)
            else:
                file.write(offset, data)
        return File(bytes(file.seen))


class Handle:
    """An open file, as SQLite asks for it."""

    def __init__(self, power, file, *, new_log=False):
        self.power, self.file, self.new_log = power, file, new_log

    def xRead(self, amount, offset):
        return bytes(self.file.seen[offset : offset + amount])

    def xWrite(self, data, offset):
        if self.power.reach():
            self.file.write(offset, bytes(data))

    def xTruncate(self, size):
        if self.power.reach():
            self.file.truncate(size)

    def xSync(self, flags):
        if self.power.reach():
            self.file.sync()
            if (
                self.new_log
            ):  # As SQLite does on Linux: the first sync of a new log or journal is one of the folder too.
                self.power.disk.sync()
                self.new_log = False

    def xFileSize(self):
        return len(self.file.seen)

    def xLock(self, level):
        pass

    def xUnlock(self, level):
        pass

    def xCheckReservedLock(self):
        return False

    def xFileControl(self, operation, pointer):
        return False

    def xSectorSize(self):
        return SECTOR

    def xDeviceCharacteristics(self):
        return 0

    def xClose(self):
        pass


class Power(apsw.VFS):
    """SQLite's way to a disk from a start to the cut; after that, nothing reaches the disk any more."""

    numbers = count()

    def __init__(self, disk):
        self.name = f"disk{next(self.numbers)}"
        self.disk = disk
        self.left = None
        """Operations until the power fails; None: it does not."""
        self.off = False
        super().__init__(self.name, "")

    def reach(self):
        """Whether the power is on."""
        if self.left is not None and not self.off:
            self.left -= 1
            if self.left < 0:
                self.off = True
                raise PowerCut
        return not self.off

    def xOpen(self, name, flags):
        flags[1] = flags[0]
        name = name.filename() if isinstance(name, apsw.URIFilename) else str(name)
        if name in self.disk.files:
            return Handle(self, self.disk.files[name])
        file = self.disk.files[name] = File()
        return Handle(self, file, new_log=bool(flags[0] & (apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL)))

    def xDelete(self, name, synced):
        if self.reach():
            self.disk.files.pop(name, None)
            if synced:
                self.disk.sync()

    def xAccess(self, name, flags):
        return name in self.disk.files

    def xFullPathname(self, name):
        return name


class Folder:
    """Watches what is synced in the folder of the payloads, and undoes the rest at a cut."""

    def __init__(self, path, rng, monkeypatch):
        self.path, self.rng, self.power = path, rng, None
        self.whole, self.named = set(), set()
        monkeypatch.setattr(payloads.os, "fsync", self.sync)

    def sync(self, descriptor):
        self.power.reach()
        number = os.fstat(descriptor).st_ino
        self.whole.add(number)
        if self.path.exists() and number == self.path.stat().st_ino:
            self.named = {path.name for path in self.path.iterdir()}

    def cut(self):
        rng = self.rng
        for path in self.path.iterdir():
            if path.stat().st_ino not in self.whole:
                path.write_bytes(path.read_bytes()[: rng.choice([0, 100])])
            if path.name not in self.named and rng.random() < 0.8:
                path.unlink()


class Run:
    """A store and its twin in memory, with random groups until the power fails."""

    def __init__(self, seed, folder, monkeypatch, pragma=""):
        self.rng = random.Random(seed)
        self.disk = Disk(self.rng)
        self.path = folder / f"{seed}.db"
        self.folder = Folder(self.path.with_name(f"{self.path.name}.payloads"), self.rng, monkeypatch)
        self.pragma = pragma
        self.now = 1_700_000_000.0
        self.done = []
        """Groups that were acknowledged."""
        self.names = []
        self.life = 0

    def start(self):
        """The power is on: an open store."""
        self.power = self.folder.power = Power(self.disk)
        store = SqliteStore(self.path, clock=lambda: self.now, vfs=self.power.name)
        store.open(lambda _: None)
        return store

    def operations(self):
        rng, owner = self.rng, f"o{self.life}"
        group = [Renew(owner, 1e6)]
        for _ in range(rng.choice([1, 3, 10])):
            known = rng.choice(self.names) if self.names else "0" * 32
            attempt = rng.choice([1, 1, 2])
            kind = rng.randrange(10)
            if kind < 4:
                size = rng.choice([10, 4000, 4000, 20_000, 300_000])
                name = f"{rng.getrandbits(128):032x}"
                self.names.append(name)
                group.append(Submit(name, "t", "", b"f", "m", "", 2, rng.randbytes(size), None, 1.0, None))
            elif kind < 6:
                group.append(Claim(owner, Flow("m", "t", 2, suspect=False), rng.choice([1, 4])))
            elif kind < 8:
                size = rng.choice([0, 4000, 300_000])
                group.append(Finish(known, owner, attempt, JobState.SUCCEEDED, rng.randbytes(size), 1))
            else:
                group.append(
                    rng.choice(
                        [
                            Release(known, owner, attempt, 0.0, refund=False),
                            Cancel(known, "t"),
                            Purge(3),
                            Reap(10, 3, b"", b""),
                        ]
                    )
                )
        return group

    def twin(self, groups):
        """The store in memory after these groups."""
        now = [0.0]
        store = MemoryStore(clock=lambda: now[0])
        for now[0], group in groups:
            store.apply(group)
        now[0] = self.now
        return store

    def seen(self, store):
        """All that is in a store."""
        outcomes = store.apply([*(Get(name, "t") for name in self.names), Page("t", (), "", 0, 10_000), Backlog()])
        return [outcome.args if isinstance(outcome, ForebayError) else outcome for outcome in outcomes]

    def until_the_cut(self):
        """Groups until the power fails; the one that was under way at that moment is the result."""
        store = self.start()
        if self.pragma:
            store._connection.execute(self.pragma)
        # Owners of an earlier life of the process are gone with it.
        groups = [(self.now, [Reap(10_000, 3, b"", b"")])]
        store.apply(groups[0][1])
        self.done += [(self.now, [Renew(f"o{life}", 0.0) for life in range(self.life + 1)]), *groups]
        self.life += 1
        self.power.left = self.rng.randrange(self.rng.choice([3, 30, 300, 1000]))
        under_way = None
        with suppress(PowerCut):
            while True:
                self.now += 0.125
                under_way = (self.now, self.operations())
                store.apply(under_way[1])
                self.done.append(under_way)
        with suppress(apsw.Error, PowerCut):
            store.close()
        self.disk.cut()
        self.folder.cut()
        return under_way

    def check(self, under_way):
        """The store opens, is whole, and has all that was acknowledged, and all or nothing of what was under way."""
        store = self.start()
        try:
            assert store._connection.execute("PRAGMA integrity_check").get == "ok"
            found = self.seen(store)
            if found == self.seen(self.twin(self.done)):
                return True
            self.done.append(under_way)
            return found == self.seen(self.twin(self.done))
        finally:
            store.close()
            # A shutdown, not a cut: what it has written is on the disk.
            for file in self.disk.files.values():
                file.sync()
            self.disk.sync()


def lost(seeds, folder, monkeypatch, cuts=5, pragma=""):
    """How many of the runs (of some cuts each) have lost something."""
    monkeypatch.setattr(sqlite, "_MOVE_LOG", 20)
    monkeypatch.setattr(sqlite, "_MOVE_LOG_NOW", 60)
    found = 0
    for seed in seeds:
        with monkeypatch.context() as patch:
            run = Run(seed, folder, patch, pragma)
            for _ in range(cuts):
                if not run.check(run.until_the_cut()):
                    found += 1
                    break
    return found


def test_a_power_cut_loses_nothing(tmp_path, monkeypatch):
    """50 cuts."""
    assert lost(range(10), tmp_path, monkeypatch) == 0


def test_without_full_sync_it_does(tmp_path, monkeypatch):
    """The control: what is acknowledged before it is synced is lost, and the test sees it."""
    assert lost(range(10), tmp_path, monkeypatch, pragma="PRAGMA synchronous = normal") > 3


def test_without_syncs_of_the_folder_it_does(tmp_path, monkeypatch):
    """The control for payload files: a name that was not synced goes, and a row that refers to it stays."""
    monkeypatch.setattr(payloads.Payloads, "settle", lambda self: None)
    assert lost(range(10), tmp_path, monkeypatch) > 0


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_power_cuts_lose_nothing(tmp_path, monkeypatch):
    """2,000 cuts."""
    assert lost(range(1000, 1400), tmp_path, monkeypatch) == 0
