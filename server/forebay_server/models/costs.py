"""Keeps measured costs between runs of the server, so that the second start need not measure again.

One JSON file per model file, device, engine and settings that matter. A file that can't be read or written only costs
the time to measure: it is logged, never an error. Called by the loader, and by `app` to save what was learned.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog

from forebay_server.engines import files
from forebay_server.models.warm_up import Measurement

FORMAT: Final = 1

_log = structlog.get_logger(__name__)


class CostKey(msgspec.Struct, frozen=True, kw_only=True):
    """What costs depend on."""

    digest: str
    """SHA-256 of the model's file; of engines without one, the path."""
    device: str
    engine: str
    version: str
    """Of the engine's library."""
    settings: str
    """Threads, instances, buckets, batch cap and the engine's options, in a fixed order."""

    def file_name(self) -> str:
        """A name that differs when anything does."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:32] + ".json"


class _Profile(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    format: int
    key: CostKey
    points: list[tuple[list[list[int]], int, float]]


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits. Releases the GIL while it reads.

    Raises:
        OSError: It can't be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class CostCache:
    """A folder of profiles.

    Args:
        folder: Made when something is saved; None: nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def load(self, key: CostKey) -> list[Measurement]:
        """What is kept under a key; nothing if there is no profile, or a damaged or foreign one."""
        if self._folder is None:
            return []
        file = self._folder / key.file_name()
        try:
            profile = msgspec.json.decode(file.read_bytes(), type=_Profile)
        except FileNotFoundError:
            return []
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            _log.warning("cost profile not readable", file=str(file), error=str(error))
            return []
        if profile.format != FORMAT or profile.key != key:
            return []
        points = [(tuple(map(tuple, bucket)), rows, seconds) for bucket, rows, seconds in profile.points]
        return points if all(rows > 0 and 0.0 < seconds < float("inf") for _, rows, seconds in points) else []

    def save(self, key: CostKey, points: Iterable[Measurement]) -> None:
        """Keeps a profile; the old one is replaced whole."""
        if self._folder is None:
            return
        profile = _Profile(
            format=FORMAT,
            key=key,
            points=[([list(shape) for shape in bucket], rows, seconds) for bucket, rows, seconds in points],
        )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            files.replace(self._folder / key.file_name(), msgspec.json.encode(profile))
        except OSError as error:
            _log.warning("cost profile not saved", folder=str(self._folder), error=str(error))


def agrees(kept: Sequence[tuple[float, float]]) -> bool:
    """Whether kept costs still hold.

    Args:
        kept: Pairs of kept and newly measured seconds of the same batches. Half as much or half as much again is off.
    """
    return all(0.5 * old < new < 1.5 * old for old, new in kept)
