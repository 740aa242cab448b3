"""Somebody outside who knows what was promised: writes down every acknowledgement, durably, and checks them all later.

The rules that it checks: a job that was acknowledged exists, under one id for its key; it ends SUCCEEDED with the
answer of a reference computation; the server knows no job that was not asked for; no row ran more often than attempts
are allowed; and an outcome, once seen, does not change.
"""

import itertools
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from forebay.v1 import inference_pb2, job_pb2, job_service_pb2, job_service_pb2_grpc, tensor_pb2
from tests.chaos.audited import ORDINARY, answer

MODEL = "scramble"
RETRIED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.NOT_FOUND,  # the model, while the server comes up
}


def request_of(number: int, kind: int = ORDINARY, rows: int = 1) -> inference_pb2.PredictRequest:
    """A request of one row that counts; others fill it up."""
    data = np.zeros((rows, 2), "<i8")
    data[0] = number, kind
    tensor = tensor_pb2.Tensor(name="x", data_type=tensor_pb2.DATA_TYPE_INT64, shape=data.shape, data=data.tobytes())
    return inference_pb2.PredictRequest(model=MODEL, inputs=[tensor])


def value_of(response: inference_pb2.PredictResponse) -> int:
    """The answer in a response."""
    return int(np.frombuffer(response.outputs[0].data, "<i8")[0])


class Ledger:
    """What was acknowledged, each line on disk before anybody goes on."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")
        self._lock = threading.Lock()
        self.jobs: dict[str, int] = {}
        """Number by job id."""
        self.times: dict[str, float] = {}
        """When each was acknowledged, monotonic seconds."""
        self.contradictions: list[str] = []
        self._ids: dict[int, str] = {}

    def acknowledged(self, number: int, job_id: str) -> None:
        """Writes down that a job was taken in."""
        with self._lock:
            known = self._ids.setdefault(number, job_id)
            if known != job_id:
                self.contradictions.append(f"{number} is {known} and {job_id}")
            self.jobs[job_id] = number
            self.times[job_id] = time.monotonic()
            self._file.write(json.dumps([number, job_id]) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Oracle:
    """Submits from several threads through whatever happens, and knows what must be true in the end."""

    def __init__(self, address: str, folder: Path, *, threads: int = 4, pace: float = 0.0) -> None:
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 100),
        ]
        self.channel = grpc.insecure_channel(address, options)
        self.stub = job_service_pb2_grpc.JobServiceStub(self.channel)
        self.ledger = Ledger(folder / "ledger")
        self.refusals: Counter[str] = Counter()
        self.perishable: set[str] = set()
        """Jobs that are deleted soon after their end."""
        self._doubtful: set[str] = set()
        self._outcomes: dict[str, job_service_pb2.ResultResponse] = {}
        self._later: list[Future[str]] = []
        self._pool = ThreadPoolExecutor(8)
        self._pace = pace
        self._numbers = itertools.count(1_000_000)
        self._stopping = threading.Event()
        self._closing = False
        self._threads = [threading.Thread(target=self._submit_all, daemon=True) for _ in range(threads)]

    def start(self) -> "Oracle":
        """Begins to submit."""
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        """Submits no new jobs; those whose acknowledgement is due are asked for until it comes."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a submission was never answered"

    def submit(
        self,
        number: int,
        kind: int = ORDINARY,
        rows: int = 1,
        *,
        ttl: float = 0.0,
        webhook: job_pb2.Webhook | None = None,
        patience: float = 60.0,
    ) -> str:
        """Submits one job until it is acknowledged; its id. With `ttl` (seconds) it is perishable."""
        message = job_service_pb2.SubmitRequest(
            request=request_of(number, kind, rows), request_id=f"number-{number}", webhook=webhook
        )
        if ttl:
            message.ttl.FromMilliseconds(int(ttl * 1000))
        until = time.monotonic() + patience
        while True:
            try:
                job = self.stub.Submit(message, timeout=5).job
            except grpc.RpcError as error:
                self.refusals[error.code().name] += 1
                if error.code() not in RETRIED or time.monotonic() > until or self._closing:
                    raise
                time.sleep(0.02)
                continue
            if ttl:
                self.perishable.add(job.id)
            else:
                self.ledger.acknowledged(number, job.id)
            return job.id

    def submit_later(self, number: int, **fields: Any) -> "Future[str]":
        """As `submit`, in a thread of its own; `settled` waits for it."""
        self._later.append(self._pool.submit(self.submit, number, **fields))
        return self._later[-1]

    def _submit_all(self) -> None:
        for number in self._numbers:
            if self._stopping.is_set():
                return
            try:
                self.submit(number)
            except grpc.RpcError:
                if self._closing:
                    return
                raise
            if self._pace:
                time.sleep(self._pace)

    def doubt(self, since: float) -> None:
        """What was acknowledged from `since` (monotonic seconds) until now may be lost, by no fault of the server."""
        self._doubtful |= {job_id for job_id, when in self.ledger.times.items() if when >= since}

    # --- Afterwards ---------------------------------------------------------------------------------------------------

    def settled(self, patience: float = 60.0) -> dict[str, job_service_pb2.ResultResponse]:
        """Waits until every job that is acknowledged by now has ended; what each became when that was seen first."""
        until = time.monotonic() + patience
        while self._later:
            self._later.pop().result(patience)
        for job_id in list(self.ledger.jobs):
            if job_id in self._doubtful and self._is_lost(job_id):
                del self.ledger.jobs[job_id]
            elif job_id not in self._outcomes:
                self._outcomes[job_id] = self._ended(job_id, until)
        return self._outcomes

    def _ended(self, job_id: str, until: float) -> job_service_pb2.ResultResponse:
        request = job_service_pb2.ResultRequest(id=job_id)
        request.wait.FromSeconds(5)
        last = None
        while True:
            try:
                result = self.stub.Result(request, timeout=10)
            except grpc.RpcError as error:
                if error.code() not in RETRIED - {grpc.StatusCode.NOT_FOUND}:
                    raise AssertionError(f"{job_id} is lost") from error
                time.sleep(0.05)
            else:
                if result.job.state not in (job_pb2.JOB_STATE_PENDING, job_pb2.JOB_STATE_RUNNING):
                    return result
                last = result.job
            assert time.monotonic() < until, f"{job_id} has not ended: {last}"

    def _is_lost(self, job_id: str) -> bool:
        try:
            self.stub.Result(job_service_pb2.ResultRequest(id=job_id), timeout=10)
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.NOT_FOUND
        return False

    def any_runs(self, ids: list[str]) -> bool:
        """Whether one of these jobs runs."""
        results = [self.stub.Result(job_service_pb2.ResultRequest(id=job_id), timeout=10) for job_id in ids]
        return any(result.job.state == job_pb2.JOB_STATE_RUNNING for result in results)

    def listed(self) -> list[job_pb2.Job]:
        """All jobs that the server knows."""
        jobs: list[job_pb2.Job] = []
        token = ""
        while True:
            page = self.stub.ListJobs(job_service_pb2.ListJobsRequest(page_size=1000, page_token=token), timeout=20)
            jobs += page.jobs
            token = page.next_page_token
            if not token:
                return jobs

    def check(self, audit: Path, *, max_attempts: int, also: Callable[[int], bool] = lambda _number: False) -> int:
        """Everything that was promised holds; how many jobs there were.

        Args:
            audit: What the model has run.
            max_attempts: The most times that a row may have run.
            also: Numbers that need not have succeeded.
        """
        outcomes = self.settled()
        assert not self.ledger.contradictions, self.ledger.contradictions[:3]
        for job_id, number in self.ledger.jobs.items():
            if also(number):
                continue
            result = outcomes[job_id]
            assert result.job.state == job_pb2.JOB_STATE_SUCCEEDED, f"{job_id}: {result.job.state} {result.error}"
            assert value_of(result.response) == answer(number), f"{job_id} has another's answer"
        until = time.monotonic() + 30
        known = {job.id for job in self.listed()}
        while known & self.perishable:
            assert time.monotonic() < until, "what has had its time is not deleted"
            time.sleep(0.1)
            known = {job.id for job in self.listed()}
        assert known == set(self.ledger.jobs), "there are jobs that nobody asked for"
        again = {job_id: self._ended(job_id, time.monotonic() + 30) for job_id in list(self.ledger.jobs)[:200]}
        for job_id, result in again.items():
            assert result == outcomes[job_id], f"{job_id} has changed after its end"
        runs = Counter(int(line.split()[0]) for line in audit.read_text().splitlines())
        assert max(runs.values()) <= max_attempts
        assert set(self.ledger.jobs.values()) <= set(runs) | {n for n in self.ledger.jobs.values() if also(n)}
        return len(self.ledger.jobs)

    def close(self) -> None:
        """Ends its calls, answered or not."""
        self._closing = True
        self._stopping.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(20)
        self._pool.shutdown()
        self.channel.close()
        self.ledger.close()
