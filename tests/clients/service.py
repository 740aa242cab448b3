"""A small real server, whose answers are known.

The model `double` has one input `x` (FP32, any number of rows of 2) and one output `y` = 2x; `many` has two inputs. A
first element of x that is negative makes the request fail as `FAULTS` says, and a REJECTED one anywhere does, too.
"""

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forebay.v1 import (
    inference_pb2,
    inference_service_pb2_grpc,
    job_pb2,
    job_service_pb2_grpc,
    model_pb2,
    model_service_pb2,
    model_service_pb2_grpc,
    statistics_pb2,
    tensor_pb2,
)
from tests.clients.job_service import Jobs

VIOLATION = error_details_pb2.BadRequest.FieldViolation(field="inputs[0].shape", description="is wrong")

Fault = tuple[grpc.StatusCode, str, str, float | None]

FAULTS: dict[int, Fault] = {
    -1: (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", "the queue is full", 0.25),
    -2: (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_TENSOR", "bad tensor", None),
    -3: (grpc.StatusCode.INTERNAL, "INTERNAL", "internal error 0123abcd", None),
    -4: (grpc.StatusCode.UNAVAILABLE, "DRAINING", "shutting down", None),
}

REJECTED = -9.0
REJECTION: Fault = (grpc.StatusCode.INVALID_ARGUMENT, "INPUT_REJECTED", "this row is refused", None)


def status_of(fault: Fault) -> status_pb2.Status:
    """The `google.rpc.Status` that a server would send."""
    code, reason, message, retry = fault
    details: list[Any] = [
        error_details_pb2.ErrorInfo(
            reason=reason,
            domain="forebay",
            metadata={"error_id": "0123abcd"} if reason == "INTERNAL" else {"queued_rows": "7"},
        )
    ]
    if retry is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(retry * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if reason == "INVALID_TENSOR":
        details.append(error_details_pb2.BadRequest(field_violations=[VIOLATION]))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code.value[0], message=message, details=packed)


def answer(request: inference_pb2.PredictRequest) -> inference_pb2.PredictResponse | Fault:
    """What the server makes of a request."""
    response = inference_pb2.PredictResponse(model=request.model, version=3, request_id=request.request_id)
    if request.model == "echo":
        response.outputs.extend(request.inputs)
    elif request.model == "broken":
        response.outputs.add(name="y", data_type=tensor_pb2.DATA_TYPE_FP32, shape=[3], data=b"123")
    elif request.model == "large":
        response.outputs.add(name="y", data_type=tensor_pb2.DATA_TYPE_UINT8, shape=[1 << 20], data=bytes(1 << 20))
    elif request.model in ("double", "slow"):
        x = np.frombuffer(request.inputs[0].data, "<f4")
        if x.size and x[0] in FAULTS:
            return FAULTS[int(x[0])]
        if REJECTED in x:
            return REJECTION
        response.outputs.add(
            name="y", data_type=tensor_pb2.DATA_TYPE_FP32, shape=request.inputs[0].shape, data=(x * 2).tobytes()
        )
    else:
        return (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", f"no model {request.model}", None)
    if request.report_timings:
        response.timings.CopyFrom(
            inference_pb2.Timings(
                queue_nanos=1_000_000,
                collate_nanos=2_000,
                compute_nanos=3_000_000,
                encode_nanos=4_000,
                batch_rows=5,
                batch_requests=2,
                padded_rows=3,
                dispatch_reason=inference_pb2.DISPATCH_REASON_DELAY,
            )
        )
    return response


def spec(name: str) -> tensor_pb2.TensorSpec:
    return tensor_pb2.TensorSpec(name=name, data_type=tensor_pb2.DATA_TYPE_FP32, shape=[-1, 2], batch_dimension=0)


def model(name: str, inputs: list[str]) -> model_pb2.Model:
    found = model_pb2.Model(name=name, labels={"stable": 3}, default_version=3)
    version = found.versions.add(
        version=3,
        state=model_pb2.MODEL_STATE_READY,
        engine="synthetic",
        inputs=[spec(input_name) for input_name in inputs],
        outputs=[spec("y")],
        batching=model_pb2.Batching(max_batch_size=8, best_batch_size=4),
        instances=2,
        run_mode=model_pb2.RUN_MODE_WORKER,
    )
    version.batching.max_delay.FromMilliseconds(2)
    version.ready_time.FromSeconds(1_700_000_000)
    return found


MODELS = [model("double", ["x"]), model("echo", ["x"]), model("many", ["a", "b"]), model("slow", ["x"])]


class Server(health_pb2_grpc.HealthServicer):
    """The services, and a record of what they saw."""

    def __init__(self) -> None:
        self.requests: list[inference_pb2.PredictRequest] = []
        self.metadata: list[dict[str, str]] = []
        self.remaining: list[float] = []
        self.messages: list[inference_pb2.StreamPredictRequest] = []
        self.stream_ended = threading.Event()
        """The handler of a stream has returned."""
        self.received = threading.Semaphore(0)
        """Released for each stream message."""
        self.proceed = threading.Event()
        """`slow` items wait for it."""
        self.script = "answer"
        """What streams do: answer, drain (after the first message), die, finish, foreign, reverse, hold."""

    # --- InferenceService ---

    def Predict(self, request, context):
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.remaining.append(context.time_remaining())
        if request.model == "slow":
            self.proceed.wait(10)
        result = answer(request)
        if isinstance(result, inference_pb2.PredictResponse):
            return result
        code, reason, message, retry = result
        trailers: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", status_of(result).SerializeToString())]
        if retry is not None:
            trailers.append(("grpc-retry-pushback-ms", str(int(retry * 1000))))
        context.set_trailing_metadata(trailers)
        context.abort(code, message)
        raise AssertionError(reason)

    def StreamPredict(self, messages, context):
        self.metadata.append(dict(context.invocation_metadata()))
        self.remaining.append(context.time_remaining())
        try:
            yield from self._stream(messages, context)
        finally:
            self.stream_ended.set()

    def _stream(self, messages, context) -> Iterator[inference_pb2.StreamPredictResponse]:
        kept: list[inference_pb2.StreamItem] = []
        for message in messages:
            self.messages.append(message)
            self.received.release()
            if self.script == "hold":
                continue
            if self.script == "die":
                context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            if self.script == "finish":
                return
            if self.script == "foreign":
                yield inference_pb2.StreamPredictResponse(results=[inference_pb2.StreamResult(id=4711)])
                continue
            if self.script == "reverse":
                kept.extend(message.items)
                continue
            if self.script == "wait":
                self.proceed.wait(10)
            response = self._results(message.items)
            if self.script == "drain" and len(self.messages) == 1:
                response.drain.grace.FromSeconds(5)
            yield response
        yield self._results(kept[::-1])

    def _results(self, items: Iterable[inference_pb2.StreamItem]) -> inference_pb2.StreamPredictResponse:
        response = inference_pb2.StreamPredictResponse()
        for item in items:
            result = answer(item.request)
            if isinstance(result, inference_pb2.PredictResponse):
                response.results.add(id=item.id, response=result)
            else:
                response.results.add(id=item.id, error=status_of(result))
        return response

    # --- ModelService ---

    def ListModels(self, request, context):
        start = int(request.page_token or 0)
        page = MODELS[start : start + 2]
        following = str(start + 2) if start + 2 < len(MODELS) else ""
        return model_service_pb2.ListModelsResponse(models=page, next_page_token=following)

    def GetModel(self, request, context):
        self.requests.append(request)
        for found in MODELS:
            if found.name == request.model:
                return model_service_pb2.GetModelResponse(model=found)
        context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        return None

    def GetStatistics(self, request, context):
        statistics = model_pb2.ModelStatistics(
            model=request.model or "double", version=3, padded_rows=1, queued_rows=2, held_bytes=3, wait_margin=1.5
        )
        statistics.outcomes.add(code="OK", requests=10)
        statistics.batch_sizes.add(rows=4, batches=2)
        statistics.dispatches.add(reason=inference_pb2.DISPATCH_REASON_IDLE, batches=2)
        statistics.costs.add(bucket="2", rows=4, predicted_nanos=2_000_000, samples=9)
        statistics.request_time.CopyFrom(
            model_pb2.LatencySummary(count=10, sum_nanos=10**9, p50_nanos=10**8, p90_nanos=2 * 10**8, p99_nanos=10**9)
        )
        response = model_service_pb2.GetStatisticsResponse(statistics=[statistics])
        if request.buckets:
            response.statistics[0].MergeFrom(
                model_pb2.ModelStatistics(
                    state=model_pb2.MODEL_STATE_READY,
                    engine="synthetic",
                    instances=2,
                    usable_instances=1,
                    running_batches=1,
                    busy_nanos=2_500_000_000,
                )
            )
            response.statistics[0].request_time.buckets.MergeFrom(
                model_pb2.DurationBuckets(smallest_nanos=1_000_000, growth=2.0, first=3, counts=[1, 0, 9])
            )
            response.server.start_time.FromSeconds(1_700_000_000)
            response.server.MergeFrom(
                statistics_pb2.ServerStatistics(
                    uptime_nanos=12_500_000_000, release="1.2.3", front_end="native", draining=True, held_bytes=7
                )
            )
            response.server.jobs.store = "sqlite"
            response.server.jobs.available = True
            response.server.jobs.states.add(state=job_pb2.JOB_STATE_PENDING, jobs=4)
            response.server.jobs.states.add(state=77, jobs=1)  # of a newer server
        return response

    # --- Health ---

    def Check(self, request, context):
        states = {"": health_pb2.HealthCheckResponse.SERVING, "model/slow": health_pb2.HealthCheckResponse.NOT_SERVING}
        if request.service not in states:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return health_pb2.HealthCheckResponse(status=states[request.service])


class Running:
    """A `Server` on a port, with a `Jobs` unless it keeps none. `restart` starts it again after `stop`."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None, *, keeps_jobs: bool = True) -> None:
        self.log = Server()
        self.jobs = Jobs(answer, status_of)
        self._credentials = credentials
        self._keeps_jobs = keeps_jobs
        self._start(0)

    def _start(self, port: int) -> None:
        self.server = grpc.server(ThreadPoolExecutor(80), options=[("grpc.so_reuseport", 0)])
        inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(self.log, self.server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(self.log, self.server)
        health_pb2_grpc.add_HealthServicer_to_server(self.log, self.server)
        if self._keeps_jobs:
            job_service_pb2_grpc.add_JobServiceServicer_to_server(self.jobs, self.server)
        if self._credentials is None:
            self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        else:
            self.port = self.server.add_secure_port(f"127.0.0.1:{port}", self._credentials)
        self.address = f"127.0.0.1:{self.port}"
        self.server.start()

    def stop(self) -> None:
        self.log.proceed.set()
        self.server.stop(0).wait()

    def restart(self) -> None:
        self._start(self.port)
