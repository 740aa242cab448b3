"""Brings the models of the settings into service, one after the other, in a loader thread of its own.

Loading blocks and is noisy, so it happens beside the dispatcher; what it gives is handed over by `Dispatcher.post`,
because only the dispatcher may touch the catalogue and the scheduler.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from forebay_server.app.dispatcher import Dispatcher, DispatcherEnded
from forebay_server.app.tracing import LoadSpans
from forebay_server.app.wiring import model_policy
from forebay_server.config.tree import Config, ModelConfig
from forebay_server.engines.base import ModelLoadError
from forebay_server.errors import ConfigError
from forebay_server.models import settings
from forebay_server.models.catalogue import Catalogue
from forebay_server.models.costs import CostCache
from forebay_server.models.loaded import Loaded
from forebay_server.models.loader import load
from forebay_server.models.names import name_of
from forebay_server.models.served import ModelState, Served
from forebay_server.scheduling.latency import CostModel
from forebay_server.scheduling.runner import Runner
from forebay_server.services.intake import Intake
from forebay_server.services.vitals import Vitals
from forebay_server.telemetry.tracing.tracer import Tracer

CLOSE_PATIENCE = 1.0  # seconds for a loader that is in the middle of it; it may take minutes, and is a daemon

_log = structlog.get_logger(__name__)


class Hosting:
    """The models of a server, from its settings to `READY`.

    Attributes:
        settled: Set when every model is ready, or one could not be loaded.
        failure: Why one could not be loaded; empty otherwise.
        costs: The cost models of those that are ready, by name and version. The dispatcher's.
    """

    def __init__(
        self,
        config: Config,
        *,
        catalogue: Catalogue,
        runner: Runner,
        vitals: Vitals,
        intake: Intake,
        dispatcher: Dispatcher,
        on_failed_start: Callable[[str], None] | None,
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer
        self._models = config.models
        self._runs_jobs = bool(config.jobs.store) and config.jobs.run
        self._cache_dir = cache_directory(config.server.cache_dir)
        self._catalogue = catalogue
        self._runner = runner
        self._vitals = vitals
        self._intake = intake
        self._dispatcher = dispatcher
        self._on_failed_start = on_failed_start
        self._announced: list[tuple[ModelConfig, Served]] = []
        self._loaded: list[Loaded] = []
        self.costs: dict[tuple[str, int], CostModel] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._load_all, name="forebay-loader", daemon=True)
        self.settled = threading.Event()
        self.failure = ""

    @staticmethod
    def names_of(models: Sequence[ModelConfig]) -> list[str]:
        """The names that the models of the settings will have.

        Raises:
            ConfigError: Two have the same name and version, or a model's own TOML is wrong.
        """
        keys = []
        for model in models:
            complete = settings.complete(model)
            key = (complete.name or name_of(complete.path), complete.version)
            if key in keys:
                raise ConfigError(f"two models are called {key[0]!r} and have the version {key[1]}")
            keys.append(key)
        return [name for name, _ in keys]

    def announce(self) -> None:
        """Makes the models known, as loading, so that their first callers are told to come again.

        In the thread that starts the server, before there is a dispatcher.
        """
        for model in self._models:
            complete = settings.complete(model)
            served = Served(complete.name or name_of(complete.path), complete.version, complete, complete.labels)
            self._catalogue.add(served)
            self._announced.append((model, served))

    def start(self) -> None:
        """Begins to load what was announced."""
        self._thread.start()

    def stop(self) -> None:
        """Loads nothing more."""
        self._stopping.set()

    def close(self) -> None:
        """Keeps what was learned about costs, and lets go of the engines. Their instances are closed before."""
        self._thread.join(CLOSE_PATIENCE)
        cache = CostCache(self._cache_dir)
        for loaded in self._loaded:
            if loaded.cost_key is not None and loaded.measurements:
                points = self.costs[loaded.name, loaded.version].points()
                cache.save(loaded.cost_key, ((point.bucket, point.rows, point.seconds) for point in points))
            loaded.close_engines()
        self._loaded.clear()

    def _load_all(self) -> None:
        try:
            self._load_each()
        except DispatcherEnded:
            return  # the server was closed meanwhile
        except Exception as fault:  # noqa: BLE001  # nobody else would hear of it, and the server would never be ready
            _log.exception("loader_failed")
            self.failure = f"a model could not be loaded: {type(fault).__name__}: {fault}"
        self.settled.set()
        if not self.failure and not self._stopping.is_set():
            _log.info("serving", models=len(self._models))
        if self.failure and self._on_failed_start is not None:
            self._on_failed_start(self.failure)

    def _load_each(self) -> None:
        self._dispatcher.rest(True)  # an engine that loads may hold the GIL
        try:
            for model, served in self._announced:
                if self._stopping.is_set() or not self._load_one(model, served):
                    break
        finally:
            if not self._stopping.is_set():
                self._dispatcher.rest(False)

    def _load_one(self, model: ModelConfig, served: Served) -> bool:
        spans = LoadSpans(self._tracer, served.name, served.version)
        _log.info("model_loading", name=served.name, version=served.version, path=model.path)

        def progress(state: ModelState, words: str) -> None:
            spans.step(state)
            _log.debug("model", name=served.name, state=state.name, doing=words)
            self._dispatcher.post(lambda: self._catalogue.set_state(served, state, words))

        try:
            loaded = load(
                model,
                cache_dir=self._cache_dir,
                progress=progress,
                stopping=self._stopping.is_set,
                for_jobs=self._runs_jobs,
            )
        except (ModelLoadError, ConfigError) as error:
            spans.end(error)
            if self._stopping.is_set():
                return False
            message = str(error)
            self.failure = message
            _log.error("model_failed", name=served.name, error=message)
            self._dispatcher.call(lambda: self._catalogue.set_state(served, ModelState.FAILED, message))
            return False
        try:
            self._dispatcher.call(lambda: self._host(loaded, served))
        except DispatcherEnded:
            loaded.close()
            raise
        spans.end()
        _log.info(
            "model_ready",
            name=served.name,
            version=served.version,
            engine=loaded.engine_name,
            run="inline" if loaded.inline else "worker",
            instances=served.instances,
            max_batch_size=loaded.max_batch_size,
            best_batch_size=loaded.best_batch_size,
            seconds=round(loaded.load_seconds, 3),
            **({"unbatched_because": loaded.unbatched_because} if loaded.unbatched_because else {}),
        )
        return True

    def _host(self, loaded: Loaded, served: Served) -> None:
        """In the dispatcher's thread: from now on requests find the model."""
        costs = CostModel(loaded.measurements)
        served.adopt(loaded)
        policy = model_policy(
            loaded.config,
            max_batch_size=loaded.max_batch_size,
            batch_sizes=loaded.batch_sizes,
            instances=len(loaded.instances),
            device=loaded.device,
        )
        self._runner.add(
            served.key,
            policy,
            costs,
            loaded.instances,
            loaded.collator(),
            loaded.inline,
            time.monotonic(),
            loaded.job_instances,
        )
        self._loaded.append(loaded)
        self.costs[served.key] = costs
        self._catalogue.set_state(served, ModelState.READY, ready_time=time.time())
        self._vitals.model(served.name, ready=True)


def cache_directory(setting: str) -> Path | None:
    """Where measured costs are kept: as set, else `forebay` in the user's cache directory; None: there is none.

    Raises:
        ConfigError: It is set to be in the home of a user whom nobody knows.
    """
    try:
        if setting:
            return Path(setting).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "forebay"
    except RuntimeError as error:  # there is no such user
        if setting:
            raise ConfigError(f"server.cache_dir: {setting}: that user has no home here") from error
        # In a container a process may have a number for a user, and neither a name nor HOME.
        _log.warning("costs_not_kept", because="this user has no home; set server.cache_dir")
        return None
