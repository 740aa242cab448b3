"""A server, put together: the one place that knows which concrete classes meet.

`Server` can live in any process and thread (tests start several); signals and exit codes are `app.lifecycle`'s. Its
methods may be called from any thread but the dispatcher's.
"""

import threading
import time
from collections.abc import Callable
from importlib import metadata

import structlog

from forebay_server.app.certificates import Certificates, files_of
from forebay_server.app.dispatcher import Dispatcher, DispatcherEnded, endpoints_of
from forebay_server.app.hosting import Hosting
from forebay_server.app.jobs import Jobs
from forebay_server.app.metrics import Metrics
from forebay_server.app.tracing import Tracing
from forebay_server.app.wiring import configured, exposures, server_policy, wire_limits
from forebay_server.background import answering
from forebay_server.config.tree import Config
from forebay_server.models.catalogue import Catalogue
from forebay_server.scheduling.core import Core
from forebay_server.scheduling.latency import Point
from forebay_server.scheduling.policy import ModelKey
from forebay_server.scheduling.runner import Runner
from forebay_server.services.calls import CallOutbox
from forebay_server.services.complaints import Complaints
from forebay_server.services.health import HealthService
from forebay_server.services.inference import InferenceService
from forebay_server.services.intake import Intake
from forebay_server.services.models import ModelService
from forebay_server.services.reflection import ReflectionService
from forebay_server.services.service import Outbox, Service
from forebay_server.services.statistics import Accounts, ServerFigures
from forebay_server.services.status import refusals
from forebay_server.services.vitals import HealthBoard, Vitals
from forebay_server.telemetry.tracing.export import SpanFigures
from forebay_server.wire.choose import open_wire
from forebay_server.wire.port import Wire, WireConfig

CLOSE_GRACE = 5.0  # seconds for answers that are on their way out when everything else has ended
CLOSE_PATIENCE = 10.0  # seconds for batches that run, and for the dispatcher to come to it
SHORTEST_CALL = 1.0  # seconds that the dispatcher has for a question, however short the grace is
RELEASE = metadata.version("forebay")
CPU = "cpu"  # what engines call it
DRAIN_POLL = 0.01  # seconds between looks at whether the last request has been answered

_log = structlog.get_logger(__name__)


class Server:
    """A gRPC inference server.

    Args:
        config: All settings.
        on_failed_start: Told why, from the loader thread, if a model of the settings can't be loaded.
        on_fault: Told, from the dispatcher's thread, if a fault of the server ended it. Nothing is answered any more.
        on_devices_lost: Told, from the dispatcher's thread, with the name of the last one, if all devices but the CPU
            that models ran on are lost to this process. What runs on the CPU is still answered.

    Attributes:
        addresses: Where each exposure listens, by its name, port 0 resolved, and under `prometheus` where metrics are
            served; empty before `start`.
        wire_name: `native` or `grpc.aio`; empty before `start`.
    """

    def __init__(
        self,
        config: Config,
        *,
        on_failed_start: Callable[[str], None] | None = None,
        on_fault: Callable[[], None] | None = None,
        on_devices_lost: Callable[[str], None] | None = None,
    ) -> None:
        self._config = config
        self._on_devices_lost = on_devices_lost
        self._on_failed_start = on_failed_start
        self._on_fault = on_fault
        self._clock = time.monotonic
        self._unusable: set[ModelKey] = set()
        self._closed = False
        self._certificates = Certificates(files_of(config.server), self._renew, config.server.certificates_s)
        self._jobs: Jobs | None = None
        self.addresses: dict[str, str] = {}
        self.wire_name = ""

    def start(self) -> None:
        """Listens, and begins to load the models. Until they are ready, health says NOT_SERVING.

        Raises:
            ConfigError: An address is taken, a certificate can't be read, two models have one name, ...
            StoreNotOpened: The job store can't be used. (A `ConfigError`, too.)
        """
        self._began, self._started = self._clock(), time.time()
        self._join()
        self._hosting.announce()
        self._certificates.look()  # before they are read
        self.addresses = self._listen()
        self._certificates.start()
        self._tracing.start()
        with answering():
            self._dispatcher.start()
        if self._metrics.address:
            self.addresses["prometheus"] = self._metrics.address
        _log.info("listening", wire=self.wire_name, **self.addresses)
        if self._config.server.wire == "auto" and self.wire_name != "native":
            _log.warning("slow_front_end", because="forebay-native is not installed, so gRPC is served by grpc.aio")
        self._hosting.start()

    def _join(self) -> None:
        """Makes all parts, from the scheduler outwards. None acts yet."""
        config, clock = self._config, self._clock
        self._outbox: Outbox = []
        self._catalogue = Catalogue()
        self._board = HealthBoard()
        core = Core(server_policy(config))
        self._metrics = Metrics(config, core, clock)
        self._tracing = Tracing(config.telemetry.tracing, events=self._metrics.feed.events, clock=clock)
        self._runner = Runner(core, wake=self._wake, clock=clock, watcher=self._tracing.watcher)
        self._intake = self._make_intake()
        self._calls = CallOutbox(self._outbox, clock)
        self._complaints = Complaints(clock)
        health = self._lesser(HealthService(self._board, self._calls, max_watchers=config.limits.watchers).service())
        offered = self._make_services(health)
        self._exposures = exposures(config, public=offered, operator=offered, probe=[health])
        self._wire = self._make_wire(offered)
        self.wire_name = self._wire.name
        self._dispatcher = self._make_dispatcher(offered)
        self._hosting = Hosting(
            config,
            catalogue=self._catalogue,
            runner=self._runner,
            vitals=self._vitals,
            intake=self._intake,
            dispatcher=self._dispatcher,
            on_failed_start=self._on_failed_start,
            tracer=self._tracing.tracer,
        )
        self._runner.listen(self._instances_changed)
        self._runner.listen_for_devices(self._device_lost)

    def _make_intake(self) -> Intake:
        server = self._config.server
        return Intake(
            self._catalogue,
            self._runner.core,
            clock=self._clock,
            default_deadline=server.default_deadline_s,
            max_deadline=server.max_deadline_s,
            trusted=[exposure.trusted for exposure in configured(server).values()],
            tenant_key=server.tenant_key,
            max_response=wire_limits(self._config).max_send_bytes,
            events=self._metrics.feed.events,
        )

    def _make_services(self, health: Service) -> list[Service]:
        """All services in the order of their methods, and the rules of their health."""
        config, metrics = self._config, self._metrics
        self._inference = InferenceService(
            self._intake,
            self._outbox,
            stream_window=config.limits.stream_window,
            max_send_bytes=wire_limits(config).max_send_bytes,
            complaints=self._complaints,
            tracer=self._tracing.tracer,
        )
        inference = self._inference.service()
        accounts = Accounts(self._runner.core.figures, self._costs, metrics.statistics, self._clock)
        models = ModelService(self._catalogue, accounts, self._figures, self._calls, refresh=metrics.feed.absorb)
        offered = [inference, self._seen(models.service()), health]
        if config.jobs.store:
            self._jobs = self._make_jobs()
            offered.append(self._seen(self._jobs.service))
        if config.server.reflection:
            reflection = ReflectionService([service.name for service in offered], self._calls)
            offered += map(self._lesser, reflection.services())
        self._vitals = Vitals(
            self._board,
            services=[service.name for service in offered if service is not inference],
            inference=[inference.name],
            startup_models=Hosting.names_of(config.models),
        )
        return offered

    def _make_jobs(self) -> Jobs:
        return Jobs(
            self._config,
            limits=wire_limits(self._config),
            catalogue=self._catalogue,
            runner=self._runner,
            intake=self._intake,
            outbox=self._calls,
            complaints=self._complaints,
            post=self._post,
            tracing=self._tracing,
            clock=self._clock,
        )

    def _make_wire(self, offered: list[Service]) -> Wire:
        limits = wire_limits(self._config)
        return open_wire(
            self._config.server.wire,
            WireConfig(
                methods=[endpoint.method for endpoint in endpoints_of(offered)],
                exposures=self._exposures,
                refusals=refusals(max_receive_bytes=limits.max_receive_bytes, max_send_bytes=limits.max_send_bytes),
                limits=limits,
                busy_poll=self._config.server.busy_poll_s,
            ),
        )

    def _make_dispatcher(self, offered: list[Service]) -> Dispatcher:
        feed, core = self._metrics.feed, self._runner.core
        return Dispatcher(
            wire=self._wire,
            runner=self._runner,
            endpoints=endpoints_of(offered),
            outbox=self._outbox,
            flushes=[self._inference.flush, self._look_after_jobs, self._complaints.flush],
            afterwards=feed.flush,
            timed=self._jobs.timed if self._jobs is not None else (),
            watchdog=self._config.server.watchdog_s or None,
            held_bytes=lambda held: setattr(core, "external_bytes", held),
            turn_times=feed.turns,
            on_fault=self._on_fault,
        )

    def _listen(self) -> dict[str, str]:
        """Starts what may fail to: the job store, the exporters of metrics, the front end. Gives where that listens."""
        if self._jobs is not None:
            self._jobs.start()
        try:
            self._metrics.start(
                wire=self._wire,
                dispatcher=self._dispatcher,
                catalogue=self._catalogue,
                board=self._board,
                inference=self._inference,
                jobs=self._jobs,
                spans=self._tracing.figures,
            )
            with answering():
                bound = self._wire.start()
        except BaseException:
            self._metrics.close()
            if self._jobs is not None:
                self._jobs.close()
            raise
        return {exposure.name: address for exposure, address in zip(self._exposures, bound, strict=True)}

    def _seen(self, service: Service) -> Service:
        """The same service, with its calls counted and, if there is tracing, with spans."""
        return self._calls.watched(service, self._metrics, *filter(None, [self._tracing.calls]))

    def _lesser(self, service: Service) -> Service:
        """The same service, with its calls counted: nobody wants spans of these."""
        return self._calls.watched(service, self._metrics)

    @property
    def start_failure(self) -> str:
        """Why a model of the settings could not be loaded; empty if none failed."""
        return self._hosting.failure

    def spans(self) -> SpanFigures | None:
        """What has become of spans; None without tracing."""
        return self._tracing.figures()

    def wait_ready(self, timeout: float | None) -> bool:
        """Waits until every model of the settings is ready, or one has failed.

        Returns:
            Whether all are ready.
        """
        return self._hosting.settled.wait(timeout) and not self._hosting.failure

    def renew_certificates(self) -> None:
        """Has the TLS files read again, soon; new connections use them. Those that can't be used change nothing.

        Handlers of signals may call it, before `start` as well.
        """
        self._certificates.ask()

    def _renew(self) -> None:
        self._wire.renew_certificates()

    def _costs(self, key: ModelKey) -> list[Point]:
        return self._hosting.costs[key].points()

    def _figures(self) -> ServerFigures:
        core = self._runner.core
        return ServerFigures(
            started=self._started,
            uptime=self._clock() - self._began,
            release=RELEASE,
            front_end=self.wire_name,
            draining=self._vitals.draining,
            held_bytes=core.held_bytes + core.external_bytes,
            jobs=self._jobs.figures() if self._jobs is not None else None,
        )

    def _look_after_jobs(self) -> None:
        if self._jobs is not None:
            self._jobs.look_after(self._vitals)

    def _post(self, action: Callable[[], None]) -> None:
        # The dispatcher is made after the services.
        self._dispatcher.post(action)

    def _wake(self) -> None:
        # The wire is opened after the runner was made; until then nobody has to be woken.
        self._wire.wake()

    def _instances_changed(self, key: ModelKey, usable: int, _total: int) -> None:
        """A model is unhealthy while one of its versions has no instance that works."""
        if usable:
            self._unusable.discard(key)
        else:
            self._unusable.add(key)
        self._vitals.stuck(key[0], stuck=any(name == key[0] for name, _ in self._unusable))

    def _device_lost(self, device: str) -> None:
        if self._runner.core.devices() <= {CPU} and self._on_devices_lost is not None:
            self._on_devices_lost(device)

    def drain(self) -> int:
        """Stops as callers would wish: says so, refuses new work, answers what was accepted, and closes.

        Returns:
            Requests that were left without an answer, and jobs that still ran here, when the grace period ended.
        """
        try:
            left = self._drain()
        except (DispatcherEnded, TimeoutError) as fault:
            _log.error("not_drained", error=str(fault))
            left = 1  # it can't be known how many
        self.close()
        return left

    def _drain(self) -> int:
        server = self._config.server
        grace = server.drain_grace_s
        call = self._dispatcher.call
        call(self._vitals.drain, max(grace, SHORTEST_CALL))
        if server.drain_delay_s:
            threading.Event().wait(server.drain_delay_s)
        call(self._refuse_new_work, max(grace, SHORTEST_CALL))
        until = time.monotonic() + grace
        left = call(self._in_flight)
        while left and time.monotonic() < until:
            threading.Event().wait(DRAIN_POLL)
            left = call(self._in_flight, max(until - time.monotonic(), SHORTEST_CALL))
        return left

    def _in_flight(self) -> int:
        return self._inference.in_flight() + (self._jobs.in_flight() if self._jobs is not None else 0)

    def _refuse_new_work(self) -> None:
        self._inference.drain(self._config.server.drain_grace_s)
        if self._jobs is not None:
            self._jobs.drain()  # before the scheduler runs what waits in it
        self._runner.drain(time.monotonic())
        self._wire.drain()

    def close(self) -> None:
        """Ends everything at once: what still waits is failed, but jobs go back. Does nothing the second time."""
        if self._closed or not self.addresses:
            return
        self._closed = True
        self._hosting.stop()
        self._certificates.close()
        self._metrics.close()
        self._dispatcher.rest(True)  # it waits for batches now
        try:
            self._dispatcher.call(self._end_work, CLOSE_PATIENCE)
        except (DispatcherEnded, TimeoutError) as fault:
            _log.error("not_closed", error=str(fault))
        if self._jobs is not None:
            self._jobs.close()
        self._dispatcher.stop()
        self._complaints.close()
        self._wire.close(CLOSE_GRACE)
        self._hosting.close()
        self._tracing.close()

    def _end_work(self) -> None:
        if self._jobs is not None:
            self._jobs.drain()
        self._runner.close()
        if self._jobs is not None:
            self._jobs.let_go()  # after the last results
