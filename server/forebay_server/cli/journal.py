"""The journal of `forebay batch`: what is to be done, what has been handed over, and what came of it.

A SQLite database beside the output, so that a run which was interrupted, in whatever way, goes on where it was: what
has an outcome is kept, what was handed over is fetched, and what is handed over anew has the key that it had before.
One process at a time has it open; any of its threads may call it.

It is on disk before anything is sent. What comes later is written without waiting for the disk: losing the last of it
to a power failure costs asking again, under the same keys.
"""

import json
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from forebay_server.cli.guard import Failed
from forebay_server.cli.results import Failure
from forebay_server.errors import ConfigError

if TYPE_CHECKING:
    from forebay_client import ForebayError, Prediction

FORMAT = 1  # of the tables; others are refused

_TABLES = """
CREATE TABLE run (facts TEXT NOT NULL) STRICT;
CREATE TABLE chunk (
    start INTEGER PRIMARY KEY, stop INTEGER NOT NULL, job TEXT NOT NULL DEFAULT '', result BLOB, failure TEXT
) STRICT;
"""


class Chunk(NamedTuple):
    """Rows that are sent together."""

    start: int
    stop: int
    job: str = ""
    """The id of their job; empty: there is none yet."""


class Journal:
    """The journal of one output.

    Args:
        path: Its file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = ""
        """128 random bits: what the keys of this run's chunks begin with."""
        self.version = ""
        """The version of the model that all chunks are for."""
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None

    def open(self, asked: Mapping[str, Any]) -> bool:
        """Whether there is a run to go on with; else `begin` one.

        Args:
            asked: What was asked for; a run goes on only if it was begun with the same.

        Raises:
            ConfigError: The file is no journal, in use, or that of another run.
        """
        if not self.path.exists():
            return False
        facts = self._facts()
        if facts is None:  # it was interrupted before anything was sent
            self.remove()
            return False
        for name, value in asked.items():
            if facts["asked"].get(name) != value:
                self.close()
                raise ConfigError(
                    f"{self.path} is of a run with {_put(name, facts['asked'].get(name))}; go on with that, or start "
                    "over with --restart"
                    if name != "input"
                    else f"the input has changed since {self.path} was begun; restore it, or start over with --restart"
                )
        self.id, self.version = facts["id"], facts["version"]
        return True

    def begin(self, asked: Mapping[str, Any], version: str, chunks: Iterable[Chunk]) -> None:
        """Begins a run; it is on disk at the return."""
        self.id, self.version = secrets.token_hex(16), version
        facts = {"asked": dict(asked), "id": self.id, "version": version}
        database = self._connect()
        with self._reported():
            database.execute("PRAGMA synchronous=FULL")
            database.execute("BEGIN IMMEDIATE")
            for statement in filter(str.strip, _TABLES.split(";")):
                database.execute(statement)
            database.execute(f"PRAGMA user_version={FORMAT}")
            database.execute("INSERT INTO run VALUES (?)", (json.dumps(facts),))
            database.executemany("INSERT INTO chunk (start, stop) VALUES (?, ?)", (chunk[:2] for chunk in chunks))
            database.execute("COMMIT")
            database.execute("PRAGMA synchronous=NORMAL")

    def open_chunks(self) -> list[Chunk]:
        """Those without an outcome, in the order of their rows."""
        wanted = "SELECT start, stop, job FROM chunk WHERE result IS NULL AND failure IS NULL ORDER BY start"
        return [Chunk(*row) for row in self._ask(wanted)]

    def rows(self) -> tuple[int, int]:
        """Rows in all, and those with an outcome."""
        total = "SELECT coalesce(sum(stop - start), 0), "
        done = "coalesce(sum((stop - start) * (result IS NOT NULL OR failure IS NOT NULL)), 0) FROM chunk"
        ((rows, with_outcome),) = self._ask(total + done)
        return int(rows), int(with_outcome)

    def key(self, chunk: Chunk) -> str:
        """The idempotency key of a chunk: the same each time."""
        return f"{self.id}-{chunk.start}-{chunk.stop}"

    def submitted(self, chunk: Chunk, job: str) -> None:
        """A chunk was handed over."""
        self._do("UPDATE chunk SET job = ? WHERE start = ?", (job, chunk.start))

    def succeeded(self, chunk: Chunk, prediction: "Prediction") -> None:
        """A chunk has its result."""
        self._do("UPDATE chunk SET result = ? WHERE start = ?", (_packed(prediction), chunk.start))

    def failed(self, chunk: Chunk, error: "ForebayError") -> None:
        """A chunk has no result, and will not get one."""
        failure = json.dumps([error.code.name, error.reason, error.message])
        self._do("UPDATE chunk SET failure = ? WHERE start = ?", (failure, chunk.start))

    def split(self, chunk: Chunk) -> tuple[Chunk, Chunk]:
        """Two chunks instead of one, of new keys."""
        middle = (chunk.start + chunk.stop) // 2
        with self._lock, self._reported():
            database = self._connect()
            database.execute("BEGIN IMMEDIATE")
            database.execute("UPDATE chunk SET stop = ?, job = '' WHERE start = ?", (middle, chunk.start))
            database.execute("INSERT INTO chunk (start, stop) VALUES (?, ?)", (middle, chunk.stop))
            database.execute("COMMIT")
        return Chunk(chunk.start, middle), Chunk(middle, chunk.stop)

    def outcomes(self) -> "Iterator[tuple[int, int, Prediction] | Failure]":
        """What came of all chunks, in the order of their rows."""
        for start, stop, result, failure in self._ask("SELECT start, stop, result, failure FROM chunk ORDER BY start"):
            yield (start, stop, _unpacked(result)) if failure is None else Failure(start, stop, *json.loads(failure))

    def close(self) -> None:
        """Lets go of the file. May be called more than once."""
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None

    def discard(self) -> None:
        """Nobody goes on with the run that there may be.

        Raises:
            ConfigError: Somebody does, now.
        """
        if self.path.exists():
            try:
                self._facts()
            except ConfigError as error:
                if isinstance(error.__cause__, sqlite3.OperationalError):  # it is in use; else it is no journal
                    raise
            self.remove()

    def remove(self) -> None:
        """The run is over."""
        self.close()
        for suffix in ("-wal", ""):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def _facts(self) -> dict[str, Any] | None:
        """What the run was begun with; None: it was not."""
        with self._reported():
            ((version,),) = self._connect().execute("PRAGMA user_version")
            if version == 0 and not self._connect().execute("SELECT 1 FROM sqlite_schema").fetchall():
                return None
            if version != FORMAT:
                raise ConfigError(f"{self.path} is not a journal of this version of forebay batch")
            ((facts,),) = self._connect().execute("SELECT facts FROM run")
            found: dict[str, Any] = json.loads(facts)
            return found

    def _connect(self) -> sqlite3.Connection:
        if self._database is None:
            self._database = sqlite3.connect(self.path, timeout=0.2, isolation_level=None, check_same_thread=False)
            with self._reported():
                self._database.execute("PRAGMA locking_mode=EXCLUSIVE")  # and no shared memory beside it
                self._database.execute("PRAGMA journal_mode=WAL")
                self._database.execute("PRAGMA synchronous=NORMAL")
        return self._database

    def _do(self, statement: str, values: tuple[object, ...]) -> None:
        with self._lock, self._reported():
            self._connect().execute(statement, values)

    def _ask(self, statement: str) -> list[Any]:
        with self._lock, self._reported():
            return self._connect().execute(statement).fetchall()

    def _reported(self) -> "_Reported":
        return _Reported(self.path)


class _Reported:
    """Turns what SQLite finds wrong into a sentence."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        """Nothing is wrong yet."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _traceback: object) -> None:
        if not isinstance(error, sqlite3.Error):
            return
        match getattr(error, "sqlite_errorname", ""):
            case "SQLITE_BUSY":
                raise ConfigError(f"{self._path} is in use: another forebay batch writes this output") from error
            case "SQLITE_NOTADB" | "SQLITE_CORRUPT":
                raise ConfigError(f"{self._path} is not a journal of forebay batch, or is damaged") from error
        raise Failed(f"{self._path}: {error}") from error


def _put(name: str, value: object) -> str:
    """A fact as it was asked for."""
    return f"the model {value}" if name == "model" else f"--{name} {value}" if value else f"no --{name}"


def _packed(prediction: "Prediction") -> bytes:
    """A prediction as bytes; exact, also for texts and bfloat16."""
    outputs = [
        (name, array.dtype.name, array.shape, array.ravel().tolist() if array.dtype.kind == "O" else array.tobytes())
        for name, array in prediction.items()
    ]
    return msgspec.msgpack.encode((prediction.model, prediction.version, outputs))


def _unpacked(packed: bytes) -> "Prediction":
    from forebay_client import Prediction  # heavy; it also makes bfloat16 known to numpy

    model, version, outputs = msgspec.msgpack.decode(packed)
    arrays = {}
    for name, dtype, shape, data in outputs:
        if dtype == "object":
            array = np.empty(len(data), np.object_)
            array[:] = data
        else:
            array = np.frombuffer(data, np.dtype(dtype))
        arrays[name] = array.reshape(shape)
    return Prediction(arrays, model=model, version=version)
