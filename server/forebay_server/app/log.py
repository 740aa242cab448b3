"""How log lines look, which of them are written, and who writes them. Set up once, by `app.serve`.

For people on a terminal, as JSON elsewhere. A storm of warnings of one kind is sampled (`telemetry.sampling`); lines
are written by a thread of their own (`app.log_writer`). Tracebacks have no local variables: those hold what callers
sent.
"""

import json
import logging
import sys
import threading
import time
from typing import Any, Final

import structlog

from forebay_server.app.log_writer import LineLogger, LineWriter
from forebay_server.config.tree import LogConfig
from forebay_server.services.complaints import SAMPLED
from forebay_server.telemetry.sampling import Sampler

_log = structlog.get_logger(__name__)

SAMPLED_LEVELS: Final = frozenset({"warning", "error", "critical"})


class SampleStorms:
    """A processor that leaves out most lines of a storm, by their event. Callable from any thread."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._lock = threading.Lock()

    def __call__(self, _logger: Any, method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        """As structlog wants it.

        Raises:
            DropEvent: The line is not to be written.
        """
        if event.pop(SAMPLED, False) or event.get("level", method) not in SAMPLED_LEVELS:
            return event
        with self._lock:
            suppressed = self._sampler.admit(str(event.get("event")), time.monotonic())
        if suppressed is None:
            raise structlog.DropEvent
        if suppressed:
            event["suppressed"] = suppressed
        return event

    def settle(self, at_once: bool) -> None:  # noqa: FBT001  # as the writer calls it
        """Writes how many lines were left out, where no line after them has said it."""
        with self._lock:
            told = self._sampler.settle(time.monotonic(), at_once=at_once)
        for event, count in told:
            _log.warning("lines_not_written", of=event, suppressed=count, sampled=True)


def configure_logging(config: LogConfig) -> LineWriter:
    """Sets up structlog for the process. Lines go to stderr; stdout belongs to the commands.

    Returns:
        Who writes the lines: started, and to be closed by the caller.
    """
    as_text = config.format == "text" or (config.format == "auto" and sys.stderr.isatty())
    storms = SampleStorms(Sampler())
    renderer: structlog.types.Processor
    processors: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        storms,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if as_text:
        # The formatter that structlog prefers shows local variables.
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    else:
        processors.append(structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer()
    writer = LineWriter(sys.stderr.fileno(), _dropped)
    writer.on_idle = storms.settle
    writer.start()
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, config.level.upper())),
        logger_factory=lambda *_: LineLogger(writer),
        cache_logger_on_first_use=True,
    )
    return writer


def _dropped(lines: int) -> str:
    """The line that says so; made where no logger may be used."""
    return json.dumps({"event": "log_lines_dropped", "lines": lines, "level": "warning"})
