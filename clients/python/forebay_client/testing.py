"""A server for the tests of those who use the client: the real contract, a real socket, and models that are functions.

    def double(inputs):
        return {"y": inputs["x"] * 2}

    with FakeServer({"double": double}) as server, Client(server.address) as client:
        server.fail_next("QUEUE_FULL", retry_delay=0.01)
        assert client.predict("double", {"x": [[1.0]]})["y"] == [[2.0]]

It knows no batches, no shares and no limits. What it answers, and how it fails, is what the contract says.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forebay.v1 import (
    inference_pb2,
    inference_service_pb2_grpc,
    job_service_pb2_grpc,
    model_pb2,
    model_service_pb2,
    model_service_pb2_grpc,
    tensor_pb2,
)
from forebay_client import _tensors
from forebay_client._exceptions import ForebayError, InputRejected, ModelNotFound, VersionNotFound
from forebay_client._fake_jobs import FakeJobs
from forebay_client._fake_status import STATUS_CODES, abort, status_of
from forebay_client._tensors import Array, TensorLike

__all__ = ["FakeModel", "FakeServer", "Fault", "Run"]

Run = Callable[[Mapping[str, Array]], Mapping[str, TensorLike]]
"""From inputs by name to outputs by name. What it raises becomes an error: a `ValueError` INPUT_REJECTED with its text,
a `ForebayError` itself, and anything else INTERNAL with a fixed text."""

_THREADS = 64  # calls at a time; a stream or a waiting call takes one as long as it lasts


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeModel:
    """A model, where a function alone is not enough."""

    run: Run
    inputs: tuple[str, ...] = ("x",)
    """The names of its inputs, for clients that ask."""
    outputs: tuple[str, ...] = ("y",)
    version: int = 1
    seconds: float = 0.0
    """How long it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """How a call fails."""

    reason: str
    """An `ErrorReason` without its prefix, such as `QUEUE_FULL`; empty: none, as with a lost connection."""
    message: str = "as the test wants it"
    retry_delay: float | None = None
    """Seconds."""
    code: grpc.StatusCode | None = None
    """None: that of the reason."""


class FakeServer:
    """A server in this process, on a port of this machine that was free. Starts as it is made.

    Args:
        models: The models by name: functions, or `FakeModel`.
        address: `host:port` or `unix:/path`; port 0: a free one.
        credentials: TLS; None: plain text.

    Attributes:
        address: Where it listens, for `Client`.
        requests: Every `PredictRequest`, of calls, streams and jobs, in the order of arrival.
        metadata: The metadata of every call, in the order of arrival.
    """

    def __init__(
        self,
        models: Mapping[str, Run | FakeModel],
        *,
        address: str = "127.0.0.1:0",
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self._models = {
            name: model if isinstance(model, FakeModel) else FakeModel(run=model) for name, model in models.items()
        }
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._serving = True
        self._health_changed = threading.Condition()
        self.requests: list[inference_pb2.PredictRequest] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self._jobs = FakeJobs(self._job)
        self._server = grpc.server(ThreadPoolExecutor(_THREADS), options=[("grpc.so_reuseport", 0)])
        inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(_Inference(self), self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Models(self._models), self._server)
        job_service_pb2_grpc.add_JobServiceServicer_to_server(self._jobs, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(_Health(self), self._server)
        if credentials is None:
            port = self._server.add_insecure_port(address)
        else:
            port = self._server.add_secure_port(address, credentials)
        self.address = address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
        self._server.start()

    def fail_next(
        self,
        reason: str = "",
        *,
        times: int = 1,
        message: str = "as the test wants it",
        retry_delay: float | None = None,
        code: grpc.StatusCode | None = None,
    ) -> None:
        """Makes the next predictions fail, whether of calls, stream items or jobs.

        Raises:
            ValueError: There is no such reason, or neither a reason nor a code.
        """
        if reason and reason not in STATUS_CODES:
            raise ValueError(f"the contract has no reason {reason!r}")
        if not reason and code is None:
            raise ValueError("a fault without a reason needs a code")
        with self._lock:
            self._faults += [Fault(reason=reason, message=message, retry_delay=retry_delay, code=code)] * times

    def set_health(self, *, serving: bool) -> None:
        """Says whether the server serves; those who watch are told."""
        with self._health_changed:
            self._serving = serving
            self._health_changed.notify_all()

    def stop(self, grace: float | None = None) -> None:
        """Stops: at once, so that calls break off, or after so many seconds for what is in flight."""
        self.set_health(serving=False)
        self._jobs.stop()
        self._server.stop(grace).wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _saw(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            self.metadata.append(dict(context.invocation_metadata()))

    def _job(self, request: inference_pb2.PredictRequest) -> inference_pb2.PredictResponse | status_pb2.Status:
        return self._run(request)

    def _run(self, request: inference_pb2.PredictRequest) -> inference_pb2.PredictResponse | status_pb2.Status:
        """One request, from whatever way in."""
        with self._lock:
            self.requests.append(request)
            fault = self._faults.pop(0) if self._faults else None
        if fault is not None:
            return status_of(fault.reason, fault.message, retry_delay=fault.retry_delay, code=fault.code)
        try:
            return self._answer(request)
        except ForebayError as error:
            return status_of(error.reason, error.message, retry_delay=error.retry_delay, code=error.code)
        except ValueError as error:
            return status_of("INPUT_REJECTED", str(error))
        except Exception:  # noqa: BLE001  # as a server does: its text is not the caller's business
            return status_of("INTERNAL", "internal error", details={"error_id": "0123456789abcdef"})

    def _answer(self, request: inference_pb2.PredictRequest) -> inference_pb2.PredictResponse:
        model = self._models.get(request.model)
        if model is None:
            raise ModelNotFound(f"no model is called {request.model!r}", reason="MODEL_NOT_FOUND")
        if request.version not in {"", str(model.version)}:
            raise VersionNotFound(f"{request.model!r} has no version {request.version!r}", reason="VERSION_NOT_FOUND")
        if model.seconds:
            time.sleep(model.seconds)
        outputs = model.run({tensor.name: _tensors.decode(tensor) for tensor in request.inputs})
        response = inference_pb2.PredictResponse(
            model=request.model, version=model.version, request_id=request.request_id
        )
        for name in request.outputs or outputs:
            if name not in outputs:
                raise InputRejected(f"there is no output {name!r}", reason="INVALID_TENSOR")
            response.outputs.append(_tensors.encode(name, outputs[name]))
        if request.report_timings:
            response.timings.CopyFrom(
                inference_pb2.Timings(
                    compute_nanos=round(model.seconds * 1e9),
                    batch_rows=request.inputs[0].shape[0] if request.inputs and request.inputs[0].shape else 1,
                    batch_requests=1,
                    dispatch_reason=inference_pb2.DISPATCH_REASON_IDLE,
                )
            )
        return response


class _Inference(inference_service_pb2_grpc.InferenceServiceServicer):
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def Predict(
        self, request: inference_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> inference_pb2.PredictResponse:
        self._server._saw(context)  # noqa: SLF001  # one class in several parts
        found = self._server._run(request)  # noqa: SLF001  # see above
        if isinstance(found, inference_pb2.PredictResponse):
            return found
        return abort(context, found)

    def StreamPredict(
        self, messages: Iterable[inference_pb2.StreamPredictRequest], context: grpc.ServicerContext
    ) -> Iterator[inference_pb2.StreamPredictResponse]:
        self._server._saw(context)  # noqa: SLF001  # see above
        for message in messages:
            response = inference_pb2.StreamPredictResponse()
            for item in message.items:
                found = self._server._run(item.request)  # noqa: SLF001  # see above
                if isinstance(found, inference_pb2.PredictResponse):
                    response.results.add(id=item.id, response=found)
                else:
                    response.results.add(id=item.id, error=found)
            if response.results:
                yield response


class _Models(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, models: Mapping[str, FakeModel]) -> None:
        self._models = {name: _describe(name, model) for name, model in sorted(models.items())}

    def ListModels(
        self, request: model_service_pb2.ListModelsRequest, context: grpc.ServicerContext
    ) -> model_service_pb2.ListModelsResponse:
        return model_service_pb2.ListModelsResponse(models=self._models.values())

    def GetModel(
        self, request: model_service_pb2.GetModelRequest, context: grpc.ServicerContext
    ) -> model_service_pb2.GetModelResponse:
        if request.model not in self._models:
            abort(context, status_of("MODEL_NOT_FOUND", f"no model is called {request.model!r}"))
        return model_service_pb2.GetModelResponse(model=self._models[request.model])

    def GetStatistics(
        self, request: model_service_pb2.GetStatisticsRequest, context: grpc.ServicerContext
    ) -> model_service_pb2.GetStatisticsResponse:
        return model_service_pb2.GetStatisticsResponse()


def _describe(name: str, model: FakeModel) -> model_pb2.Model:
    def specs(names: Iterable[str]) -> list[tensor_pb2.TensorSpec]:
        return [
            tensor_pb2.TensorSpec(name=one, data_type=tensor_pb2.DATA_TYPE_FP32, shape=[-1, -1], batch_dimension=0)
            for one in names
        ]

    version = model_pb2.ModelVersion(
        version=model.version,
        state=model_pb2.MODEL_STATE_READY,
        engine="fake",
        inputs=specs(model.inputs),
        outputs=specs(model.outputs),
        instances=1,
    )
    return model_pb2.Model(name=name, versions=[version], default_version=model.version)


class _Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # no types are published
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def _now(self, service: str) -> int:
        serving: bool = self._server._serving  # noqa: SLF001  # one class in several parts
        models = self._server._models  # noqa: SLF001  # see above
        state = health_pb2.HealthCheckResponse
        if service and service.removeprefix("model/") not in models:
            return int(state.SERVICE_UNKNOWN)
        return int(state.SERVING if serving else state.NOT_SERVING)

    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:
        status = self._now(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return health_pb2.HealthCheckResponse(status=status)

    def Watch(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        changed = self._server._health_changed  # noqa: SLF001  # see above

        def wake() -> None:
            with changed:
                changed.notify_all()

        context.add_callback(wake)
        told: int | None = None
        while context.is_active():
            with changed:
                while (now := self._now(request.service)) == told and context.is_active():
                    changed.wait()
            told = now
            yield health_pb2.HealthCheckResponse(status=now)
