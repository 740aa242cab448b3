"""Finds TensorRT's Python bindings, full or lean, and keeps what a process has one of: their logger.

The full library builds plans and runs those of its own version. The lean one (a tenth of the size) runs only
version-compatible plans. Both may be loaded at a time. Of either API only what 10.13 to 10.16 and 11 have in common is
used. Any thread may call.
"""

import importlib
import re
import threading
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from forebay_server.engines.base import ModelLoadError
from forebay_server.engines.gpu.device import Device
from forebay_server.engines.tensorrt.logger import make_logger

FULL: Final = ("tensorrt", "tensorrt_bindings")
LEAN: Final = ("tensorrt_lean", "tensorrt_lean_bindings")
"""The bindings come under the second name; the first is the one of a package that only hands them on."""
OLDEST: Final = (10, 13)


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """TensorRT's bindings."""

    trt: Any
    """The module."""
    version: str
    """Such as `10.16.1.11`."""
    lean: bool
    logger: Any
    """One for all, because TensorRT keeps the first that it is given; it outlives everything."""


_libraries: dict[bool, Library] = {}
_lock = threading.Lock()


def library(device: Device, *, lean: bool = False) -> Library:
    """The bindings.

    Args:
        device: Shows that there is a driver; nothing is asked of it.
        lean: Whether those of the lean runtime.

    Raises:
        ModelLoadError: They are not installed, don't find their libraries, or are too old.
    """
    del device
    with _lock:
        if lean not in _libraries:
            trt = _imported(LEAN if lean else FULL, lean=lean)
            version = str(trt.__version__)
            if numbers(version)[:2] < OLDEST:
                raise ModelLoadError(f"TensorRT {version} is too old: it takes {'.'.join(map(str, OLDEST))} or newer")
            _libraries[lean] = Library(trt=trt, version=version, lean=lean, logger=make_logger(trt))
        return _libraries[lean]


def numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version, to compare: `10.14.1.48.post1` is (10, 14, 1, 48, 1)."""
    return tuple(map(int, re.findall(r"\d+", version)))


def _imported(names: tuple[str, ...], *, lean: bool) -> ModuleType:
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise ModelLoadError(f"{name} is installed, but can't be imported: {error}") from error
        except (ImportError, OSError) as error:  # as a rule a library that it needs is missing
            raise ModelLoadError(f"{name} is installed, but can't be imported: {error}") from error
    if lean:
        raise ModelLoadError(
            "TensorRT's lean runtime is not installed (pip install tensorrt-lean-cu13-bindings tensorrt-lean-cu13-libs)"
        )
    raise ModelLoadError(
        "TensorRT is not installed (pip install 'forebay[tensorrt]'; docs/tensorrt.md says from where)"
    )
