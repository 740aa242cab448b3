"""Metrics of a server: asks its parts for their figures, and runs the exporters.

Figures are copied in the dispatcher, because they move there, in portions that take a fraction of a millisecond each,
and become samples in the exporter's thread. Nothing is built here that the settings do not ask for but the counting
itself.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import metadata
from typing import TypeVar

from forebay_server.app.dispatcher import Dispatcher
from forebay_server.app.jobs import Jobs
from forebay_server.app.wiring import MIB
from forebay_server.config.tree import Config
from forebay_server.models.catalogue import Catalogue
from forebay_server.models.served import ModelState
from forebay_server.scheduling.core import Core
from forebay_server.services.inference import InferenceService
from forebay_server.services.status import CODE_NAMES
from forebay_server.services.vitals import SERVER, HealthBoard, Serving
from forebay_server.telemetry import names, process
from forebay_server.telemetry.exposition import expose
from forebay_server.telemetry.families import expose_families
from forebay_server.telemetry.feed import Feed
from forebay_server.telemetry.formats import Format
from forebay_server.telemetry.gpu import Gpus
from forebay_server.telemetry.otlp import OtlpMetrics, options
from forebay_server.telemetry.samples import Sample, of_version
from forebay_server.telemetry.scrape import ScrapeServer
from forebay_server.telemetry.statistics import ModelFigures, ModelKey, Statistics
from forebay_server.telemetry.tallies import Tallies
from forebay_server.telemetry.tracing.export import SpanFigures
from forebay_server.wire.port import Event, Method, Wire

PORTION = 64  # versions of models that are copied at a time: a third of a millisecond
PATIENCE = 5.0  # seconds for the dispatcher to come to it

VERSION = metadata.version("forebay")

_T = TypeVar("_T")

CODES = {**CODE_NAMES, "OK": "OK", "CANCELLED": "CANCELLED"}


class Metrics:
    """Counts from the beginning; `start` comes when all other parts are there.

    Args:
        config: All settings.
        core: The scheduler.
        clock: Monotonic seconds.

    Attributes:
        statistics: What models have done.
        feed: Carries events there.
    """

    def __init__(self, config: Config, core: Core, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._core = core
        self._clock = clock
        self._tallies = Tallies()
        self.statistics = Statistics(CODE_NAMES, config.tenants)
        self.feed = Feed(self.statistics, self._tallies, core)
        self._longest = 0.0
        self._lock = threading.Lock()
        self._gpus = Gpus()
        self._began = 0.0
        self._scrapes: ScrapeServer | None = None
        self._otlp: OtlpMetrics | None = None

    @property
    def address(self) -> str:
        """Where Prometheus may scrape; empty: nowhere."""
        return self._scrapes.address if self._scrapes is not None else ""

    def begun(self, event: Event, method: Method) -> None:
        """A call of a lesser service has come; a `services.calls.Watcher`."""

    def ended(self, _call: int, method: str, code: str, seconds: float) -> None:
        """And has ended."""
        self._tallies.count(names.CALLS, method, code)
        self._tallies.durations(names.CALL_DURATION, method).record(seconds)

    def start(
        self,
        *,
        wire: Wire,
        dispatcher: Dispatcher,
        catalogue: Catalogue,
        board: HealthBoard,
        inference: InferenceService,
        jobs: Jobs | None,
        spans: Callable[[], SpanFigures | None],
    ) -> None:
        """Starts the exporters that the settings ask for.

        Raises:
            ConfigError: An address is taken, or a setting or variable is wrong.
        """
        self._wire, self._dispatcher, self._catalogue = wire, dispatcher, catalogue
        self._board, self._inference, self._jobs, self._spans = board, inference, jobs, spans
        if jobs is not None:
            self.feed.listen(*jobs.events)
        chosen = options(self._config.telemetry.metrics, os.environ)
        if self._config.telemetry.prometheus.address:
            self._scrapes = ScrapeServer(self._config.telemetry.prometheus.address, self._render)
        if chosen is not None:
            self._otlp = OtlpMetrics(chosen, self.read)
        if self._scrapes is None and self._otlp is None:
            return
        self._began = process.started()
        self._gpus.start()
        try:
            for exporter in (self._otlp, self._scrapes):
                if exporter is not None:
                    exporter.start()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the exporters, while the dispatcher still moves: they may ask it once more."""
        for exporter in (self._scrapes, self._otlp):
            if exporter is not None:
                exporter.close()
        self._scrapes = self._otlp = None
        self._gpus.close()

    def read(self) -> list[Sample]:
        """All samples. From any thread but the dispatcher's.

        Raises:
            DispatcherEnded: There is nobody to ask.
            TimeoutError: The dispatcher does not answer.
        """
        call = self._dispatcher.call
        asked = self._clock()
        tallies, keys, found = call(partial(self._timed, partial(self._copy_server, asked)), PATIENCE)
        for start in range(0, len(keys), PORTION):
            portion = keys[start : start + PORTION]
            copies = call(partial(self._timed, partial(self._copy_versions, portion)), PATIENCE)
            for key, done, held in copies:
                found += held
                found += of_version(key, done, CODES)
        found += tallies.samples()
        found.append((names.SNAPSHOT, (), self._longest))
        if self._otlp is not None:
            found.append((names.EXPORTS, ("sent",), self._otlp.sent))
            found.append((names.EXPORTS, ("failed",), self._otlp.failed))
        spans = self._spans()
        if spans is not None:
            found.append((names.SPANS, ("exported",), spans.exported))
            found.append((names.SPANS, ("dropped",), spans.dropped))
            found.append((names.SPANS, ("suppressed",), spans.suppressed))
            found.append((names.SPANS_QUEUED, (), spans.queued))
        with self._lock:
            found += process.samples(self._began)
            found += self._gpus.samples()
        return found

    def _render(self, chosen: Format) -> bytes:
        if chosen is Format.PROTOBUF:
            return expose_families(self.read(), breathe=_breathe)
        return expose(self.read(), openmetrics=chosen is Format.OPENMETRICS, breathe=_breathe)

    # --- In the dispatcher's thread -----------------------------------------------------------------------------------

    def _timed(self, action: Callable[[], _T]) -> _T:
        began = self._clock()
        try:
            return action()
        finally:
            self._longest = max(self._longest, self._clock() - began)

    def _copy_server(self, asked: float) -> tuple[Tallies, list[ModelKey], list[Sample]]:
        lag = self._clock() - asked
        self.feed.absorb()
        keys = dict.fromkeys(
            served.key for name in self._catalogue.names() for served in self._catalogue.versions(name)
        )
        keys.update(dict.fromkeys(self.statistics.keys()))
        return self._tallies.copy(), list(keys), [(names.LAG, (), lag), *self._server()]

    def _server(self) -> Iterator[Sample]:
        figures = self._wire.figures()
        yield names.BUILD, (VERSION, self._wire.name), 1
        yield names.SERVING, (), int(self._board.get(SERVER) is Serving.SERVING)
        yield names.SERVER_HELD, (), self._core.held_bytes + self._core.external_bytes
        yield names.SERVER_HELD_LIMIT, (), int(self._config.limits.max_held_mib * MIB)
        for metric, value in (
            (names.CONNECTIONS, figures.connections),
            (names.CONNECTIONS_ACCEPTED, figures.connections_total),
            (names.WIRE_CALLS, figures.calls),
            (names.WIRE_CALLS_BEGUN, figures.calls_total),
            (names.WIRE_REFUSED, figures.refused_total),
            (names.RECEIVED, figures.received_bytes_total),
            (names.SENT, figures.sent_bytes_total),
            (names.WIRE_HELD, figures.held_bytes),
        ):
            if value >= 0:  # the front end knows it
                yield metric, (), value
        yield names.STREAMS, (), self._inference.streams.open()
        for tenant, count in self.statistics.tenant_refusals.items():
            yield names.TENANT_REFUSALS, (tenant,), count
        for tenant in self._config.tenants:
            yield names.TENANT_QUEUED, (tenant,), self._core.tenant_rows(tenant)
        if self._jobs is not None:
            yield from self._of_jobs(self._jobs.gauges())

    def _of_jobs(self, figures: Mapping[str, float]) -> Iterator[Sample]:
        yield names.JOBS, ("pending",), figures["pending"]
        yield names.JOBS, ("running",), figures["running"]
        yield names.JOBS_OLDEST, (), figures["oldest"]
        yield names.JOBS_LIMIT, (), self._config.jobs.max_pending
        yield names.STORE_WAITING, (), figures["waiting"]
        yield names.STORE_HEALTHY, (), figures["healthy"]

    def _copy_versions(self, keys: list[ModelKey]) -> list[tuple[ModelKey, ModelFigures, list[Sample]]]:
        return [(key, self.statistics.of(key).copy(), list(self._version(key))) for key in keys]

    def _version(self, key: ModelKey) -> Iterator[Sample]:
        name, version = key
        if not name:
            return
        labels = (name, str(version))
        served = next((each for each in self._catalogue.versions(name) if each.version == version), None)
        if served is not None:
            yield names.READY, labels, int(served.state is ModelState.READY)
        try:
            now = self._core.figures(key)
        except KeyError:
            return
        yield names.QUEUED_ROWS, labels, now.queued_rows
        yield names.HELD_BYTES, labels, now.held_bytes
        yield names.RUNNING_BATCHES, labels, now.running_batches
        yield names.QUEUE_LANES, labels, now.lanes
        yield names.INSTANCES, labels, now.instances
        yield names.USABLE_INSTANCES, labels, now.usable_instances
        yield names.WAIT_MARGIN, labels, now.wait_margin


def _breathe() -> None:
    """Gives up the GIL: whoever waits for it goes first."""
    time.sleep(0)
