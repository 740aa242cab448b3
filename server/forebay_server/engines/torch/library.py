"""The library torch, imported where a model needs it, and what is asked of it in more than one place."""

import logging
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forebay_server.engines.base import ModelLoadError
from forebay_server.engines.torch import target
from forebay_server.engines.torch.target import Target

_lock = threading.Lock()


def imported() -> Any:
    """The library.

    Raises:
        ModelLoadError: It is not installed, or can't be loaded.
    """
    with _lock:
        try:
            import torch  # noqa: PLC0415  # heavy: only where a model needs it
        except (ImportError, OSError) as error:  # OSError: a library that it is linked with is missing
            raise ModelLoadError(f"torch can't be imported (pip install 'forebay[torch]'): {error}") from error
    return torch


def here(torch: Any, device: str) -> Target:
    """What there is to run packages on.

    Args:
        torch: The library.
        device: `cpu`, `cuda:0`.

    Raises:
        ModelLoadError: There is no such GPU, or this torch can't use one.
    """
    capability = None
    if device != "cpu":
        index = int(device.partition(":")[2] or 0)
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if index >= count:
            raise ModelLoadError(f"torch {torch.__version__} has no {device} here; it sees {count} GPUs")
        capability = torch.cuda.get_device_capability(index)
    return Target(
        device=device,
        platform=sys.platform,
        machine=platform.machine(),
        instructions=instructions_here(),
        compute_capability=capability,
        torch=str(torch.__version__),
    )


def instructions_here() -> frozenset[str]:
    """What this machine's processor has."""
    return target.instructions(target.CPUINFO.read_text())


def open_package(path: Path, device: str, *, single_threaded: bool) -> Any:
    """Loads a package that was found fit to run here: its code is now part of this process.

    Args:
        path: The package.
        device: Where it is to run.
        single_threaded: Whether one thread at a time will run it. Under graph capture it must be so.

    Returns:
        A callable of a list of tensors in the order of its inputs, which it empties, for the list of its outputs.

    Raises:
        ModelLoadError: Torch can't load it.
    """
    from torch._inductor import aoti_load_package, config  # noqa: PLC0415  # heavy; documented in spite of its name

    index = -1 if device == "cpu" else int(device.partition(":")[2] or 0)
    try:
        # Torch would compile and run test programs to find out what the processor can do, and complain of a package if
        # there is no compiler. What the processor can do is known already.
        with config.patch({"cpp.vec_isa_ok": True}), _quiet("torch._inductor.package.package"):
            package = aoti_load_package(str(path), run_single_threaded=single_threaded, device_index=index)
    except Exception as error:  # whatever torch says of a package
        raise ModelLoadError(f"{path}: torch can't load it: {sentence(error)}") from error
    return package.loader.boxed_run


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keeps warnings of a logger from the log."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def sentence(error: BaseException) -> str:
    """What torch says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = "".join(character if character.isprintable() else "?" for character in (lines[0] if lines else ""))
    return text[:500] or type(error).__name__
