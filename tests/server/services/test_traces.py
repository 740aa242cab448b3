"""Calls of jobs and models on their way to spans."""

import math

import pytest

from forebay_server.services.traces import CallTraces
from forebay_server.telemetry.tracing import records
from forebay_server.telemetry.tracing.sampling import Tail, sampler
from forebay_server.telemetry.tracing.tracer import Tracer
from forebay_server.wire.port import CALL, Method, MethodKind

SAMPLED = f"00-{'ab' * 16}-{'cd' * 8}-01"
UNSAMPLED = f"00-{'ab' * 16}-{'cd' * 8}-00"
SUBMIT = Method(path="/forebay.v1.JobService/Submit", kind=MethodKind.UNARY)
RESULT = Method(path="/forebay.v1.JobService/Result", kind=MethodKind.UNARY)
WATCH = Method(path="/forebay.v1.JobService/WatchJob", kind=MethodKind.SERVER_STREAM)


class House:
    def __init__(self):
        self.now = 10.0
        self.tracer = Tracer(
            sampler("parentbased_always_off", 1.0), Tail(1.0, 10.0), codes={}, clock=lambda: self.now, most=100
        )
        self.traces = CallTraces(self.tracer, patient=["forebay.v1.JobService/Result"])

    def begin(self, call, method, traceparent=""):
        metadata = [("traceparent", traceparent)] if traceparent else None
        self.traces.begun((CALL, call, 0, b"", math.inf, None, metadata), method)

    def end(self, call, method, code="OK"):
        self.traces.ended(call, method.path.removeprefix("/"), code, 0.0)


@pytest.fixture
def house():
    return House()


def test_a_sampled_call_is_kept_from_its_arrival_to_its_end(house):
    """Under its caller's span, with its method and code."""
    house.begin(1, SUBMIT, SAMPLED)
    house.now = 10.25
    house.end(1, SUBMIT, "NOT_FOUND")

    (record,) = house.tracer.queue
    assert record[0] == records.CALL
    assert (record[1].trace_id, record[1].parent_id) == (int("ab" * 16, 16), int("cd" * 8, 16))
    assert record[2:6] == (10.0, 10.25, "forebay.v1.JobService/Submit", "NOT_FOUND")


@pytest.mark.parametrize(
    ("method", "seconds", "code", "kept"),
    [
        (SUBMIT, 0.5, "OK", False),
        (SUBMIT, 1.0, "OK", True),
        (SUBMIT, 0.5, "NOT_FOUND", False),
        (SUBMIT, 0.5, "UNAVAILABLE", True),
        (RESULT, 60.0, "OK", False),
        (RESULT, 60.0, "INTERNAL", True),
        (WATCH, 60.0, "OK", False),
    ],
)
def test_what_is_kept_though_nobody_samples_it(house, method, seconds, code, kept):
    """What is slow, but for those who wait for something and streams; and what fails by the server's fault."""
    house.begin(1, method, UNSAMPLED)
    house.now += seconds
    house.end(1, method, code)

    assert len(house.tracer.queue) == kept


def test_the_context_for_what_comes_later(house):
    """A job is told of its submission's span while the call is open: sampled, not sampled, or unknown."""
    house.begin(1, SUBMIT, SAMPLED)
    house.begin(2, SUBMIT, UNSAMPLED)
    house.begin(3, SUBMIT)
    sampled = house.traces.traceparent(1)
    assert sampled.startswith(f"00-{'ab' * 16}-")
    assert sampled.endswith("-01")
    assert "cd" * 8 not in sampled, "its parent is the submission, not the caller"
    assert house.traces.traceparent(2) == UNSAMPLED
    assert house.traces.traceparent(3) == ""
    house.end(1, SUBMIT)
    assert house.traces.traceparent(1) == ""
