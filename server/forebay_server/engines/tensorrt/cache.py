"""Keeps built plans, and the timings of kernels, between runs of the server.

A plan's key is all that decides what would be built: the ONNX file and its weights, TensorRT's version, the GPU, and
what the owner has set of shapes, batches and building. Whoever builds a key holds its lock, so that of several
processes that start together one builds and the others find the plan. Files may be deleted at any time.
"""

import contextlib
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
import structlog

from forebay_server.config.tree import BatchingConfig, BucketsConfig
from forebay_server.engines import onnx_file
from forebay_server.engines.base import ModelLoadError
from forebay_server.engines.files import replace
from forebay_server.engines.gpu.device import Device
from forebay_server.engines.tensorrt import sidecar
from forebay_server.engines.tensorrt.settings import BuildSettings
from forebay_server.engines.tensorrt.sidecar import Sidecar

FOLDER: Final = "tensorrt"
POLL: Final = 0.2  # seconds between looks at a lock that another process has

_log = structlog.get_logger(__name__)


class PlanKey(msgspec.Struct, frozen=True, kw_only=True):
    """What decides what would be built. Profiles follow from the file and these settings."""

    onnx_sha256: str
    tensorrt: str
    compute_capability: str
    gpu: str
    """Two products of one compute capability have timings of their own."""
    batch_dimension: str
    most_rows: int
    shapes: dict[str, list[list[int]]]
    build: BuildSettings

    def name(self) -> str:
        """A name that differs when anything does."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:32]


def key_of(
    path: Path,
    version: str,
    device: Device,
    batching: BatchingConfig,
    shapes: BucketsConfig,
    build: BuildSettings,
) -> PlanKey:
    """The key of a plan for an ONNX file on a device.

    Raises:
        OSError: A file can't be read.
        ModelLoadError: It is not an ONNX file.
    """
    return PlanKey(
        onnx_sha256=digest_of(path),
        tensorrt=version,
        compute_capability=capability(device),
        gpu=device.name,
        batch_dimension=batching.batch_dimension,
        most_rows=batching.max_batch_size,
        shapes=shapes.shapes,
        build=build,
    )


def capability(device: Device) -> str:
    """Such as `9.0`."""
    return ".".join(map(str, device.compute_capability))


def digest_of(path: Path) -> str:
    """SHA-256 of an ONNX file and of the files that its weights lie in. Releases the GIL while it reads."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    for location in sorted(onnx_file.external_files(path)):
        with (path.parent / location).open("rb") as file:
            digest.update(f"\0{location}\0{hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()


class PlanCache:
    """A folder of plans and timings.

    Args:
        folder: Made when something is kept; None: nothing is.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder / FOLDER if folder is not None else None

    @contextlib.contextmanager
    def locked(self, key: PlanKey, waiting: Callable[[], None], cancelled: Callable[[], bool]) -> Iterator[None]:
        """Holds a key's lock. It ends with the process.

        Args:
            key: The key.
            waiting: Called if another process has it.
            cancelled: Whether not to wait any longer.

        Raises:
            ModelLoadError: It was cancelled.
        """
        file = self._opened(key)
        if file is None:
            self._folder = None
            yield
            return
        with file:
            if not _taken(file):
                waiting()
                while True:
                    if cancelled():
                        raise ModelLoadError("nobody waits any more for a plan that another process builds")
                    if _taken(file):
                        break
                    time.sleep(POLL)
            yield

    def find(self, key: PlanKey, device: Device) -> tuple[Path, bytes, Sidecar] | None:
        """A kept plan; None if there is none, or a damaged one."""
        if self._folder is None:
            return None
        plan = self._folder / f"{key.name()}.plan"
        if not plan.exists():
            return None
        try:
            said = sidecar.read(plan)
            sidecar.check_place(said, plan, device, key.tensorrt)
            data = plan.read_bytes()
            sidecar.check_bytes(said, plan, data)
        except (ModelLoadError, OSError) as error:
            _log.warning("kept plan not usable", error=str(error))
            return None
        return plan, data, said

    def keep(self, key: PlanKey, data: bytes, said: Sidecar) -> None:
        """Keeps a plan, under its lock; a failure costs only the time to build it again, and is logged."""
        if self._folder is None:
            return
        plan = self._folder / f"{key.name()}.plan"
        try:
            replace(plan, data)
            sidecar.write(plan, said)
        except OSError as error:
            _log.warning("plan not kept", file=str(plan), error=str(error))

    def timings(self, key: PlanKey) -> bytes:
        """The kept timing cache of this GPU and version; empty if there is none."""
        file = self._timings(key)
        try:
            return file.read_bytes() if file is not None else b""
        except FileNotFoundError:
            return b""
        except OSError as error:
            _log.warning("timing cache not readable", file=str(file), error=str(error))
            return b""

    def keep_timings(self, key: PlanKey, timings: bytes) -> None:
        """Keeps a timing cache. Of two builds at a time the later one's stays, which costs only time."""
        file = self._timings(key)
        if file is None or not timings:
            return
        try:
            replace(file, timings)
        except OSError as error:
            _log.warning("timing cache not kept", file=str(file), error=str(error))

    def _opened(self, key: PlanKey) -> BinaryIO | None:
        """A key's lock file, in a folder that is ours alone, because what lies there is run; None if that can't be."""
        if self._folder is None:
            return None
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self._folder.stat()
            if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                _log.warning("plans are not kept", folder=str(self._folder), error="others can write there")
                return None
            return (self._folder / f"{key.name()}.lock").open("wb")
        except OSError as error:
            _log.warning("plans are not kept", folder=str(self._folder), error=str(error))
            return None

    def _timings(self, key: PlanKey) -> Path | None:
        if self._folder is None:
            return None
        machine = hashlib.sha256(f"{key.tensorrt}\0{key.compute_capability}\0{key.gpu}".encode()).hexdigest()[:16]
        return self._folder / f"timings-{machine}.bin"


def _taken(file: BinaryIO) -> bool:
    """Whether the lock of a file is ours now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
