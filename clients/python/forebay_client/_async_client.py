"""The client for asyncio: make it once in the event loop, share it, close it at the end."""

import random
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, Literal, Unpack, overload

from forebay.v1 import inference_pb2
from forebay_client import _plans, _tracing
from forebay_client._aggregation import DELAY, ROWS, AggregationCore
from forebay_client._async_aggregator import AsyncAggregator
from forebay_client._async_base import AsyncBaseClient
from forebay_client._async_stream import AsyncPredictionStream, AsyncSource
from forebay_client._core import DEADLINE, Inputs, ParameterValue, Priority, check_deadline
from forebay_client._exceptions import Cancelled, ForebayError
from forebay_client._results import Prediction
from forebay_client._stream import Failures
from forebay_client._stream_plan import StreamOptions, StreamPlan


class AsyncClient(AsyncBaseClient):
    """Calls a Forebay server from one event loop. Any number of tasks may use one client."""

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
        **options: Unpack[StreamOptions],
    ) -> AsyncPredictionStream[Prediction] | AsyncPredictionStream[Prediction | ForebayError]:
        """Runs many requests over one stream; an asynchronous iterator over their outcomes.

        As `Client.stream`; the source, asynchronous or not, is read in a task of its own. Call it in the event loop.
        """
        self._check_open()
        plan = StreamPlan(model, **options)

        async def prepare(inputs: Inputs) -> inference_pb2.PredictRequest:
            return await self._carry_out(_plans.build(plan.builder, inputs, self._only_inputs, plan.deadline))

        def open_call(messages: AsyncIterator[inference_pb2.StreamPredictRequest], timeout: float) -> Any:
            if self._closed:
                raise Cancelled("the client was closed during the call")
            return self._method("StreamPredict")(messages, timeout=timeout, metadata=metadata)

        span = _tracing.start("StreamPredict", self._target.address)
        metadata = _tracing.with_context(self._metadata, span)
        core = plan.core(clock=time.monotonic, chance=random.random, span=_tracing.stream(span))
        return AsyncPredictionStream(core, items, prepare, open_call, failures)

    def aggregator(
        self,
        model: str,
        *,
        rows: int = ROWS,
        delay: float = DELAY,
        version: str | int = "",
        outputs: Iterable[str] | None = None,
        deadline: float = DEADLINE,
        priority: Priority = "normal",
        parameters: Mapping[str, ParameterValue] | None = None,
    ) -> AsyncAggregator:
        """Something that sends many callers' requests together. As `Client.aggregator`."""
        wanted = None if outputs is None else list(outputs)

        async def send(inputs: Inputs, left: float) -> Prediction:
            return await self.predict(
                model,
                inputs,
                version=version,
                outputs=wanted,
                deadline=left,
                priority=priority,
                parameters=parameters,
            )

        return AsyncAggregator(AggregationCore(rows=rows, delay=delay), send, check_deadline(deadline))
