"""The client for asyncio. One client is one channel: make it once in the event loop, share it, close it at the end."""

import time
from collections.abc import Iterable, Mapping
from typing import Literal, Unpack, overload

from forebay_client._async_jobs import AsyncJobClient
from forebay_client._async_stream import AsyncPredictionStream, AsyncSource
from forebay_client._core import (
    DEADLINE,
    Inputs,
    ParameterValue,
    Priority,
    RequestBuilder,
    check_deadline,
    read_prediction,
)
from forebay_client._exceptions import ForebayError, InvalidRequest, NotFound
from forebay_client._results import Prediction
from forebay_client._stream import ITEMS_PER_MESSAGE, STREAM_DEADLINE, WINDOW, Failures, StreamCore, StreamOptions


class AsyncClient(AsyncJobClient):
    """Calls a Forebay server from one event loop. Connects with the first call; any number of tasks may use one client.

    Args:
        address: `host:port`, `unix:/path`, or any other target that gRPC resolves.
        tls: TLS; None: plain text.
        tenant: Who calls, for servers that believe it from metadata.
        metadata: Sent with every call, lower-case keys.
        max_message_bytes: The largest message, both ways.
        options: Further gRPC channel options; stronger than the client's own.
    """

    async def predict(
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
        request = await self._request(builder, inputs, deadline)
        try:
            response = await self._invoke(self._inference.Predict, request, expires - time.monotonic())
        except (InvalidRequest, NotFound):
            self._only_inputs.pop((model, builder.version), None)  # the model may have been replaced
            raise
        return read_prediction(response)

    @overload
    def stream(
        self,
        model: str,
        items: AsyncSource,
        *,
        failures: Literal["raise"] = "raise",
        **options: Unpack[StreamOptions],
    ) -> AsyncPredictionStream[Prediction]: ...

    @overload
    def stream(
        self,
        model: str,
        items: AsyncSource,
        *,
        failures: Literal["yield"],
        **options: Unpack[StreamOptions],
    ) -> AsyncPredictionStream[Prediction | ForebayError]: ...

    def stream(
        self,
        model: str,
        items: AsyncSource,
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
    ) -> AsyncPredictionStream[Prediction] | AsyncPredictionStream[Prediction | ForebayError]:
        """Runs many requests over one stream; an asynchronous iterator over their outcomes.

        The source, asynchronous or not, is read in a task of its own, never further ahead than the window. One item's
        error leaves the stream alive. Call it in the event loop.

        Args:
            model: The model's name.
            items: The inputs of each item, as for `predict`.
            failures: What becomes of an item's error: `anext` raises it (and can be called again), or gives it out.
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
        return AsyncPredictionStream(
            core,
            items,
            lambda inputs: self._request(builder, inputs, deadline),
            lambda messages: self._inference.StreamPredict(messages, timeout=timeout, metadata=self._metadata),
            failures,
        )
