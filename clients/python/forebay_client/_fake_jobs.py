"""Durable jobs that are not durable: `JobService` in memory, for `testing`. A thread runs each job at once."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

import grpc
from google.rpc import status_pb2

from forebay.v1 import inference_pb2, job_pb2, job_service_pb2, job_service_pb2_grpc
from forebay_client._fake_status import abort, status_of

_FINAL = frozenset(
    {
        job_pb2.JOB_STATE_SUCCEEDED,
        job_pb2.JOB_STATE_FAILED,
        job_pb2.JOB_STATE_CANCELLED,
        job_pb2.JOB_STATE_EXPIRED,
    }
)
_PAGE = 100  # jobs

Answer: TypeAlias = inference_pb2.PredictResponse | status_pb2.Status


class FakeJobs(job_service_pb2_grpc.JobServiceServicer):
    """The service.

    Args:
        run: What comes of a request.
    """

    def __init__(self, run: Callable[[inference_pb2.PredictRequest], Answer]) -> None:
        self._run = run
        self._changed = threading.Condition()
        self._jobs: dict[str, job_service_pb2.ResultResponse] = {}
        self._payloads: dict[str, tuple[str, bytes]] = {}
        """The id and the payload of each idempotency key."""
        self._stopped = False

    def stop(self) -> None:
        """Lets go all calls that wait."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def Submit(
        self, request: job_service_pb2.SubmitRequest, context: grpc.ServicerContext
    ) -> job_service_pb2.SubmitResponse:
        payload = request.request.SerializeToString(deterministic=True)
        with self._changed:
            known = self._payloads.get(request.request_id)
            if known is not None:
                if known[1] != payload:
                    abort(context, status_of("JOB_KEY_REUSED", "the key stands for another payload"))
                return job_service_pb2.SubmitResponse(job=self._jobs[known[0]].job)
            job = job_pb2.Job(
                id=secrets.token_hex(16),
                state=job_pb2.JOB_STATE_PENDING,
                model=request.request.model,
                request_id=request.request_id,
            )
            job.create_time.GetCurrentTime()
            self._jobs[job.id] = job_service_pb2.ResultResponse(job=job)
            if request.request_id:
                self._payloads[request.request_id] = (job.id, payload)
        threading.Thread(target=self._work, args=(job.id, request.request), daemon=True).start()
        return job_service_pb2.SubmitResponse(job=job)

    def Result(
        self, request: job_service_pb2.ResultRequest, context: grpc.ServicerContext
    ) -> job_service_pb2.ResultResponse:
        until = time.monotonic() + request.wait.seconds + request.wait.nanos / 1e9
        with self._changed:
            entry = self._find(request.id, context)
            while entry.job.state not in _FINAL and not self._stopped and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            return _copy(entry)

    def WatchJob(
        self, request: job_service_pb2.WatchJobRequest, context: grpc.ServicerContext
    ) -> Iterator[job_service_pb2.WatchJobResponse]:
        context.add_callback(self._wake)
        told: job_pb2.Job | None = None
        while True:
            with self._changed:
                entry = self._find(request.id, context)
                while entry.job == told and context.is_active() and not self._stopped:
                    self._changed.wait()
                told = _copy(entry).job
            yield job_service_pb2.WatchJobResponse(job=told)
            if told.state in _FINAL or not context.is_active() or self._stopped:
                return

    def CancelJob(
        self, request: job_service_pb2.CancelJobRequest, context: grpc.ServicerContext
    ) -> job_service_pb2.CancelJobResponse:
        with self._changed:
            entry = self._find(request.id, context)
            if entry.job.state not in _FINAL:
                self._end(entry, job_pb2.JOB_STATE_CANCELLED)
            return job_service_pb2.CancelJobResponse(job=_copy(entry).job)

    def ListJobs(
        self, request: job_service_pb2.ListJobsRequest, context: grpc.ServicerContext
    ) -> job_service_pb2.ListJobsResponse:
        with self._changed:
            found = [
                _copy(entry).job
                for entry in reversed(self._jobs.values())
                if (not request.states or entry.job.state in request.states)
                and (not request.model or entry.job.model == request.model)
            ]
        start = int(request.page_token or 0)
        end = start + (request.page_size or _PAGE)
        following = str(end) if end < len(found) else ""
        return job_service_pb2.ListJobsResponse(jobs=found[start:end], next_page_token=following)

    def _work(self, job_id: str, request: inference_pb2.PredictRequest) -> None:
        with self._changed:
            entry = self._jobs[job_id]
            if entry.job.state in _FINAL:
                return
            entry.job.state = job_pb2.JOB_STATE_RUNNING
            entry.job.attempt = 1
            entry.job.start_time.GetCurrentTime()
            self._changed.notify_all()
        found = self._run(request)
        with self._changed:
            if entry.job.state in _FINAL:
                return
            if isinstance(found, inference_pb2.PredictResponse):
                entry.response.CopyFrom(found)
                entry.job.version = found.version
                self._end(entry, job_pb2.JOB_STATE_SUCCEEDED)
            else:
                entry.error.CopyFrom(found)
                self._end(entry, job_pb2.JOB_STATE_FAILED)

    def _end(self, entry: job_service_pb2.ResultResponse, state: job_pb2.JobState.ValueType) -> None:
        entry.job.state = state
        entry.job.end_time.GetCurrentTime()
        self._changed.notify_all()

    def _find(self, job_id: str, context: grpc.ServicerContext) -> job_service_pb2.ResultResponse:
        if job_id not in self._jobs:
            abort(context, status_of("JOB_NOT_FOUND", "there is no such job"))
        return self._jobs[job_id]

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


def _copy(entry: job_service_pb2.ResultResponse) -> job_service_pb2.ResultResponse:
    """As it is now: gRPC serializes it later, in another thread's time."""
    found = job_service_pb2.ResultResponse()
    found.CopyFrom(entry)
    return found
