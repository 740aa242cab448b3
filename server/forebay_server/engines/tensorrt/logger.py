"""Where TensorRT's messages go: a logger that writes to ours, never to stdout, and a recorder of errors.

TensorRT's calls return None or False and say why elsewhere: to the error recorder of the object if it has one, else to
the logger. So each plan and each instance has a recorder, and whoever got a False asks it. Both are called by
TensorRT's own threads at any time; what they would raise would end on stderr, so they raise nothing.
"""

import threading
from collections import deque
from typing import Any, Final

import structlog

KEPT: Final = 16
"""Errors that a recorder holds; older ones are in the log only."""
LONGEST: Final = 500
"""Characters of TensorRT's text that go into a sentence."""

_log = structlog.get_logger(__name__)


class Errors:
    """What TensorRT has reported and nobody has asked for yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._errors: deque[tuple[str, str]] = deque(maxlen=KEPT)
        self._dropped = False

    def add(self, code: str, text: str) -> None:
        """Keeps an error."""
        _log.debug("tensorrt reports", code=code, text=text)
        with self._lock:
            self._dropped = self._dropped or len(self._errors) == KEPT
            self._errors.append((code, text))

    def all(self) -> list[tuple[str, str]]:
        """(name of the code, text) of each, oldest first."""
        with self._lock:
            return list(self._errors)

    def overflowed(self) -> bool:
        """Whether some were dropped since the last `clear`."""
        return self._dropped

    def clear(self) -> None:
        """Forgets them."""
        with self._lock:
            self._errors.clear()
            self._dropped = False

    def take(self) -> str:
        """The first of them in one line, because it is the cause of the others; then forgets them all."""
        errors = self.all()
        self.clear()
        return sentence(errors[0][1]) if errors else "it does not say why"

    def no_memory(self) -> bool:
        """Whether one of them says that the device has no memory."""
        return any(code == "FAILED_ALLOCATION" or "out of memory" in text.lower() for code, text in self.all())


def sentence(text: str) -> str:
    """TensorRT's text in one line, printable and not too long."""
    line = " ".join(text.split()).rstrip(".")
    return "".join(character if character.isprintable() else "?" for character in line)[:LONGEST]


def make_logger(trt: Any) -> Any:
    """Makes a logger for a library.

    Its words at INFO are of interest only to whoever looks for something, so they are `debug` here. Those at VERBOSE,
    thousands in a build, are dropped: each costs a turn of the GIL already.
    """
    severity = trt.ILogger.Severity
    say = {
        severity.INTERNAL_ERROR: _log.error,
        severity.ERROR: _log.error,
        severity.WARNING: _log.warning,
        severity.INFO: _log.debug,
    }

    class Logger(trt.ILogger):  # type: ignore[misc]  # the class comes with the library
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            write = say.get(severity)
            if write is not None:
                write("tensorrt", text=sentence(msg))

    return Logger()


def make_recorder(trt: Any, errors: Errors) -> Any:
    """Makes an error recorder that puts into `errors` what it is told."""
    codes = trt.ErrorCodeTRT

    class Recorder(trt.IErrorRecorder):  # type: ignore[misc]  # as above
        def __init__(self) -> None:
            trt.IErrorRecorder.__init__(self)

        def report_error(self, code: Any, text: str) -> bool:
            errors.add(getattr(code, "name", str(code)), str(text))
            return True  # every error ends what TensorRT is doing

        def num_errors(self) -> int:
            return len(errors.all())

        def get_num_errors(self) -> int:  # what the bindings call; the documentation has the other name
            return len(errors.all())

        def get_error_code(self, index: int) -> Any:
            known = errors.all()
            return getattr(codes, known[index][0]) if 0 <= index < len(known) else codes.SUCCESS

        def get_error_desc(self, index: int) -> str:
            known = errors.all()
            return known[index][1] if 0 <= index < len(known) else ""

        def has_overflowed(self) -> bool:
            return errors.overflowed()

        def clear(self) -> None:
            errors.clear()

    return Recorder()
