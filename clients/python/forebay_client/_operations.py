"""What both clients do but for streams: each method once, as a plan. `_surface` makes methods of clients of them."""

import time
from collections.abc import Iterable, Mapping

from forebay.v1 import inference_pb2
from forebay_client import _job_plans, _plans
from forebay_client._channel import MAX_MESSAGE_BYTES, Address, Target, Tls
from forebay_client._core import (
    DEADLINE,
    Inputs,
    ParameterValue,
    Priority,
    RequestBuilder,
    check_deadline,
    new_key,
    read_prediction,
)
from forebay_client._exceptions import InvalidRequest, NotFound
from forebay_client._jobs import PAGE_SIZE, Job, JobState, Result, Seconds, Webhook, job_id, list_request
from forebay_client._models import Model, ModelStatistics, ServerStatistics
from forebay_client._results import Health, Prediction
from forebay_client._retries import Budget, Retry, retried
from forebay_client._steps import Plan, Series
from forebay_client._surface import Iteration, Operation

NO_RETRY = Retry(attempts=1)


class Operations:
    """A client but for streams and its way to wait."""

    def __init__(
        self,
        address: Address,
        *,
        tls: Tls | None = None,
        tenant: str = "",
        metadata: Mapping[str, str] | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        connections: int = 1,
        health_check: bool | None = None,
        retry: Retry | None = Retry(),  # noqa: B008  # it is frozen
        options: Iterable[tuple[str, str | int]] = (),
    ) -> None:
        """Stores the arguments; the first call connects.

        Args:
            address: `host:port`, `unix:/path`, or any other target that gRPC resolves; `dns:///name:port` balances over
                all addresses of the name. Or a sequence of IP addresses with ports, or of Unix sockets: all of them.
            tls: TLS; None: plain text.
            tenant: Who calls, for servers that believe it from metadata.
            metadata: Sent with every call, lower-case keys.
            max_message_bytes: The largest message, both ways.
            connections: To each address. One carries tens of thousands of small calls a second; more help where large
                messages hold up small ones, or one connection is slower than the link.
            health_check: Whether servers that say that they do not serve are left out; None: if there may be several.
            retry: How predictions that were shed or met nobody are repeated; None: only as gRPC does itself.
            options: Further gRPC channel options; stronger than the client's own.

        Raises:
            ValueError: An argument is out of range, or the addresses do not go together.
            OSError: A file of `tls` can't be read.
        """
        self._target = Target(
            address=address,
            tls=tls,
            tenant=tenant,
            metadata=metadata or {},
            max_message_bytes=max_message_bytes,
            connections=connections,
            health_check=health_check,
            options=tuple(options),
        )
        self._metadata = self._target.call_metadata()
        self._retry = retry or NO_RETRY
        self._budget = Budget(self._retry)
        self._only_inputs: _plans.OnlyInputs = {}
        self._closed = False
        self._open()

    def _open(self) -> None:
        """Makes the channels of the target."""
        raise NotImplementedError

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the client is closed")

    # --- Predictions ---

    @Operation
    def predict(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str | int = "",
        outputs: Iterable[str] | None = None,
        deadline: float = DEADLINE,
        hedge: float | None = None,
        priority: Priority = "normal",
        parameters: Mapping[str, ParameterValue] | None = None,
        request_id: str = "",
        timings: bool = False,
    ) -> Plan[Prediction]:
        """Runs one request.

        Args:
            model: The model's name.
            inputs: Arrays by input name; for a model with one input, the array alone will do (the client asks the
                server once for the name). A batched model takes one or more rows along dimension 0.
            version: A number or a label; empty: the model's default.
            outputs: The outputs wanted; None: all.
            deadline: Seconds within which the answer must be here, all attempts together. The server schedules by it.
            hedge: Seconds after which a request that has no answer is sent once more, to another server if there is
                one; the first answer counts, and the other is cancelled. About the 95th percentile of the response time
                is a good value. None: never.
            priority: The weight among requests of the same tenant.
            parameters: Values for engines that take them.
            request_id: An id of the caller's own, which the prediction has again.
            timings: Whether the prediction is to tell where the time went.

        Raises:
            ForebayError: There is no result; see the exceptions for the causes.
            TypeError: An input can't be sent.
            ValueError: An argument is out of range, or a model with several inputs was given only an array.
        """
        until = time.monotonic() + check_deadline(deadline)
        if hedge is not None and not 0 < hedge < float("inf"):
            raise ValueError(f"hedge is a positive number of seconds, or None, not {hedge}")
        builder = RequestBuilder(
            model,
            version=version,
            outputs=outputs,
            priority=priority,
            parameters=parameters,
            request_id=request_id,
            timings=timings,
        )
        return self._predict(builder, inputs, until, hedge)

    def _predict(self, builder: RequestBuilder, inputs: Inputs, until: float, hedge: float | None) -> Plan[Prediction]:
        if isinstance(inputs, Mapping):
            request = builder.build(inputs)
        else:
            left = max(until - time.monotonic(), 1e-3)
            request = yield from _plans.build(builder, inputs, self._only_inputs, left)
        try:
            response: inference_pb2.PredictResponse = yield from retried(
                "Predict", request, until, self._retry, self._budget, hedge=hedge
            )
        except (InvalidRequest, NotFound):
            self._only_inputs.pop((builder.model, builder.version), None)  # the model may have been replaced
            raise
        return read_prediction(response)

    # --- What a server tells of itself ---

    @Operation
    def models(self, *, deadline: float = DEADLINE) -> Plan[list[Model]]:
        """All models, by name.

        Raises:
            ForebayError: The server can't be asked.
        """
        return _plans.models(check_deadline(deadline))

    @Operation
    def model(self, name: str, *, deadline: float = DEADLINE) -> Plan[Model]:
        """One model: its versions, what they expect, and how they batch.

        Raises:
            ModelNotFound: There is no such model.
        """
        return _plans.model(name, check_deadline(deadline))

    @Operation
    def statistics(self, model: str = "", *, deadline: float = DEADLINE) -> Plan[list[ModelStatistics]]:
        """What the versions of a model, or of all models, have done since the server started.

        Raises:
            ModelNotFound: There is no such model.
        """
        return _plans.statistics(model, check_deadline(deadline))

    @Operation
    def server_statistics(self, *, deadline: float = DEADLINE) -> Plan[ServerStatistics]:
        """What the server as a whole and the versions of all models have done, with the buckets of all durations.

        Raises:
            ForebayError: The server can't be asked.
        """
        return _plans.server_statistics(check_deadline(deadline))

    @Operation
    def health(self, service: str = "", *, deadline: float = DEADLINE) -> Plan[Health]:
        """The health of the server (empty), of a service by its full name, or of a model as `model/NAME`.

        Raises:
            ForebayError: The server can't be asked.
        """
        return _plans.health(service, check_deadline(deadline))

    # --- Durable jobs: inference that is handed over now and fetched later ---

    @Operation
    def submit(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str | int = "",
        outputs: Iterable[str] | None = None,
        parameters: Mapping[str, ParameterValue] | None = None,
        priority: Priority = "normal",
        request_id: str | None = None,
        expire_after: Seconds | None = None,
        ttl: Seconds | None = None,
        webhook: Webhook | None = None,
        deadline: float = DEADLINE,
    ) -> Plan[Job]:
        """Hands over a request; returns when it is on the server's disk. `result` fetches what came of it.

        Sent again, under the same key, while the server is UNAVAILABLE: it is one job all the same.

        Args:
            model: The model's name.
            inputs: As for `predict`.
            version: A number or a label; empty: the model's default. Resolved when the job runs.
            outputs: The outputs wanted; None: all.
            parameters: Values for engines that take them.
            priority: The weight among jobs of the same tenant.
            request_id: The idempotency key: the same key with the same request gives the same job, as long as the job
                is kept. None: a random one.
            expire_after: Seconds from now within which the result is needed at all; None: it does not expire.
            ttl: Seconds for which the result is kept; None: the server's default.
            webhook: Whom to tell when the job has finished.
            deadline: Seconds within which the job must be acknowledged.

        Raises:
            JobKeyReused: The key stands for another request.
            Overloaded: Too many jobs wait, or the store is full; `retry_delay` says when to come back.
            Unavailable: The server is, to the end of the deadline. Whether there is a job is not known: the same call
                with the same `request_id` finds out.
            ForebayError: The request is refused, as `predict` would refuse it.
            TypeError: An input can't be sent.
            ValueError: An argument is out of range, or a model with several inputs was given only an array.
        """
        builder = RequestBuilder(
            model,
            version=version,
            outputs=outputs,
            priority=priority,
            parameters=parameters,
            request_id=new_key() if request_id is None else request_id,
        )
        return _job_plans.submit(
            builder,
            inputs,
            self._only_inputs,
            expire_after=expire_after,
            ttl=ttl,
            webhook=webhook,
            deadline=check_deadline(deadline),
        )

    @Operation
    def result(self, job: Job | str, *, timeout: float | None = None) -> Plan[Result]:
        """What came of a job; waits for that, also while the server restarts (for up to a minute).

        Args:
            job: The job, or its id.
            timeout: Seconds to wait for the job to finish; None: as long as it takes; 0: look once. A server that does
                not answer is given 10 s more.

        Raises:
            JobNotFinished: It has not finished within the time.
            JobCancelled: It was cancelled.
            JobExpired: It had not finished when its time was over.
            JobNotFound: There is no such job (any more).
            ForebayError: It failed: the class of its reason, with `job`. Or the server can't be asked, without `job`.
            ValueError: The timeout is out of range.
        """
        return _job_plans.result(job_id(job), timeout)

    @Operation
    def job(self, job: Job | str, *, deadline: float = DEADLINE) -> Plan[Job]:
        """A job as it is now.

        Raises:
            JobNotFound: There is no such job (any more).
        """
        return _job_plans.job(job_id(job), check_deadline(deadline))

    @Operation
    def cancel(self, job: Job | str, *, deadline: float = DEADLINE) -> Plan[Job]:
        """Cancels a job that has not finished. Either way the job as it is then: a finished one stays as it is.

        Raises:
            JobNotFound: There is no such job (any more).
        """
        return _job_plans.cancel(job_id(job), check_deadline(deadline))

    @Iteration
    def watch(self, job: Job | str, *, timeout: float | None = None) -> Series[Job]:
        """The job now and at each change, until it has finished; goes on if the server restarts (within a minute).

        Args:
            job: The job, or its id.
            timeout: Seconds; None: until the job has finished.

        Raises:
            JobNotFinished: The time is over, while iterating.
            JobNotFound: There is no such job (any more), while iterating.
            TenantQuota: Too many calls wait already, while iterating: use `result`.
            ValueError: The timeout is out of range.
        """
        return Series(_job_plans.watch(_job_plans.Watch(job_id(job), timeout)))

    @Iteration
    def jobs(
        self,
        *,
        states: Iterable[JobState | str] = (),
        model: str = "",
        page_size: int = PAGE_SIZE,
        deadline: float = DEADLINE,
    ) -> Series[Job]:
        """The tenant's jobs, the newest first; fetched page by page, as the iterator gets there.

        Args:
            states: Only jobs in one of these; empty: all. Those that were given up are `FAILED`.
            model: Only jobs of this model; empty: all.
            page_size: The most jobs fetched at a time.
            deadline: Seconds for each page.

        Raises:
            ValueError: An argument is out of range.
        """
        return Series(_job_plans.jobs(list_request(states, model, page_size), check_deadline(deadline)))
