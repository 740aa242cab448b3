"""What the services need of the layers that they stand on: who knows the models, and who runs requests."""

from collections.abc import Sequence
from typing import Any, Protocol

from forebay_server.errors import ForebayError
from forebay_server.scheduling.request import Request
from forebay_server.tensors import ModelSpec

Shapes = tuple[tuple[int, ...], ...]


class Served(Protocol):
    """One version of a model; `models.served.Served`."""

    name: str
    version: int
    key: tuple[str, int]
    state: Any
    """Numbered as in the contract."""
    state_message: str
    spec: ModelSpec
    config: Any
    """A `config.tree.ModelConfig`."""

    def bucket_of(self, shapes: Shapes) -> Shapes:
        """The bucket for the shapes of a request's inputs, each without the batch dimension.

        Raises:
            InvalidRequest: No bucket is large enough.
        """


class Catalogue(Protocol):
    """Who knows the models; `models.catalogue.Catalogue`."""

    def resolve(self, name: str, version: str) -> Served:
        """Finds the version that a caller means, which is ready.

        Raises:
            ModelNotFound: There is no such model.
            VersionNotFound: It has no such version or label.
            ModelLoading: It is not ready yet.
            ModelFailed: It failed to load, or is unloaded.
        """


class Scheduler(Protocol):
    """Who runs requests; `scheduling.core.Core`, or the runner around it."""

    def lane(self, key: tuple[str, int], bucket: Shapes, parameters: Any) -> Any:
        """The queue for a model version, bucket and parameters, or a `ForebayError`."""

    def admit(self, request: Request, now: float) -> ForebayError | None:
        """Takes a request in, or says why not."""

    def admit_alike(self, requests: Sequence[Request], now: float) -> list[tuple[Request, ForebayError]]:
        """Takes in requests that differ in their data only, as `admit` would one after the other; those refused."""

    def cancel(self, request: Request, now: float) -> bool:
        """Drops a request; whether it was still waiting."""

    def outage(self, key: tuple[str, int]) -> ForebayError | None:
        """Why a model version runs nothing now; None if it does."""
