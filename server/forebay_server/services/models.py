"""`forebay.v1.ModelService`: what is served, and how it fares. Read only.

Translates the catalogue into the contract's messages; `services.statistics` does it with figures.
"""

import base64
import binascii
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from google.protobuf.message import DecodeError, Message

from forebay.v1 import model_pb2, model_service_pb2, tensor_pb2
from forebay_server import errors
from forebay_server.errors import ForebayError, InvalidRequest
from forebay_server.services.ports import Served
from forebay_server.services.service import Endpoint, Outbox, Service
from forebay_server.services.statistics import Accounts, ServerFigures, server_statistics
from forebay_server.services.status import failure, internal
from forebay_server.services.validation import check_name
from forebay_server.tensors import ModelSpec
from forebay_server.wire.port import FAIL, RESPOND, Event, Method, MethodKind

NAME: Final[str] = model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name
DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1000

_BAD_TOKEN = "is not one that the server gave"  # noqa: S105  # no password


class ServedModel(Served, Protocol):
    """One version of a model, with what people want to know of it; `models.served.Served`."""

    engine_name: str
    instances: int
    run_mode: Any
    """Numbered as in the contract."""
    max_batch_size: int
    best_batch_size: int
    unbatched_because: str
    ready_time: float | None
    """Seconds since the epoch."""


class Models(Protocol):
    """Who knows the models; `models.catalogue.Catalogue`."""

    def names(self) -> Iterable[str]:
        """All models."""

    def versions(self, name: str) -> Iterable[ServedModel]:
        """The versions of a model; none if there is no such model."""

    def labels(self, name: str) -> Mapping[str, int]:
        """The labels of a model, and the version that each one means."""

    def default_version(self, name: str) -> int:
        """The version that a request without one gets; 0 if none is ready."""


class ModelService:
    """Models over gRPC.

    Args:
        models: The models.
        accounts: What they have done, and do.
        server: How the server fares as a whole.
        outbox: Where answers go.
        refresh: Called before statistics are read, to take in what has happened since.
    """

    def __init__(
        self,
        models: Models,
        accounts: Accounts,
        server: Callable[[], ServerFigures],
        outbox: Outbox,
        refresh: Callable[[], None] = lambda: None,
    ) -> None:
        self._models = models
        self._accounts = accounts
        self._server = server
        self._outbox = outbox
        self._refresh = refresh

    def service(self) -> Service:
        """The service for the dispatcher."""
        requests: dict[str, tuple[type[Message], Callable[[Any], Message]]] = {
            "ListModels": (model_service_pb2.ListModelsRequest, self.list_models),
            "GetModel": (model_service_pb2.GetModelRequest, self.get_model),
            "GetStatistics": (model_service_pb2.GetStatisticsRequest, self.get_statistics),
        }
        return Service(
            name=NAME,
            endpoints=[
                Endpoint(
                    method=Method(path=f"/{NAME}/{name}", kind=MethodKind.UNARY),
                    on_call=_Unary(self._outbox, name, message, answer),
                )
                for name, (message, answer) in requests.items()
            ],
        )

    def list_models(self, request: model_service_pb2.ListModelsRequest) -> model_service_pb2.ListModelsResponse:
        """A page of models."""
        if request.page_size < 0:
            raise InvalidRequest([("page_size", "must not be negative")])
        size = min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
        names = sorted(self._models.names())
        start = bisect_right(names, _last_name(request.page_token)) if request.page_token else 0
        page = names[start : start + size]
        token = _token(page[-1]) if start + size < len(names) else ""
        return model_service_pb2.ListModelsResponse(
            models=[self._model(name, self._versions(name)) for name in page], next_page_token=token
        )

    def get_model(self, request: model_service_pb2.GetModelRequest) -> model_service_pb2.GetModelResponse:
        """One model."""
        name = request.model
        return model_service_pb2.GetModelResponse(model=self._model(name, self._known(name)))

    def get_statistics(
        self, request: model_service_pb2.GetStatisticsRequest
    ) -> model_service_pb2.GetStatisticsResponse:
        """Figures of one model or all."""
        self._refresh()
        if request.model:
            versions = self._known(request.model)
        else:
            versions = [served for name in sorted(self._models.names()) for served in self._versions(name)]
        of = self._accounts.of
        return model_service_pb2.GetStatisticsResponse(
            statistics=[of(served, buckets=request.buckets) for served in versions],
            server=server_statistics(self._server()),
        )

    def _versions(self, name: str) -> list[ServedModel]:
        return sorted(self._models.versions(name), key=lambda served: served.version, reverse=True)

    def _known(self, name: str) -> list[ServedModel]:
        """The versions of a model that there is.

        Raises:
            InvalidRequest: This can't be a model's name.
            ModelNotFound: There is no such model.
        """
        check_name(name)
        if name not in self._models.names():
            raise errors.ModelNotFound(f"no model is called {name!r}")
        return self._versions(name)

    def _model(self, name: str, versions: Iterable[ServedModel]) -> model_pb2.Model:
        return model_pb2.Model(
            name=name,
            versions=[_version(served) for served in versions],
            labels=self._models.labels(name),
            default_version=self._models.default_version(name),
        )


class _Unary:
    """A handler that parses a message, and answers with what a function makes of it, or with its error."""

    def __init__(self, outbox: Outbox, method: str, message: type[Message], answer: Callable[[Any], Message]) -> None:
        self._outbox = outbox
        self._method = method
        self._message = message
        self._answer = answer

    def __call__(self, event: Event) -> None:
        call = event[1]
        try:
            request = self._message.FromString(event[3] or b"")
        except DecodeError:
            error = InvalidRequest([("", f"the message can't be parsed as a {self._message.DESCRIPTOR.name}")])
            self._outbox.append((FAIL, call, failure(error)))
            return
        try:
            self._outbox.append((RESPOND, call, self._answer(request).SerializeToString()))
        except ForebayError as error:
            self._outbox.append((FAIL, call, failure(error)))
        except Exception as error:  # noqa: BLE001  # nothing that one message does may stop the dispatcher
            self._outbox.append((FAIL, call, failure(internal(error, method=self._method))))


def _version(served: ServedModel) -> model_pb2.ModelVersion:
    config, spec = served.config, served.spec
    message = model_pb2.ModelVersion(
        version=served.version,
        state=int(served.state),  # type: ignore[arg-type]  # the contract's number
        state_message=served.state_message,
        engine=served.engine_name,
        inputs=_specs(spec, spec.inputs),
        outputs=_specs(spec, spec.outputs),
        instances=served.instances,
        run_mode=int(served.run_mode),  # type: ignore[arg-type]  # the contract's number
        batching=model_pb2.Batching(
            max_batch_size=served.max_batch_size,
            best_batch_size=served.best_batch_size,
            unbatched_because=served.unbatched_because,
        ),
    )
    message.batching.max_delay.FromNanoseconds(round(config.batching.max_delay_ms * 1e6))
    if served.ready_time:
        message.ready_time.FromNanoseconds(round(served.ready_time * 1e9))
    return message


def _specs(spec: ModelSpec, tensors: Iterable[Any]) -> list[tensor_pb2.TensorSpec]:
    batch_dimension = 0 if spec.batched else -1
    return [
        tensor_pb2.TensorSpec(
            name=tensor.name,
            data_type=int(tensor.data_type),  # type: ignore[arg-type]  # the contract's number
            shape=tensor.shape,
            batch_dimension=batch_dimension,
        )
        for tensor in tensors
    ]


def _token(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def _last_name(token: str) -> str:
    """The name after which a page begins.

    Raises:
        InvalidRequest: The token is not one of ours.
    """
    try:
        name = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
        check_name(name)
    except (binascii.Error, ValueError, InvalidRequest):
        raise InvalidRequest([("page_token", _BAD_TOKEN)]) from None
    return name
