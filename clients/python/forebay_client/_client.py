"""The client for threads. One client is one channel: make it once, share it among threads, close it at the end."""

import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Literal, Self, TypeVar, Unpack, overload

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forebay.v1 import inference_pb2, inference_service_pb2_grpc, model_service_pb2, model_service_pb2_grpc
from forebay_client import _errors
from forebay_client._channel import MAX_MESSAGE_BYTES, Target, Tls
from forebay_client._core import (
    DEADLINE,
    Inputs,
    ParameterValue,
    Priority,
    RequestBuilder,
    check_deadline,
    only_input,
    read_prediction,
)
from forebay_client._exceptions import ForebayError, InvalidRequest, NotFound
from forebay_client._models import Model, ModelStatistics, read_model, read_statistics
from forebay_client._results import Health, Prediction
from forebay_client._stream import ITEMS_PER_MESSAGE, STREAM_DEADLINE, WINDOW, Failures, StreamCore, StreamOptions
from forebay_client._sync_stream import PredictionStream

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


class Client:
    """Calls a Forebay server. Connects with the first call; any number of threads may use one client.

    Args:
        address: `host:port`, `unix:/path`, or any other target that gRPC resolves.
        tls: TLS; None: plain text.
        tenant: Who calls, for servers that believe it from metadata.
        metadata: Sent with every call, lower-case keys.
        max_message_bytes: The largest message, both ways.
        options: Further gRPC channel options; stronger than the client's own.
    """

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
        self._channel = target.open()
        self._metadata = target.call_metadata()
        self._inference = inference_service_pb2_grpc.InferenceServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self._only_inputs: dict[tuple[str, str], str] = {}
        self._closed = False

    def predict(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str | int = "",
        outputs: Iterable[str] | None = None,
        deadline: float = DEADLINE,
        priority: Priority = "normal",
        parameters: Mapping[str, ParameterValue] | None = None,
        request_id: str = "",
        timings: bool = False,
    ) -> Prediction:
        """Runs one request.

        Args:
            model: The model's name.
            inputs: Arrays by input name; for a model with one input, the array alone will do (the client asks the
                server once for the name). A batched model takes one or more rows along dimension 0.
            version: A number or a label; empty: the model's default.
            outputs: The outputs wanted; None: all.
            deadline: Seconds within which the answer must be here. The server schedules by it.
            priority: The weight among requests of the same tenant.
            parameters: Values for engines that take them.
            request_id: An id of the caller's own, which the prediction has again.
            timings: Whether the prediction is to tell where the time went.

        Raises:
            ForebayError: There is no result; see the exceptions for the causes.
            TypeError: An input can't be sent.
            ValueError: An argument is out of range, or a model with several inputs was given only an array.
        """
        expires = time.monotonic() + check_deadline(deadline)
        builder = RequestBuilder(
            model,
            version=version,
            outputs=outputs,
            priority=priority,
            parameters=parameters,
            request_id=request_id,
            timings=timings,
        )
        request = self._request(builder, inputs, deadline)
        try:
            response = self._invoke(self._inference.Predict, request, expires - time.monotonic())
        except (InvalidRequest, NotFound):
            self._only_inputs.pop((model, builder.version), None)  # the model may have been replaced
            raise
        return read_prediction(response)

    @overload
    def stream(
        self,
        model: str,
        items: Iterable[Inputs],
        *,
        failures: Literal["raise"] = "raise",
        **options: Unpack[StreamOptions],
    ) -> PredictionStream[Prediction]: ...

    @overload
    def stream(
        self,
        model: str,
        items: Iterable[Inputs],
        *,
        failures: Literal["yield"],
        **options: Unpack[StreamOptions],
    ) -> PredictionStream[Prediction | ForebayError]: ...

    def stream(
        self,
        model: str,
        items: Iterable[Inputs],
        *,
        failures: Failures = "raise",
        window: int = WINDOW,
        items_per_message: int = ITEMS_PER_MESSAGE,
        ordered: bool = True,
        version: str | int = "",
        outputs: Iterable[str] | None = None,
        deadline: float = DEADLINE,
        stream_deadline: float = STREAM_DEADLINE,
        priority: Priority = "normal",
        parameters: Mapping[str, ParameterValue] | None = None,
        timings: bool = False,
    ) -> PredictionStream[Prediction] | PredictionStream[Prediction | ForebayError]:
        """Runs many requests over one stream; an iterator over their outcomes.

        The source is read in a thread of its own, never further ahead than the window. One item's error leaves the
        stream alive.

        Args:
            model: The model's name.
            items: The inputs of each item, as for `predict`.
            failures: What becomes of an item's error: `next` raises it (and can be called again), or gives it out.
            window: The most items taken from `items` whose outcome was not given out yet.
            items_per_message: The most items in a message. The server answers them one by one all the same.
            ordered: Results in the order of the items; otherwise as they complete, with `index` to tell them apart.
            version: A number or a label; empty: the model's default.
            outputs: The outputs wanted; None: all.
            deadline: Seconds for each item, from its arrival at the server.
            stream_deadline: Seconds for the stream as a whole.
            priority: The weight among requests of the same tenant.
            parameters: Values for engines that take them.
            timings: Whether predictions are to tell where the time went.

        Raises:
            ValueError: An argument is out of range.
        """
        self._check_open()
        timeout = check_deadline(stream_deadline)
        builder = RequestBuilder(
            model, version=version, outputs=outputs, priority=priority, parameters=parameters, timings=timings
        )
        core = StreamCore(window=window, items_per_message=items_per_message, ordered=ordered, deadline=deadline)
        return PredictionStream(
            core,
            items,
            lambda inputs: self._request(builder, inputs, deadline),
            lambda messages: self._inference.StreamPredict(messages, timeout=timeout, metadata=self._metadata),
            failures,
        )

    def models(self, *, deadline: float = DEADLINE) -> list[Model]:
        """All models, by name.

        Raises:
            ForebayError: The server can't be asked.
        """
        found: list[Model] = []
        request = model_service_pb2.ListModelsRequest()
        while True:
            page = self._invoke(self._models.ListModels, request, deadline)
            found.extend(map(read_model, page.models))
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    def model(self, name: str, *, deadline: float = DEADLINE) -> Model:
        """One model: its versions, what they expect, and how they batch.

        Raises:
            ModelNotFound: There is no such model.
        """
        request = model_service_pb2.GetModelRequest(model=name)
        return read_model(self._invoke(self._models.GetModel, request, deadline).model)

    def statistics(self, model: str = "", *, deadline: float = DEADLINE) -> list[ModelStatistics]:
        """What the versions of a model, or of all models, have done since the server started.

        Raises:
            ModelNotFound: There is no such model.
        """
        request = model_service_pb2.GetStatisticsRequest(model=model)
        response = self._invoke(self._models.GetStatistics, request, deadline)
        return list(map(read_statistics, response.statistics))

    def health(self, service: str = "", *, deadline: float = DEADLINE) -> Health:
        """The health of the server (empty), of a service by its full name, or of a model as `model/NAME`.

        Raises:
            ForebayError: The server can't be asked.
        """
        try:
            response: health_pb2.HealthCheckResponse = self._invoke(
                self._health.Check, health_pb2.HealthCheckRequest(service=service), deadline
            )
        except NotFound:
            return Health.SERVICE_UNKNOWN
        return Health(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))

    def close(self) -> None:
        """Closes the connection; calls in flight end with `Cancelled`. May be called more than once."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _request(self, builder: RequestBuilder, inputs: Inputs, deadline: float) -> inference_pb2.PredictRequest:
        if isinstance(inputs, Mapping):
            return builder.build(inputs)
        key = (builder.model, builder.version)
        name = self._only_inputs.get(key)
        if name is None:
            name = only_input(self.model(builder.model, deadline=deadline), builder.version)
            self._only_inputs[key] = name
        return builder.build({name: inputs})

    def _invoke(
        self, method: "grpc.UnaryUnaryMultiCallable[RequestT, ResponseT]", request: RequestT, deadline: float
    ) -> ResponseT:
        """Every unary call goes through here: the place for retries and hedging."""
        self._check_open()
        try:
            return method(request, timeout=check_deadline(deadline), metadata=self._metadata)
        except grpc.RpcError as error:
            raise _errors.from_rpc(error) from error

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the client is closed")
