"""What is under the client for asyncio: the channel, how calls are made, and what a server tells of itself."""

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from forebay.v1 import inference_pb2, inference_service_pb2_grpc, job_service_pb2_grpc, model_service_pb2_grpc
from forebay_client import _errors, _plans
from forebay_client._channel import MAX_MESSAGE_BYTES, Target, Tls
from forebay_client._core import DEADLINE, Inputs, RequestBuilder, check_deadline
from forebay_client._exceptions import ForebayError
from forebay_client._models import Model, ModelStatistics, ServerStatistics
from forebay_client._results import Health

T = TypeVar("T")
RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


class AsyncBaseClient:
    """A channel to a server, and its models. `AsyncClient` documents the arguments."""

    def __init__(
        self,
        address: str,
        *,
        tls: Tls | None = None,
        tenant: str = "",
        metadata: Mapping[str, str] | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        options: Sequence[tuple[str, str | int]] = (),
    ) -> None:
        target = Target(
            address=address,
            tls=tls,
            tenant=tenant,
            metadata=metadata or {},
            max_message_bytes=max_message_bytes,
            options=options,
        )
        self._channel = target.open_async()
        self._metadata = target.call_metadata()
        self._inference = inference_service_pb2_grpc.InferenceServiceStub(self._channel)
        models = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._jobs = jobs = job_service_pb2_grpc.JobServiceStub(self._channel)
        self._methods: dict[str, grpc.aio.UnaryUnaryMultiCallable[Any, Any]] = {
            "ListModels": models.ListModels,
            "GetModel": models.GetModel,
            "GetStatistics": models.GetStatistics,
            "Submit": jobs.Submit,
            "Result": jobs.Result,
            "CancelJob": jobs.CancelJob,
            "ListJobs": jobs.ListJobs,
            "Check": health_pb2_grpc.HealthStub(self._channel).Check,
        }
        self._only_inputs: _plans.OnlyInputs = {}
        self._closed = False

    async def models(self, *, deadline: float = DEADLINE) -> list[Model]:
        """All models, by name.

        Raises:
            ForebayError: The server can't be asked.
        """
        return await self._carry_out(_plans.models(deadline))

    async def model(self, name: str, *, deadline: float = DEADLINE) -> Model:
        """One model: its versions, what they expect, and how they batch.

        Raises:
            ModelNotFound: There is no such model.
        """
        return await self._carry_out(_plans.model(name, deadline))

    async def statistics(self, model: str = "", *, deadline: float = DEADLINE) -> list[ModelStatistics]:
        """What the versions of a model, or of all models, have done since the server started.

        Raises:
            ModelNotFound: There is no such model.
        """
        return await self._carry_out(_plans.statistics(model, deadline))

    async def server_statistics(self, *, deadline: float = DEADLINE) -> ServerStatistics:
        """What the server as a whole and the versions of all models have done, with the buckets of all durations.

        Raises:
            ForebayError: The server can't be asked.
        """
        return await self._carry_out(_plans.server_statistics(deadline))

    async def health(self, service: str = "", *, deadline: float = DEADLINE) -> Health:
        """The health of the server (empty), of a service by its full name, or of a model as `model/NAME`.

        Raises:
            ForebayError: The server can't be asked.
        """
        return await self._carry_out(_plans.health(service, deadline))

    async def close(self) -> None:
        """Closes the connection; calls in flight end with `Cancelled`. May be called more than once."""
        self._closed = True
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _request(self, builder: RequestBuilder, inputs: Inputs, deadline: float) -> inference_pb2.PredictRequest:
        return await self._carry_out(_plans.build(builder, inputs, self._only_inputs, deadline))

    async def _carry_out(self, plan: _plans.Plan[T]) -> T:
        """Does what a plan says, in this task."""
        try:
            step = next(plan)
            while True:
                if isinstance(step, _plans.Pause):
                    await asyncio.sleep(step.seconds)
                    step = plan.send(None)
                    continue
                try:
                    response = await self._invoke(self._methods[step.method], step.request, step.timeout)
                except ForebayError as error:
                    step = plan.throw(error)
                else:
                    step = plan.send(response)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _invoke(
        self, method: "grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT]", request: RequestT, deadline: float
    ) -> ResponseT:
        """Every unary call goes through here: the place for hedging."""
        self._check_open()
        try:
            return await method(request, timeout=check_deadline(deadline), metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise _errors.from_rpc(error) from error
        except asyncio.CancelledError as error:
            raise _errors.from_cancellation() from error

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the client is closed")
