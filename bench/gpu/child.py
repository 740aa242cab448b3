"""`python -m bench.gpu.child PART FILE`: runs one part of the GPU check and writes what came of it. See `outcome`.

Anything may happen to this process; the parent reads the file, and judges by the exit status if it says too little.
"""

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path

from bench.gpu.outcome import FAILED, NOT_EXECUTED, PASSED, Notes, NotExecuted, Outcome
from bench.gpu.parts import PARTS, Part


def missing(part: Part) -> str:
    """The first package that a part needs and that is not installed; or nothing."""
    for name in part.needs:
        try:
            found = importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:  # the package above it
            found = False
        if not found:
            return name
    return ""


def execute(part: Part, notes: Notes) -> None:
    """Runs a part.

    Raises:
        NotExecuted: It can't run here.
    """
    if name := missing(part):
        raise NotExecuted(f"the package {name} is not installed")
    from forebay_server.engines.gpu.device import NoDevice  # noqa: PLC0415  # wants packages that may be missing

    try:
        getattr(importlib.import_module(part.module), part.function)(notes)
    except NoDevice as error:
        raise NotExecuted(str(error)) from error


def main() -> None:
    """The command."""
    name, file = sys.argv[1:]
    part = PARTS[name]
    notes = Notes(Path(file), Outcome(part=name, title=part.title))
    try:
        execute(part, notes)
    except NotExecuted as error:
        notes.end(NOT_EXECUTED, str(error))
    except ModuleNotFoundError as error:
        notes.end(NOT_EXECUTED, f"the package {error.name} is not installed")
        traceback.print_exc()
    except Exception as error:  # noqa: BLE001  # whatever it is, it belongs in the report
        notes.end(FAILED, f"{type(error).__name__}: {error}")
        traceback.print_exc()
    else:
        notes.end(PASSED)


if __name__ == "__main__":
    main()
