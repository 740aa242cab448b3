"""What is healthy: a board of names and statuses, and the rules that set it from the facts.

Pure. `Vitals` is told the facts (models ready or not, engines stuck, draining) and keeps the `HealthBoard` true;
`services.health` shows the board to callers. One thread, the dispatcher's.

The rules:

* `model/NAME` serves while one of its versions is ready and none of its engines is stuck.
* `""` serves from the moment when every start-up model has been ready, until draining. That a model fails later does
  not take the whole server out of a balancer: its own name tells.
* A service serves when `""` does; inference needs a model that serves as well, if there are any, and a service may
  need something of its own, such as a store.
* Draining turns everything, for good.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from enum import IntEnum
from typing import Final

MODEL_PREFIX: Final = "model/"
SERVER: Final = ""


class Serving(IntEnum):
    """Numbered as in `grpc.health.v1`."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


class HealthBoard:
    """Names and their statuses. Subscribers hear of changes only."""

    def __init__(self) -> None:
        self._statuses: dict[str, Serving] = {}
        self._subscribers: list[Callable[[str, Serving], None]] = []

    def subscribe(self, callback: Callable[[str, Serving], None]) -> None:
        """Calls `callback(name, status)` at each change from now on."""
        self._subscribers.append(callback)

    def get(self, name: str) -> Serving:
        """The status of a name; SERVICE_UNKNOWN if it isn't on the board."""
        return self._statuses.get(name, Serving.SERVICE_UNKNOWN)

    def all(self) -> dict[str, Serving]:
        """All names and their statuses."""
        return dict(self._statuses)

    def set(self, name: str, status: Serving) -> None:
        """Sets the status of a name; SERVICE_UNKNOWN takes it off the board."""
        if self.get(name) == status:
            return
        if status == Serving.SERVICE_UNKNOWN:
            del self._statuses[name]
        else:
            self._statuses[name] = status
        for callback in self._subscribers:
            callback(name, status)


class Vitals:
    """Keeps a board true.

    Args:
        board: The board.
        services: Full names of the services that only need the server.
        inference: Full names of those that need a model too.
        startup_models: Names of the models without which the server has not started.
    """

    def __init__(
        self,
        board: HealthBoard,
        *,
        services: Iterable[str] = (),
        inference: Iterable[str] = (),
        startup_models: Collection[str] = (),
    ) -> None:
        self._board = board
        self._services: Sequence[str] = tuple(services)
        self._inference: Sequence[str] = tuple(inference)
        self._awaited = set(startup_models)
        self._ready: dict[str, bool] = dict.fromkeys(startup_models, False)
        self._stuck: set[str] = set()
        self._unable: set[str] = set()
        self.draining = False
        """Whether the server is shutting down."""
        self._update()

    def model(self, name: str, *, ready: bool) -> None:
        """A model has a version that is ready, or has none any more."""
        self._ready[name] = ready
        if ready:
            self._awaited.discard(name)
        self._update()

    def gone(self, name: str) -> None:
        """A model is no longer served at all."""
        self._ready.pop(name, None)
        self._stuck.discard(name)
        self._awaited.discard(name)
        self._board.set(MODEL_PREFIX + name, Serving.SERVICE_UNKNOWN)
        self._update()

    def stuck(self, name: str, *, stuck: bool) -> None:
        """An engine of a model is stuck, or moves again."""
        if stuck:
            self._stuck.add(name)
        else:
            self._stuck.discard(name)
        self._update()

    def able(self, service: str, *, able: bool) -> None:
        """A service has what it needs beside the server, or has it no more. Cheap if nothing has changed."""
        if able == (service in self._unable):
            self._unable ^= {service}
            self._update()

    def drain(self) -> None:
        """The server is shutting down."""
        self.draining = True
        self._update()

    def _update(self) -> None:
        up = not self.draining
        started = up and not self._awaited
        healthy = {name: up and ready and name not in self._stuck for name, ready in self._ready.items()}
        capable = started and (not healthy or any(healthy.values()))
        statuses: dict[str, bool] = {MODEL_PREFIX + name: serving for name, serving in healthy.items()}
        statuses.update((service, started and service not in self._unable) for service in self._services)
        statuses.update(dict.fromkeys(self._inference, capable))
        statuses[SERVER] = started
        for name, serving in statuses.items():
            self._board.set(name, Serving.SERVING if serving else Serving.NOT_SERVING)
