"""How log lines look: for people on a terminal, as JSON elsewhere. Called once, by `app.serve`."""

import logging
import sys

import structlog

from forebay_server.config.tree import LogConfig


def configure_logging(config: LogConfig) -> None:
    """Sets up structlog for the process. Lines go to stderr; stdout belongs to the commands."""
    as_text = config.format == "text" or (config.format == "auto" and sys.stderr.isatty())
    renderer: structlog.types.Processor
    processors: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if as_text:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    else:
        processors.append(structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, config.level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
