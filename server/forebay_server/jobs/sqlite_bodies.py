"""The large values of an SQLite store: requests of jobs that are not final, outcomes of those that are.

One that is too large for a row is a file (`payloads`), and its row has the digest. Inside a transaction of
`sqlite.SqliteStore`; for `sqlite_rows`.
"""

from collections.abc import Sequence

import apsw

from forebay_server.jobs.payloads import LARGE, PayloadLost, Payloads
from forebay_server.jobs.sqlite_many import DATA, REPLACE, blobs, numbers


class Bodies:
    """The table `bodies`, and its files.

    Args:
        connection: To the database.
        payloads: The files.

    Attributes:
        loose: Digests of files that perhaps no row refers to any more.
    """

    def __init__(self, connection: apsw.Connection, payloads: Payloads) -> None:
        self._do = connection.execute
        self._do_many = connection.executemany
        self._payloads = payloads
        self.loose: set[bytes] = set()

    def uses(self, digest: bytes) -> bool:
        """Whether a row refers to this file."""
        return bool(self._do("SELECT 1 FROM bodies WHERE digest = ? LIMIT 1", (digest,)).get)

    def get(self, digest: bytes) -> bytes | PayloadLost:
        """What a file has."""
        try:
            return self._payloads.get(digest)
        except PayloadLost as lost:
            return lost

    def of(self, sequence: int) -> bytes | PayloadLost:
        """What a job has."""
        data, digest = self._do("SELECT data, digest FROM bodies WHERE sequence = ?", (sequence,)).get
        return data if digest is None else self.get(digest)

    def first(self, sequences: Sequence[int], sizes: Sequence[int | None], room: int) -> list[bytes | PayloadLost]:
        """What the first of some jobs have, up to the one with which it is so many bytes.

        Args:
            sequences: The jobs.
            sizes: Of what they have; None: it is in a file.
            room: The bytes.
        """
        files: dict[int, bytes | PayloadLost] = {}
        count = 0
        for size in sizes:
            if size is None:
                body = files[count] = self.of(sequences[count])
                room -= len(body) if isinstance(body, bytes) else 0
            else:
                room -= size
            count += 1
            if room <= 0:
                break
        if not count:
            return []
        data = self._do(DATA, (numbers(sequences[:count]),)).get or b""
        found: list[bytes | PayloadLost] = []
        start = 0
        for place, size in enumerate(sizes[:count]):
            if size is None:
                found.append(files[place])
            else:
                found.append(data[start : start + size])
                start += size
        return found

    def add(self, bodies: Sequence[tuple[int, bytes]]) -> None:
        """New jobs, by sequence, have these."""
        self._do_many(
            "INSERT INTO bodies VALUES (?, ?, ?)", [(sequence, *self._stored(data)) for sequence, data in bodies]
        )

    def replace(self, bodies: Sequence[tuple[int, bytes | None]]) -> None:
        """Jobs, by sequence, have these instead of what they had; None: nothing."""
        self._loosen([sequence for sequence, _ in bodies])
        small = [(sequence, data) for sequence, data in bodies if data and len(data) <= LARGE]
        if small:
            sequences, data = zip(*small, strict=True)
            self._do(REPLACE, (numbers(sequences), blobs(data)))
        if len(small) < len(bodies):
            others = [(sequence, data) for sequence, data in bodies if not data or len(data) > LARGE]
            self._do_many(
                "UPDATE bodies SET data = ?, digest = ? WHERE sequence = ?",
                [(*self._stored(data), sequence) for sequence, data in others if data is not None],
            )
            self._delete([sequence for sequence, data in others if data is None])

    def remove(self, sequences: Sequence[int]) -> None:
        """Jobs are deleted."""
        self._loosen(sequences)
        self._delete(sequences)

    def _delete(self, sequences: Sequence[int]) -> None:
        self._do_many("DELETE FROM bodies WHERE sequence = ?", [(sequence,) for sequence in sequences])

    def _loosen(self, sequences: Sequence[int]) -> None:
        """What these refer to is perhaps not referred to any more."""
        if self._payloads.any:
            select = "SELECT digest FROM bodies WHERE sequence = ? AND digest IS NOT NULL"
            self.loose.update(row[0] for row in self._do_many(select, [(sequence,) for sequence in sequences]))

    def _stored(self, data: bytes) -> tuple[bytes | None, bytes | None]:
        """The columns `data` and `digest`."""
        if len(data) <= LARGE:
            return data, None
        digest = self._payloads.put(data)
        self.loose.add(digest)  # If the group fails.
        return None, digest
