"""Durable jobs of a server: builds the store, the desk and the service, starts them, and ends them without loss."""

import time
from collections import deque
from collections.abc import Callable

import structlog

from forebay_server.app.tracing import Tracing
from forebay_server.config.tree import Config, WebhooksConfig
from forebay_server.errors import ConfigError, Internal, StoreUnavailable
from forebay_server.jobs.choose import choose_store
from forebay_server.jobs.desk import Desk
from forebay_server.jobs.events import Event
from forebay_server.jobs.keeper import Keeper
from forebay_server.jobs.late import LateStore
from forebay_server.jobs.store import Operation, Outcome
from forebay_server.jobs.webhooks.sender import make_sender
from forebay_server.models.catalogue import Catalogue
from forebay_server.models.served import ModelState, Served
from forebay_server.scheduling.runner import Runner
from forebay_server.services import jobs as service
from forebay_server.services.complaints import Complaints
from forebay_server.services.intake import Intake
from forebay_server.services.job_requests import JobDecoder
from forebay_server.services.jobs import JobService
from forebay_server.services.service import Outbox
from forebay_server.services.statistics import JobFigures
from forebay_server.services.status import status_bytes
from forebay_server.services.submissions import Submissions
from forebay_server.services.vitals import Vitals
from forebay_server.wire.port import Limits

STORE_PATIENCE = 10.0  # seconds for what is on its way to the store when everything else has ended, ...
AWAY_PATIENCE = 1.0  # ... and if the store has not answered for a while
MESSAGES_PATIENCE = 2.0  # seconds for messages under way; what is cut off is sent again
SHARED = "postgresql"  # the store that several servers may use
LOST = "payload_lost"  # the error id of jobs whose payload the disk has lost; each can be told by its own id

_log = structlog.get_logger(__name__)


class StoreNotOpened(ConfigError):
    """The job store can't be used as it is. What is wrong need not be a setting, and another time it may be right."""


class Jobs:
    """The jobs of a server. Everything but `start` and `close` belongs to the dispatcher's thread.

    Args:
        config: All settings; `jobs.store` is set.
        limits: Of the front end.
        catalogue: The models.
        runner: Who runs requests.
        intake: Who makes them.
        outbox: Where answers go.
        complaints: Told of calls that were refused.
        post: Has an action run in the dispatcher's thread.
        tracing: Spans of jobs and webhooks.
        clock: Monotonic seconds.

    Attributes:
        service: For the dispatcher.
        timed: What the dispatcher has to call in time.

    Raises:
        ConfigError: The settings of jobs are wrong.
    """

    def __init__(
        self,
        config: Config,
        *,
        limits: Limits,
        catalogue: Catalogue,
        runner: Runner,
        intake: Intake,
        outbox: Outbox,
        complaints: Complaints,
        post: Callable[[Callable[[], None]], None],
        tracing: Tracing,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        settings = config.jobs
        self._store = LateStore(choose_store(settings.store, lost=status_bytes(Internal(LOST))))
        self._keeper = Keeper(self._store, post=post, timeout=settings.store_timeout_s, clock=clock)
        keeper, timeout = self._keeper, settings.store_timeout_s
        self._sender = make_sender(settings.webhooks, lambda operation: keeper.ask(operation, timeout), tracing.tracer)
        self._desk = Desk(
            self._keeper,
            scheduler=runner,
            decoder=JobDecoder(intake, tracing.tracer),
            config=settings,
            shared=self._store.name == SHARED,
            max_streams=limits.max_streams,
            max_held_bytes=limits.max_held_bytes,
            encode_error=status_bytes,
            finished=self._sender.wake,
            clock=clock,
        )
        submissions = Submissions(
            intake, default_ttl=settings.ttl_s, max_ttl=settings.max_ttl_s, allowed=self._sender.allowed
        )
        self.service = JobService(
            self._desk,
            intake,
            submissions,
            outbox,
            max_send_bytes=limits.max_send_bytes,
            complaints=complaints,
            traceparent=tracing.traceparent,
        ).service()
        self.timed = (self._desk, self._keeper)
        self._runs_jobs = settings.run
        self._catalogue = catalogue
        self._served: set[str] = set()
        self._draining = False
        catalogue.subscribe(self._model_changed)

    def start(self) -> None:
        """Opens the store; one that does not answer is waited for, without holding anybody up. Then webhooks are sent.

        Raises:
            StoreNotOpened: It can't be used.
        """
        try:
            self._keeper.start()
        except (ConfigError, StoreUnavailable) as error:
            raise StoreNotOpened(str(error)) from error
        self._sender.start()
        _log.info("job_store", kind=self._store.name, durable=self._store.name != "memory", runs_jobs=self._runs_jobs)

    def look_after(self, vitals: Vitals) -> None:
        """Keeps the health of the service true."""
        vitals.able(service.NAME, able=self._keeper.healthy)

    def figures(self) -> JobFigures:
        """How the jobs fare."""
        states = {int(state): count for state, count in self._desk.states().items()}
        return JobFigures(store=self._store.name, available=self._keeper.healthy, states=states)

    @property
    def events(self) -> tuple[deque[Event], ...]:
        """What happened, for telemetry."""
        return self._keeper.events, self._sender.events

    def gauges(self) -> dict[str, float]:
        """Jobs `pending` and `running`, seconds of the `oldest`, operations `waiting`, if the store is `healthy`."""
        pending, running, oldest = self._desk.held()
        return {
            "pending": pending,
            "running": running,
            "oldest": oldest,
            "waiting": self._keeper.on_their_way(),
            "healthy": int(self._keeper.healthy),
        }

    def drain(self) -> None:
        """Takes no more jobs and claims none, gives back what does not run yet, and answers who waits."""
        if not self._draining:
            self._draining = True
            self._desk.drain()

    def in_flight(self) -> int:
        """Jobs that run here, and what is on its way to or from the store."""
        return self._desk.in_flight()

    def let_go(self) -> None:
        """Gives up the claims on what still runs: others may take it over."""
        self._desk.close()

    def close(self) -> None:
        """Ends webhooks, has the store take what is on its way, and closes it. While the dispatcher still moves."""
        self._sender.close(MESSAGES_PATIENCE)
        if not self._keeper.close(STORE_PATIENCE if self._keeper.healthy else AWAY_PATIENCE):
            _log.error("job_store_not_closed")
        # Operations over groups is how many shared a commit.
        _log.info("job_store_closed", groups=self._keeper.groups, operations=self._keeper.applied)

    def _model_changed(self, served: Served) -> None:
        name = served.name
        ready = any(version.state is ModelState.READY for version in self._catalogue.versions(name))
        if ready and name not in self._served:
            self._served.add(name)
            self._desk.serve(name)
        elif not ready and name in self._served:
            self._served.discard(name)
            self._desk.unserve(name)


def explain_store(setting: str) -> str:
    """In a sentence without its subject, where jobs are kept.

    Raises:
        ConfigError: Nowhere: this is no store, or something that it needs is not installed.
    """
    store = choose_store(setting, lost=b"")
    if store.name == "memory":
        return "in memory: lost when the server ends"
    if store.name == SHARED:
        return "in PostgreSQL, shared with all servers that use the same database"
    path = setting.removeprefix("sqlite:")
    return f"in the SQLite file {path}, and large ones beside it in {path}.payloads; one server at a time"


def explain_webhooks(settings: WebhooksConfig) -> str:
    """Where messages about jobs go.

    Raises:
        ConfigError: As at the start of a server: an entry or a secret is wrong, or something is not installed.
    """
    make_sender(settings, _no_store).close(0.0)
    if not settings.allow:
        return "no webhooks are sent"
    return f"webhooks may go to {', '.join(settings.allow)}"


def _no_store(_operation: Operation) -> Outcome:
    raise StoreUnavailable("no store is open")
