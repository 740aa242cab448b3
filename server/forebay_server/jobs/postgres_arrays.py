"""Columns of values as parameters of statements, in PostgreSQL's binary format.

psycopg guesses the type of a list from what is in it, so that a statement would be prepared once for each guess; here
the class says it. And text may hold what PostgreSQL's can't: the character NUL is escaped, by a backslash.
"""

import re
import struct
from typing import Any

from psycopg import Connection, pq
from psycopg.adapt import Dumper

_HEAD = struct.Struct("!iiIii")  # dimensions, has nulls, type of the elements, length, first index
_LENGTH = struct.Struct("!i")


class Column(list[Any]):
    """Values of one column, of the type that the subclass says."""

    array: int
    element: int

    def packed(self) -> bytes:
        """The array in binary."""
        pack = _LENGTH.pack
        parts = [_HEAD.pack(1, 0, self.element, len(self), 1)] if self else [struct.pack("!iiI", 0, 0, self.element)]
        for value in self.values():
            parts += (pack(len(value)), value)
        return b"".join(parts)

    def values(self) -> list[bytes]:
        """Each value in binary."""
        return self


class Blobs(Column):
    """`bytea[]`."""

    array, element = 1001, 17


class Texts(Column):
    """`text[]`, escaped."""

    array, element = 1009, 25

    def values(self) -> list[bytes]:
        """Each value in binary."""
        return [escaped(value).encode() for value in self]


class Longs(Column):
    """`bigint[]`."""

    array, element = 1016, 20

    def values(self) -> list[bytes]:
        """Each value in binary."""
        pack = struct.Struct("!q").pack
        return [pack(value) for value in self]


class Doubles(Column):
    """`double precision[]`."""

    array, element = 1022, 701

    def values(self) -> list[bytes]:
        """Each value in binary."""
        pack = struct.Struct("!d").pack
        return [pack(value) for value in self]


def escaped(text: str) -> str:
    """The text as it is in the database."""
    if "\0" in text or "\\" in text:
        return text.replace("\\", "\\\\").replace("\0", "\\0")
    return text


def unescaped(text: str) -> str:
    """The reverse of `escaped`."""
    return re.sub(r"\\(.)", lambda match: "\0" if match[1] == "0" else "\\", text) if "\\" in text else text


def register(connection: Connection[Any]) -> None:
    """Teaches a connection these types."""
    for kind, dumper in _DUMPERS.items():
        connection.adapters.register_dumper(kind, dumper)


class _ColumnDumper(Dumper):
    format = pq.Format.BINARY

    def dump(self, obj: Column) -> bytes:
        return obj.packed()


_DUMPERS = {
    kind: type(f"{kind.__name__}Dumper", (_ColumnDumper,), {"oid": kind.array})
    for kind in (Blobs, Texts, Longs, Doubles)
}
