"""What the services cost per request, in microseconds: `python -m bench.micro_codec`.

No sockets, no engine, no scheduler: the handlers are driven with real messages and a scheduler that only takes notes,
so the figures are parsing, validation, building, encoding and the outbox. The alternatives for writing a response are
measured beside the one that is used.
"""

import math
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from forebay.v1 import inference_pb2, job_service_pb2
from forebay_server import errors
from forebay_server.jobs.states import JobState
from forebay_server.jobs.store import Job, Submit
from forebay_server.scheduling.request import Batch, Reason
from forebay_server.services.codec import Encoder
from forebay_server.services.inference import InferenceService
from forebay_server.services.intake import Intake
from forebay_server.services.jobs import JobService
from forebay_server.services.status import failure
from forebay_server.services.submissions import Submissions
from forebay_server.services.validation import Rules, validate
from forebay_server.telemetry.histogram import Histogram
from forebay_server.tensors import FREE, DataType, ModelSpec, TensorSpec
from forebay_server.wire.port import Peer

SPEC = ModelSpec(
    inputs=(TensorSpec(name="pixels", data_type=DataType.FP32, shape=(FREE, 64)),),
    outputs=(TensorSpec(name="probabilities", data_type=DataType.FP32, shape=(FREE, 10)),),
    batched=True,
)
OUTPUT = bytes(40)
NOW = 1_700_000_000.25
PEER = Peer(0, "127.0.0.1:1", None)
BATCH = Batch(0, SimpleNamespace(), [], 1, 1, Reason.IDLE, None, 0.0)  # type: ignore[arg-type]  # nobody looks at it


class Scheduler:
    """Takes notes."""

    def __init__(self) -> None:
        self.admitted: list[Any] = []
        self.admit = lambda request, _now: self.admitted.append(request)

    def lane(self, *_arguments: Any) -> Any:
        return SimpleNamespace()

    def admit_alike(self, requests: Sequence[Any], _now: float) -> list[Any]:
        self.admitted += requests
        return []

    def cancel(self, *_arguments: Any) -> bool:
        return True

    def outage(self, _key: tuple[str, int]) -> None:
        return None


class Outputs:
    """One row of one output."""

    def data(self, *_arguments: Any) -> tuple[bytes, tuple[int, ...]]:
        return OUTPUT, (1, 10)

    def small(self, *_arguments: Any) -> tuple[bytes, int, tuple[int, ...]]:
        return OUTPUT, len(OUTPUT), (1, 10)


def measure(name: str, work: Callable[[], Any], *, each: int = 1, seconds: float = 0.4) -> None:
    """Prints the best of several rounds."""
    work()
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(200):
            work()
        best = min(best, (time.perf_counter() - start) / 200 / each)
    print(f"{name:<58}{best * 1e6:8.2f}")


def request(request_id: str = "") -> inference_pb2.PredictRequest:
    message = inference_pb2.PredictRequest(model="digits", request_id=request_id)
    message.inputs.add(name="pixels", data_type=12, shape=[1, 64], data=bytes(range(256)))
    return message


def intake_of(scheduler: Scheduler) -> Intake:
    served = SimpleNamespace(
        name="digits", version=1, key=("digits", 1), spec=SPEC, config=SimpleNamespace(nan="allow"), bucket_of=tuple
    )
    catalogue: Any = SimpleNamespace(
        resolve=lambda name, version, routes={("digits", ""): served}: routes[name, version]
    )
    return Intake(catalogue, scheduler, clock=time.monotonic)


def house() -> tuple[InferenceService, Scheduler, list[Any]]:
    scheduler = Scheduler()
    outbox: list[Any] = []
    return InferenceService(intake_of(scheduler), outbox, stream_window=4096), scheduler, outbox


def unary(name: str, message: inference_pb2.PredictRequest) -> None:
    body = message.SerializeToString()
    service, scheduler, outbox = house()

    def arrive() -> None:
        service.predict((1, 7, 0, body, math.inf, PEER, None))
        scheduler.admitted.clear()

    def whole() -> None:
        service.predict((1, 7, 0, body, math.inf, PEER, None))
        scheduler.admitted.pop().succeed(Outputs(), 0, BATCH)
        outbox.clear()

    measure(f"Predict, {name}: parse, validate, build", arrive)
    measure(f"Predict, {name}: the same and the answer", whole)


def stream(items: int) -> None:
    service, scheduler, outbox = house()
    message = inference_pb2.StreamPredictRequest()
    for ident in range(items):
        message.items.add(id=1000 + ident).request.CopyFrom(request())
    body = message.SerializeToString()
    service.streams.opened((2, 9, 1, None, math.inf, PEER, None))

    def whole() -> None:
        service.streams.message((3, 9, 1, body, math.inf, None, None))
        done = [(item, 0, None) for item in scheduler.admitted]
        if len(done) > 1:  # As the runner does it.
            done = done[0][0].succeed_all(done, Outputs())
        for item, row, _ in done:
            item.succeed(Outputs(), row, BATCH)
        scheduler.admitted.clear()
        service.flush()
        outbox.clear()

    measure(f"StreamPredict, {items} items per message, per item", whole, each=items)


class Desk:
    """Answers at once, as if the store had."""

    def submit(self, job: Submit, done: Callable[[Any], None]) -> None:
        done(
            Job(job.id, "", 7, JobState.PENDING, "digits", "", 0, 2, job.request_id, 0, 0, NOW, None, None, None, None)
        )

    def prospect(self, _job: Job) -> tuple[int, float | None]:
        return 3, 0.25


def submit(name: str, message: job_service_pb2.SubmitRequest) -> None:
    body = message.SerializeToString()
    intake = intake_of(Scheduler())
    outbox: list[Any] = []
    submissions = Submissions(intake, default_ttl=60.0, max_ttl=60.0, allowed=lambda _url, _secret: None)
    desk: Any = Desk()
    endpoint = JobService(desk, intake, submissions, outbox).service().endpoints[0]

    def whole() -> None:
        endpoint.on_call((1, 7, 0, body, math.inf, PEER, None))
        outbox.clear()

    measure(f"Submit, {name}: parse, validate, answer", whole)
    for _ in range(2):  # the second of its length is learned from
        InferenceService(intake, outbox).predict((1, 7, 0, message.request.SerializeToString(), math.inf, PEER, None))
    measure(f"Submit, {name}, after a template", whole)


def responses() -> None:
    """The ways to write a response."""
    encoder = Encoder("digits", 1, SPEC)
    outputs = Outputs()
    reused = inference_pb2.PredictResponse(model="digits", version=1)
    output = reused.outputs.add(name="probabilities", data_type=12, shape=[1, 10])

    def mutate() -> bytes:
        output.data = OUTPUT
        output.shape[:] = (1, 10)
        return reused.SerializeToString()

    def build() -> bytes:
        message = inference_pb2.PredictResponse(model="digits", version=1)
        message.outputs.add(name="probabilities", data_type=12, shape=[1, 10], data=OUTPUT)
        return message.SerializeToString()

    measure("response: constant parts and data joined (used)", lambda: encoder.encode(outputs, 0, 1))
    measure("response: one message mutated and serialized", mutate)
    measure("response: a message built and serialized", build)


def main() -> None:
    print(f"{'microseconds':>66}")
    rules, message = Rules(SPEC), request()
    parse = inference_pb2.PredictRequest.FromString
    body = message.SerializeToString()
    measure("parse alone", lambda: parse(body))
    measure("parse and validate", lambda: validate(parse(body), rules))
    unary("plain", request())
    unary("with a request id", request("0123456789abcdef"))
    for items in (1, 32):
        stream(items)
    submit("plain", job_service_pb2.SubmitRequest(request=request()))
    submit("with a key", job_service_pb2.SubmitRequest(request=request(), request_id="0123456789abcdef"))
    responses()
    error = errors.QueueFull("the queue of 'digits' is full", retry_after=0.25)
    measure("failure of an overload", lambda: failure(error))
    histogram = Histogram()
    measure("histogram record", lambda: histogram.record(0.0123))


if __name__ == "__main__":
    main()
