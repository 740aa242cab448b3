"""The jobs of the client for asyncio."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping

import grpc.aio

from forebay.v1 import job_service_pb2
from forebay_client import _errors, _job_plans
from forebay_client._async_base import AsyncBaseClient
from forebay_client._core import DEADLINE, Inputs, ParameterValue, Priority, RequestBuilder, check_deadline, new_key
from forebay_client._exceptions import ForebayError
from forebay_client._jobs import PAGE_SIZE, Job, JobState, Result, Seconds, Webhook, job_id, list_request, read_job


class AsyncJobClient(AsyncBaseClient):
    """Durable jobs: inference that is handed over now and fetched later. `AsyncClient` has these methods."""

    async def submit(
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
    ) -> Job:
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
        plan = _job_plans.submit(
            builder,
            inputs,
            self._only_inputs,
            expire_after=expire_after,
            ttl=ttl,
            webhook=webhook,
            deadline=check_deadline(deadline),
        )
        return await self._carry_out(plan)

    async def result(self, job: Job | str, *, timeout: float | None = None) -> Result:  # noqa: ASYNC109  # of many calls
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
        return await self._carry_out(_job_plans.result(job_id(job), timeout))

    async def job(self, job: Job | str, *, deadline: float = DEADLINE) -> Job:
        """A job as it is now.

        Raises:
            JobNotFound: There is no such job (any more).
        """
        return await self._carry_out(_job_plans.job(job_id(job), deadline))

    async def cancel(self, job: Job | str, *, deadline: float = DEADLINE) -> Job:
        """Cancels a job that has not finished. Either way the job as it is then: a finished one stays as it is.

        Raises:
            JobNotFound: There is no such job (any more).
        """
        return await self._carry_out(_job_plans.cancel(job_id(job), check_deadline(deadline)))

    def watch(self, job: Job | str, *, timeout: float | None = None) -> AsyncIterator[Job]:
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
        self._check_open()
        return self._watch(_job_plans.Watch(job_id(job), timeout))

    def jobs(
        self,
        *,
        states: Iterable[JobState | str] = (),
        model: str = "",
        page_size: int = PAGE_SIZE,
        deadline: float = DEADLINE,
    ) -> AsyncIterator[Job]:
        """The tenant's jobs, the newest first; fetched page by page, as the iterator gets there.

        Args:
            states: Only jobs in one of these; empty: all. Those that were given up are `FAILED`.
            model: Only jobs of this model; empty: all.
            page_size: The most jobs fetched at a time.
            deadline: Seconds for each page.

        Raises:
            ValueError: An argument is out of range.
        """
        self._check_open()
        return self._pages(list_request(states, model, page_size), check_deadline(deadline))

    async def _watch(self, watch: _job_plans.Watch) -> AsyncIterator[Job]:
        while not watch.over:
            error: ForebayError | None = None
            self._check_open()
            call = self._jobs.WatchJob(watch.request, timeout=watch.call_timeout(), metadata=self._metadata)
            try:
                async for response in call:
                    job = watch.news(response)
                    if job is not None:
                        yield job
            except grpc.aio.AioRpcError as exc:
                error = _errors.from_rpc(exc)
            except asyncio.CancelledError as exc:
                raise _errors.from_cancellation() from exc
            finally:
                call.cancel()
            if not watch.over:
                await asyncio.sleep(watch.interrupted(error))

    async def _pages(self, request: job_service_pb2.ListJobsRequest, deadline: float) -> AsyncIterator[Job]:
        while True:
            page = await self._invoke(self._jobs.ListJobs, request, deadline)
            for message in page.jobs:
                yield read_job(message)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
