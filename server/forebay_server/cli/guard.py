"""Runs a command and turns what goes wrong into one sentence on stderr and an exit code.

* 0: done.
* 1: it failed: the server refused or was not there, some rows have no result, a service is not healthy.
* 2: it was told something wrong: an option, a setting, a file, a model.
* 70: a fault of Forebay itself.
* 130: interrupted (Ctrl-C).

`FOREBAY_DEBUG=1` shows the traceback of any of them.
"""

import errno
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from forebay_server.errors import ConfigError

FAILED = 1
WRONG = 2
FAULT = 70
INTERRUPTED = 130

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


_UNREACHED = re.compile(r"^(\w+): .*?(?:ipv[46]:)?(\S+): Failed to connect to remote host: (.+)$", re.DOTALL)
"""What gRPC says when nobody listens, which goes round several corners."""


class Failed(Exception):
    """A command has failed. The text is one clear sentence."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `forebay` and returns its exit code. Without arguments, those of the process."""
    _open_outputs()
    from forebay_server.cli.root import root  # the guard has to stand before anything can fail

    try:
        result = root.main(
            list(arguments) if arguments is not None else None, prog_name="forebay", standalone_mode=False
        )
    except BaseException as error:  # noqa: BLE001  # nothing leaves but a sentence and a code
        return _explained(error)
    return result if isinstance(result, int) else 0


def _open_outputs() -> None:
    """Whoever closed our stdout or stderr (`>&-`) wants nothing of it; what writes there need not know."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  # open to the end


def _explained(error: BaseException) -> int:
    """Says what was wrong, and returns the exit code."""
    code, sentence = _judged(error)
    if os.environ.get("FOREBAY_DEBUG", "") not in {"", "0"}:
        traceback.print_exception(error)
    if sentence:
        click.echo(f"forebay: {sentence}", err=True)
    return code


def _judged(error: BaseException) -> tuple[int, str]:
    # Looked up rather than imported: who has not called a server has not loaded the client.
    client = sys.modules.get("forebay_client")
    match error:
        case KeyboardInterrupt() | click.exceptions.Abort():
            judged = INTERRUPTED, ""
        case SystemExit(code=int(code)):
            judged = code, ""
        case click.UsageError(ctx=context):
            help_page = f" (see {context.command_path} --help)" if context is not None else ""
            judged = WRONG, f"{error.format_message().rstrip('.')}{help_page}"
        case click.ClickException():
            judged = WRONG, error.format_message()
        case ConfigError():
            judged = WRONG, str(error)
        case Failed():
            judged = FAILED, str(error)
        case BrokenPipeError():
            _drop_output()  # whoever read it has gone
            judged = FAILED, ""
        case OSError() if isinstance(error.filename, str) or error.errno in _DISK:
            judged = FAILED, _told(error)
        case _ if client is not None and isinstance(error, client.ForebayError):
            judged = FAILED, _UNREACHED.sub(r"\1: no connection to \2: \3", str(error))
        case _:
            judged = FAULT, f"internal fault: {type(error).__name__}: {error}; FOREBAY_DEBUG=1 shows where"
    return judged


def _told(error: OSError) -> str:
    if isinstance(error.filename, str):
        return f"{error.filename}: {error.strerror}"
    _drop_output()  # it may be what could not be written
    return f"what was to be written could not be: {error.strerror}"


def _drop_output() -> None:
    """What is still buffered must not fail at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
