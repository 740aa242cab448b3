"""A small JobService in memory, whose jobs are done at once, or when a test says so."""

import itertools
import threading
import time
from collections.abc import Callable

import grpc
from google.rpc import status_pb2

from forebay.v1 import inference_pb2, job_pb2, job_service_pb2, job_service_pb2_grpc

FINAL = {
    job_pb2.JOB_STATE_SUCCEEDED,
    job_pb2.JOB_STATE_FAILED,
    job_pb2.JOB_STATE_CANCELLED,
    job_pb2.JOB_STATE_EXPIRED,
}

KEY_REUSED = (grpc.StatusCode.ALREADY_EXISTS, "JOB_KEY_REUSED", "the key stands for another payload", None)
UNAVAILABLE = (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", "the store does not answer", None)
QUEUE_FULL = (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", "too many jobs wait", 0.25)
EXPIRED = (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXPIRED", "the job expired", None)


class Jobs(job_service_pb2_grpc.JobServiceServicer):
    """The service, and a record of what it saw.

    Jobs of the model `slow` run until the test calls `finish`; others are done when they are stored.

    Args:
        answer: What comes of a request: a response, or a fault.
        status_of: The status of a fault.
    """

    def __init__(self, answer: Callable, status_of: Callable[..., status_pb2.Status]) -> None:
        self._answer = answer
        self._status_of = status_of
        self._numbers = itertools.count(1)
        self.changed = threading.Condition()
        self.jobs: dict[str, job_service_pb2.ResultResponse] = {}
        self.payloads: dict[str, inference_pb2.PredictRequest] = {}
        self.submits: list[job_service_pb2.SubmitRequest] = []
        self.results: list[job_service_pb2.ResultRequest] = []
        self.watches = 0
        self.remaining: list[float] = []
        """The deadlines of the calls for results."""
        self.refusals: list[tuple] = []
        """Faults with which the next calls end, one each."""
        self.lost_answers = 0
        """So many submissions are stored, and then answered with UNAVAILABLE."""
        self.busy = False
        """Calls that would wait are answered at once."""

    def finish(self, job_id: str, state: int = job_pb2.JOB_STATE_SUCCEEDED) -> None:
        """Ends a job: with its answer, unless the state says otherwise."""
        with self.changed:
            entry, request = self.jobs[job_id], self.payloads[job_id]
            entry.job.end_time.FromSeconds(1_700_000_005)
            entry.job.purge_time.FromSeconds(1_700_086_405)
            entry.job.version = 3
            entry.job.state = state
            if state == job_pb2.JOB_STATE_EXPIRED:
                entry.error.CopyFrom(self._status_of(EXPIRED))
            elif state != job_pb2.JOB_STATE_CANCELLED:
                found = self._answer(request)
                if isinstance(found, inference_pb2.PredictResponse):
                    entry.response.CopyFrom(found)
                else:
                    entry.job.state = job_pb2.JOB_STATE_FAILED
                    entry.error.CopyFrom(self._status_of(found))
            self.changed.notify_all()

    def touch(self, job_id: str, state: int) -> None:
        """Moves a job to another state."""
        with self.changed:
            self.jobs[job_id].job.state = state
            self.changed.notify_all()

    def forget(self) -> None:
        """All jobs are deleted."""
        with self.changed:
            self.jobs.clear()

    def Submit(self, request, context):
        self.submits.append(request)
        self._refuse(context)
        with self.changed:
            for entry in self.jobs.values():
                if entry.job.request_id == request.request_id != "":
                    if self.payloads[entry.job.id].inputs != request.request.inputs:
                        self._abort(
                            context, (grpc.StatusCode.ALREADY_EXISTS, "JOB_KEY_REUSED", "another payload", None)
                        )
                    return job_service_pb2.SubmitResponse(job=entry.job)
            found = job_pb2.Job(
                id=f"{next(self._numbers):032x}",
                state=job_pb2.JOB_STATE_PENDING,
                model=request.request.model,
                request_id=request.request_id,
                jobs_ahead=len(self.jobs),
            )
            found.create_time.FromSeconds(1_700_000_000)
            found.estimated_wait.FromMilliseconds(250)
            if request.HasField("expire_after"):
                found.expire_time.FromSeconds(1_700_000_000 + request.expire_after.seconds)
            self.jobs[found.id] = job_service_pb2.ResultResponse(job=found)
            self.payloads[found.id] = request.request
            if request.request.model != "slow":
                self.finish(found.id)
            if self.lost_answers:
                self.lost_answers -= 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "lost")
            return job_service_pb2.SubmitResponse(job=self.jobs[found.id].job)

    def Result(self, request, context):
        self.results.append(request)
        self.remaining.append(context.time_remaining())
        self._refuse(context)
        until = time.monotonic() + request.wait.seconds + request.wait.nanos / 1e9
        with self.changed:
            entry = self._find(request.id, context)
            while (
                entry.job.state not in FINAL
                and not self.busy
                and context.is_active()
                and (left := until - time.monotonic()) > 0
            ):
                self.changed.wait(min(left, 0.05))
            return entry

    def WatchJob(self, request, context):
        self.watches += 1
        self._refuse(context)
        last = None
        while True:
            with self.changed:
                entry = self._find(request.id, context)
                while entry.job == last and context.is_active():
                    self.changed.wait(0.05)
                last = job_pb2.Job()
                last.CopyFrom(entry.job)
            yield job_service_pb2.WatchJobResponse(job=last)
            if last.state in FINAL or not context.is_active():
                return

    def CancelJob(self, request, context):
        self._refuse(context)
        with self.changed:
            entry = self._find(request.id, context)
            if entry.job.state not in FINAL:
                self.finish(request.id, job_pb2.JOB_STATE_CANCELLED)
            return job_service_pb2.CancelJobResponse(job=entry.job)

    def ListJobs(self, request, context):
        self._refuse(context)
        found = [
            entry.job
            for entry in reversed(self.jobs.values())
            if (not request.states or entry.job.state in request.states)
            and (not request.model or entry.job.model == request.model)
        ]
        start = int(request.page_token or 0)
        stop = start + request.page_size
        return job_service_pb2.ListJobsResponse(
            jobs=found[start:stop], next_page_token=str(stop) if stop < len(found) else ""
        )

    def _find(self, job_id, context):
        if job_id not in self.jobs:
            self._abort(context, (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND", "no such job", None))
        return self.jobs[job_id]

    def _refuse(self, context) -> None:
        if self.refusals:
            self._abort(context, self.refusals.pop(0))

    def _abort(self, context, fault) -> None:
        status = self._status_of(fault)
        context.set_trailing_metadata([("grpc-status-details-bin", status.SerializeToString())])
        context.abort(fault[0], fault[2])
