"""Which models there are, and which version a caller means.

Only the dispatcher thread writes and reads it, so there is no lock. The question of every request, `resolve`, is one
dictionary lookup: the routes are computed anew when something changes, which is seldom.
"""

from collections.abc import Callable
from typing import Final

from forebay_server.errors import ForebayError, ModelFailed, ModelLoading, ModelNotFound, VersionNotFound
from forebay_server.models.served import ModelState, Served

STABLE: Final = "stable"
"""The label that decides what a request without a version gets."""

_LOADING = (ModelState.LOADING, ModelState.WARMING)

Listener = Callable[[Served], None]


class Catalogue:
    """The models of one server."""

    def __init__(self) -> None:
        self._models: dict[str, dict[int, Served]] = {}
        self._labels: dict[str, dict[str, int]] = {}
        self._routes: dict[tuple[str, str], Served] = {}
        self._listeners: list[Listener] = []

    def resolve(self, name: str, version: str) -> Served:
        """The ready version that a request means.

        Args:
            name: The model's name.
            version: A number, a label, or empty: the label `stable` if it is set, else the newest ready version.

        Raises:
            ModelNotFound: There is no such model.
            VersionNotFound: It has no such version or label.
            ModelLoading: It is not ready yet.
            ModelFailed: It failed to load, or is unloaded.
        """
        served = self._routes.get((name, version))
        if served is None:
            raise self._refusal(name, version)
        return served

    def names(self) -> list[str]:
        """The names of all models, sorted."""
        return sorted(self._models)

    def versions(self, name: str) -> list[Served]:
        """All versions of a model, newest first; none if there is no such model."""
        return [served for _, served in sorted(self._models.get(name, {}).items(), reverse=True)]

    def all(self) -> list[Served]:
        """All versions of all models."""
        return [served for name in self.names() for served in self.versions(name)]

    def labels(self, name: str) -> dict[str, int]:
        """The labels of a model and the versions that they mean."""
        return dict(self._labels.get(name, {}))

    def default_version(self, name: str) -> int:
        """The version that a request without one gets; 0 if none is ready."""
        served = self._routes.get((name, ""))
        return served.version if served is not None else 0

    def add(self, served: Served) -> None:
        """Adds a version, with its labels; one of the same number is replaced."""
        self._models.setdefault(served.name, {})[served.version] = served
        labels = self._labels.setdefault(served.name, {})
        for label in served.labels:
            labels[label] = served.version
        self._changed(served)

    def set_state(
        self, served: Served, state: ModelState, message: str = "", *, ready_time: float | None = None
    ) -> None:
        """Moves a version on in its life.

        Args:
            served: The version.
            state: Its new state.
            message: A sentence for people.
            ready_time: Seconds since the epoch, with READY.
        """
        served.state = state
        served.state_message = message
        if ready_time is not None:
            served.ready_time = ready_time
        self._changed(served)

    def set_label(self, name: str, label: str, version: int | None) -> None:
        """Moves a label to a version, or takes it away (None).

        Raises:
            ModelNotFound: There is no such model.
            VersionNotFound: It has no such version.
        """
        versions = self._models.get(name)
        if versions is None:
            raise ModelNotFound(f"no model is called {name!r}")
        labels = self._labels[name]
        if version is None:
            labels.pop(label, None)
        elif version in versions:
            labels[label] = version
        else:
            raise VersionNotFound(f"the model {name!r} has no version {version}")
        for number, served in versions.items():
            served.labels = tuple(sorted(text for text, meant in labels.items() if meant == number))
        self._changed(versions[max(versions)])

    def remove(self, served: Served) -> None:
        """Forgets a version, and its labels."""
        versions = self._models.get(served.name, {})
        if versions.get(served.version) is not served:
            return
        del versions[served.version]
        labels = self._labels[served.name]
        self._labels[served.name] = {text: number for text, number in labels.items() if number != served.version}
        if not versions:
            del self._models[served.name], self._labels[served.name]
        self._changed(served)

    def subscribe(self, listener: Listener) -> None:
        """Has a listener called, in the dispatcher thread, with each version that has changed."""
        self._listeners.append(listener)

    def _changed(self, served: Served) -> None:
        name = served.name
        self._routes = {route: other for route, other in self._routes.items() if route[0] != name}
        versions = self._models.get(name, {})
        ready = {number: other for number, other in versions.items() if other.state is ModelState.READY}
        labels = self._labels.get(name, {})
        for number, other in ready.items():
            self._routes[name, str(number)] = other
        for label, number in labels.items():
            if number in ready:
                self._routes[name, label] = ready[number]
        default = labels.get(STABLE) or max(ready, default=0)
        if default in ready:
            self._routes[name, ""] = ready[default]
        for listener in self._listeners:
            listener(served)

    def _refusal(self, name: str, version: str) -> ForebayError:
        versions = self._models.get(name)
        if not versions:
            return ModelNotFound(f"no model is called {name!r}")
        labels = self._labels[name]
        text = version or STABLE
        if text in labels:
            served = versions[labels[text]]
        elif not version:  # none is ready: the one that is nearest to it explains
            served = max(versions.values(), key=lambda other: (other.state in _LOADING, other.version))
        elif version.isascii() and version.isdigit() and str(int(version[:10])) == version and int(version) in versions:
            served = versions[int(version)]
        else:
            return VersionNotFound(f"the model {name!r} has no version or label {version!r}")
        which = f"version {served.version} of the model {name!r}"
        if served.state in _LOADING:
            return ModelLoading(f"{which} is being loaded")
        if served.state is ModelState.FAILED:
            return ModelFailed(f"{which} has failed")
        return ModelFailed(f"{which} is unloaded")
