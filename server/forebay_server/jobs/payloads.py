"""Large payloads and outcomes as files, named after what is in them.

A file is written under a temporary name, synced, and renamed to its digest (SHA-256); `settle` syncs the folder. Only
then may a row refer to it. So a file that has its name is whole, and one that a row refers to survives a power cut.
Equal payloads share a file. What no row refers to (a crash came before the row, or the last row is gone) is swept.

One thread at a time.
"""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

from forebay_server.jobs.failpoints import reach

LARGE: Final = 256 * 1024
"""Bytes; what is larger is a file. SQLite is quicker than a file system below about that, and its log stays small."""
_TEMPORARY: Final = ".new"
_NAME: Final = re.compile(r"([0-9a-f]{64})(\.new)?")


class PayloadLost(Exception):
    """The file is not there, or is not what it was."""


class Payloads:
    """The files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._unsettled = False
        self.any = False
        """Whether there may be files."""

    def open(self) -> None:
        """Makes the folder if it is not there.

        Raises:
            OSError: It can't be.
        """
        if not self._folder.is_dir():
            self._folder.mkdir(mode=0o700)
            _sync_folder(self._folder.parent)

    def put(self, data: bytes) -> bytes:
        """Writes a file unless there is one like it, and gives its digest. It lasts after `settle`."""
        self.any = True
        digest = sha256(data).digest()
        path = self._path(digest)
        if path.exists():
            return digest
        temporary = path.with_suffix(_TEMPORARY)
        try:
            with open(temporary, "wb", buffering=0) as file:  # noqa: PTH123  # unbuffered, to be synced by descriptor
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
                os.fsync(file.fileno())
            reach("payload.written")
            temporary.rename(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise
        self._unsettled = True
        reach("payload.renamed")
        return digest

    def settle(self) -> None:
        """Everything that was put lasts."""
        if self._unsettled:
            _sync_folder(self._folder)
            self._unsettled = False

    def get(self, digest: bytes) -> bytes:
        """What is in a file.

        Raises:
            PayloadLost: It is not there, or something else is in it.
            OSError: It can't be read now.
        """
        try:
            data = self._path(digest).read_bytes()
        except FileNotFoundError as exc:
            raise PayloadLost(f"{self._path(digest)} is not there") from exc
        if sha256(data).digest() != digest:
            raise PayloadLost(f"{self._path(digest)} is not what it was")
        return data

    def remove(self, digest: bytes) -> None:
        """Deletes a file; one that is not there is no error."""
        self._path(digest).unlink(missing_ok=True)
        reach("purge.file_removed")

    def sweep(self, used: Callable[[bytes], bool]) -> None:
        """Deletes what a crash has left: temporary files, and files that are not used. What is not ours stays."""
        for path in list(self._folder.iterdir()):
            match = _NAME.fullmatch(path.name)
            if match and (match[2] or not used(bytes.fromhex(match[1]))):
                path.unlink(missing_ok=True)
            elif match:
                self.any = True

    def _path(self, digest: bytes) -> Path:
        return self._folder / digest.hex()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
