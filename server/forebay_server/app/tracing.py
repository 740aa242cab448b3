"""Tracing of a server: who keeps what becomes spans, and who sends it. Without tracing there is neither."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from forebay_server.config.tree import TracingConfig
from forebay_server.models.served import ModelState
from forebay_server.scheduling.runner import Watcher
from forebay_server.services import jobs
from forebay_server.services.status import CODE_NAMES
from forebay_server.services.traces import CallTraces
from forebay_server.telemetry.tracing.export import Exporter, SpanFigures
from forebay_server.telemetry.tracing.names import LOAD, READ, WARM_UP
from forebay_server.telemetry.tracing.options import options
from forebay_server.telemetry.tracing.sampling import Tail
from forebay_server.telemetry.tracing.tracer import Step, Tracer

PATIENT = (f"{jobs.NAME}/Result",)
"""Methods whose callers wait for something."""
CLOSE_PATIENCE = 2.0  # seconds for the last spans

_STEPS = {ModelState.LOADING: READ, ModelState.WARMING: WARM_UP}

_log = structlog.get_logger(__name__)


class Tracing:
    """The spans of a server.

    Args:
        config: The settings.
        events: Where exemplars are reported.
        clock: Monotonic seconds.
        environment: The standard variables.

    Attributes:
        tracer: Who keeps what becomes spans; None: there is no tracing.
        calls: Who keeps the calls of services that know nothing of spans; None likewise.

    Raises:
        ConfigError: The settings or variables make no sense, or the SDK is missing.
    """

    def __init__(
        self,
        config: TracingConfig,
        *,
        events: list[tuple[Any, ...]],
        clock: Callable[[], float],
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self.tracer: Tracer | None = None
        self.calls: CallTraces | None = None
        self._exporter: Exporter | None = None
        chosen = options(config, environment)
        if chosen is None:
            return
        self.tracer = Tracer(
            chosen.sampler,
            Tail(chosen.slow, chosen.tail_per_second),
            codes=CODE_NAMES,
            clock=clock,
            most=chosen.most,
            events=events,
        )
        self.calls = CallTraces(self.tracer, patient=PATIENT)
        self._exporter = Exporter(self.tracer, chosen)
        _log.info("tracing", protocol=chosen.protocol, sampler=chosen.sampler._asdict())

    @property
    def watcher(self) -> Watcher | None:
        """Who is to be told of batches."""
        return None if self.tracer is None else self.tracer.batch

    def traceparent(self, call: int) -> str:
        """The context for what a call asks for and that begins later."""
        return "" if self.calls is None else self.calls.traceparent(call)

    def start(self) -> None:
        """Begins to send."""
        if self._exporter is not None:
            self._exporter.start()

    def close(self) -> None:
        """Sends what is left."""
        if self._exporter is not None:
            self._exporter.close(CLOSE_PATIENCE)

    def figures(self) -> SpanFigures | None:
        """What has become of spans; None without tracing. From any thread."""
        return None if self._exporter is None else self._exporter.figures()


class LoadSpans:
    """The spans of one model's way into service. Used by the loader's thread."""

    def __init__(self, tracer: Tracer | None, model: str, version: int) -> None:
        self._whole: Step | None = None if tracer is None else tracer.model(LOAD, model, version)
        self._step: Step | None = None

    def step(self, state: ModelState) -> None:
        """The next step begins."""
        self._end_step("")
        if self._whole is not None and state in _STEPS:
            self._step = self._whole.inner(_STEPS[state])

    def end(self, error: Exception | None = None) -> None:
        """It is in service, or can't be."""
        kind = "" if error is None else type(error).__name__
        self._end_step(kind)
        if self._whole is not None:
            self._whole.end(kind)

    def _end_step(self, error: str) -> None:
        step, self._step = self._step, None
        if step is not None:
            step.end(error)
