"""The client for threads: make it once, share it among threads, close it at the end."""

import random
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, Unpack, overload

from forebay.v1 import inference_pb2
from forebay_client import _plans, _tracing
from forebay_client._aggregation import DELAY, ROWS, AggregationCore
from forebay_client._core import DEADLINE, Inputs, ParameterValue, Priority, check_deadline
from forebay_client._exceptions import Cancelled, ForebayError
from forebay_client._results import Prediction
from forebay_client._stream import Failures
from forebay_client._stream_plan import StreamOptions, StreamPlan
from forebay_client._sync_aggregator import Aggregator
from forebay_client._sync_base import BaseClient
from forebay_client._sync_stream import PredictionStream


class Client(BaseClient):
    """Calls a Forebay server. Any number of threads may use one client."""

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
        **options: Unpack[StreamOptions],
    ) -> PredictionStream[Prediction] | PredictionStream[Prediction | ForebayError]:
        """Runs many requests over one stream; an iterator over their outcomes.

        The source is read in a thread of its own, never further ahead than the window, in items and in bytes. One
        item's error leaves the stream alive, and so does a server that goes away while there is another, or that comes
        back.

        Args:
            model: The model's name.
            items: The inputs of each item, as for `predict`.
            failures: What becomes of an item's error: `next` raises it (and can be called again), or gives it out.
            **options: `StreamOptions` documents them.

        Raises:
            TypeError: There is no such option.
            ValueError: An option is out of range.
        """
        self._check_open()
        plan = StreamPlan(model, **options)

        def prepare(inputs: Inputs) -> inference_pb2.PredictRequest:
            return self._carry_out(_plans.build(plan.builder, inputs, self._only_inputs, plan.deadline))

        def open_call(messages: Iterator[inference_pb2.StreamPredictRequest], timeout: float) -> Any:
            if self._closed:
                raise Cancelled("the client was closed during the call")
            return self._method("StreamPredict")(messages, timeout=timeout, metadata=metadata)

        span = _tracing.start("StreamPredict", self._target.address)
        metadata = _tracing.with_context(self._metadata, span)
        core = plan.core(clock=time.monotonic, chance=random.random, span=_tracing.stream(span))
        return PredictionStream(core, items, prepare, open_call, failures)

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
    ) -> Aggregator:
        """Something that sends many callers' requests together, for links on which each message is dear.

        Args:
            model: The model's name; it must have rows.
            rows: Requests go as soon as they have so many together.
            delay: Seconds after the first of them at which they go anyhow.
            version: A number or a label; empty: the model's default.
            outputs: The outputs wanted; None: all.
            deadline: Seconds for each request, from its call.
            priority: The weight among requests of the same tenant.
            parameters: Values for engines that take them.

        Raises:
            ValueError: An argument is out of range.
        """
        wanted = None if outputs is None else list(outputs)

        def send(inputs: Inputs, left: float) -> Prediction:
            return self.predict(
                model,
                inputs,
                version=version,
                outputs=wanted,
                deadline=left,
                priority=priority,
                parameters=parameters,
            )

        return Aggregator(AggregationCore(rows=rows, delay=delay), send, check_deadline(deadline))
