"""What the tracer keeps, told by its queue: exact instants, and no more than the queue holds."""

from types import SimpleNamespace

import pytest

from forebay_server.scheduling.events import EXEMPLAR
from forebay_server.scheduling.request import Batch, Part, Reason
from forebay_server.telemetry.tracing import records
from forebay_server.telemetry.tracing.records import Trace
from forebay_server.telemetry.tracing.sampling import Tail, sampler
from forebay_server.telemetry.tracing.tracer import Tracer

SAMPLED = f"00-{'ab' * 16}-{'cd' * 8}-01"
UNSAMPLED = f"00-{'ab' * 16}-{'cd' * 8}-00"


class Clock:
    """Stands where it is put."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def make(clock, name="parentbased_always_off", *, most=100, slow=1.0, per_second=10.0, events=None):
    """A tracer."""
    codes = {"QUEUE_FULL": "RESOURCE_EXHAUSTED", "INVALID_TENSOR": "INVALID_ARGUMENT", "INTERNAL": "INTERNAL"}
    return Tracer(
        sampler(name, 1.0), Tail(slow, per_second), codes=codes, clock=clock, most=most, events=events, wall=lambda: 1e9
    )


def request(trace=None, arrival=0.0, level=0):
    """A request, as far as a tracer sees it."""
    lane = SimpleNamespace(key=("m", 1))
    return SimpleNamespace(trace=trace, arrival=arrival, deadline=9.0, rows=2, lane=lane, level=level, method=1)


def batch_of(*requests, completed=0.5):
    """A batch of them."""
    parts = [Part(each, 0, each.rows) for each in requests]
    rows = 2 * len(requests)
    batch = Batch(3, SimpleNamespace(key=("m", 1)), parts, rows, rows + 1, Reason.IDLE, 0.25, 0.125)
    batch.collated, batch.finished, batch.completed = 0.25, 0.375, completed
    return batch


def test_who_is_sampled(clock):
    """A sampled caller's span is under its; an unsampled one's text is kept; nobody else is there."""
    tracer = make(clock)
    trace = tracer.begin([("a", "b"), ("traceparent", SAMPLED)])

    assert isinstance(trace, Trace)
    assert (trace.trace_id, trace.parent_id, trace.remote) == (int("ab" * 16, 16), int("cd" * 8, 16), True)
    assert tracer.begin([("traceparent", UNSAMPLED)]) == UNSAMPLED
    assert tracer.begin([("traceparent", "nonsense")]) is None
    assert tracer.begin([("traceparent", b"bytes")]) is None
    assert tracer.begin([("other", "x")]) is None
    assert tracer.begin(None) is None


def test_ids_are_never_zero_and_never_the_same(clock):
    """Each has its own."""
    tracer = make(clock, "always_on")
    traces = [tracer.begin(None) for _ in range(1000)]

    assert len({trace.trace_id for trace in traces}) == len({trace.span_id for trace in traces}) == 1000
    assert all(trace.trace_id and trace.span_id and not trace.parent_id for trace in traces)


def test_a_request_in_a_batch(clock):
    """The batch's record comes first, under its first request; both know each other; an exemplar is reported."""
    events = []
    tracer = make(clock, "always_on", events=events)
    first, second, unsampled = request(tracer.begin(None)), request(tracer.begin(None)), request()
    tracer.batch(batch_of(unsampled, first, second), "")
    clock.now = 0.75
    tracer.answered(first, "Predict")
    tracer.answered(unsampled, "Predict")
    batch, call = tracer.queue
    span = batch[1]

    assert batch[0] == records.BATCH
    assert (span.trace_id, span.parent_id) == (first.trace.trace_id, first.trace.span_id)
    assert batch[2:] == (
        0.125, 0.375, ("m", 1), 3, 6, 7, 3, 2, 0.25, (0.125, 0.25, 0.375), "", [first.trace, second.trace],
    )  # fmt: skip
    assert first.trace.batches == [span]
    assert call == (records.CALL, first.trace, 0.0, 0.75, "Predict", "OK", "", ("m", 1), 2)
    assert events == [(EXEMPLAR, ("m", 1), 1, 0.75, first.trace.trace_id, first.trace.span_id, 1e9)]


def test_a_batch_of_strangers_leaves_nothing(clock):
    """Nobody in it is sampled."""
    tracer = make(clock)
    tracer.batch(batch_of(request(), request(UNSAMPLED)), "")

    assert not tracer.queue


def test_the_slow_are_kept_jobs_are_not(clock):
    """What has waited for the limit or longer is sampled when its batch is done, in its caller's trace."""
    tracer = make(clock, slow=1.0)
    slow, fast, job = request(UNSAMPLED, arrival=-1.0), request(arrival=0.0), request(arrival=-9.0, level=1)
    tracer.batch(batch_of(slow, fast, job, completed=0.5), "")

    assert slow.trace.by == "slow"
    assert (slow.trace.trace_id, slow.trace.parent_id) == (int("ab" * 16, 16), int("cd" * 8, 16))
    assert fast.trace is None
    assert job.trace is None
    assert tracer.queue[0][-1] == [slow.trace]


def test_errors_are_kept_but_not_the_callers_own(clock):
    """By the code of the reason; one that nobody knows counts as the server's fault."""
    tracer = make(clock)
    for reason in ("QUEUE_FULL", "INVALID_TENSOR", "INTERNAL", "NEW_REASON"):
        tracer.failed(request(), "Predict", reason)

    assert [(record[5], record[6]) for record in tracer.queue] == [
        ("RESOURCE_EXHAUSTED", "QUEUE_FULL"),
        ("INTERNAL", "INTERNAL"),
        ("UNKNOWN", "NEW_REASON"),
    ]
    assert {record[1].by for record in tracer.queue} == {"error"}


def test_a_sampled_failure_needs_no_allowance(clock):
    """The tail's allowance is for those who were not sampled."""
    tracer = make(clock, per_second=0.0)
    tracer.failed(request(tracer.begin([("traceparent", SAMPLED)])), "Predict", "INVALID_TENSOR")
    tracer.failed(request(), "Predict", "INTERNAL")

    assert len(tracer.queue) == 1
    assert tracer.suppressed == 1


def test_the_queue_is_bounded(clock):
    """What finds it full is counted."""
    tracer = make(clock, "always_on", most=3)
    for _ in range(10):
        tracer.answered(request(tracer.begin(None)), "Predict")

    assert (len(tracer.queue), tracer.dropped) == (3, 7)


def test_what_would_be_dropped_is_dropped_at_its_beginning(clock):
    """Where it costs least: it is not sampled, counted once, and its caller's context stays as if it were unsampled."""
    tracer = make(clock, "parentbased_always_on", most=8)
    early = request(tracer.begin(None))
    for _ in range(7):
        tracer.answered(request(tracer.begin(None)), "Predict")

    assert tracer.dropped == 0
    assert tracer.begin(None) is None
    assert tracer.begin([("traceparent", "nonsense")]) is None
    assert tracer.begin([("traceparent", SAMPLED)]) == SAMPLED
    assert tracer.item("", early.trace) is None
    assert tracer.dropped == 4
    tracer.answered(early, "Predict")
    assert (len(tracer.queue), tracer.dropped) == (7, 5), "one that was sampled before is dropped at its end"
    tracer.queue.popleft()
    assert isinstance(tracer.begin(None), Trace)


def fail(tracer, early, clock):
    """A request that fails through the server's fault."""
    tracer.failed(early, "Predict", "INTERNAL")


def refuse(tracer, early, clock):
    """A request that is shed."""
    tracer.failed_item(early, 1, "QUEUE_FULL")


def dawdle(tracer, early, clock):
    """A request that is slow."""
    clock.now = 1.0
    tracer.answered(early, "Predict")


def break_batch(tracer, early, clock):
    """A batch that fails."""
    tracer.batch(batch_of(early), "INTERNAL")


def keep_slow_batch(tracer, early, clock):
    """A batch with a request that the tail rule keeps."""
    tracer.batch(batch_of(request(arrival=-1.0)), "")


def break_webhook(tracer, early, clock):
    """A webhook that does not arrive."""
    tracer.webhook(early.trace, 0.0, "job", 1, 500, "refused")


@pytest.mark.parametrize("happen", [fail, refuse, dawdle, break_batch, keep_slow_batch, break_webhook])
def test_the_noteworthy_is_dropped_last(clock, happen):
    """An eighth of the queue is for it alone, and that is bounded, too."""
    tracer = make(clock, "parentbased_always_on", most=16)
    early = [request(tracer.begin(None)) for _ in range(4)]
    while len(tracer.queue) < 14:
        tracer.answered(request(tracer.begin(None)), "Predict")
    tracer.answered(early.pop(), "Predict")
    assert (len(tracer.queue), tracer.dropped) == (14, 1)

    for each in early[:2]:
        happen(tracer, each, clock)
    assert (len(tracer.queue), tracer.dropped) == (16, 1)
    happen(tracer, early[2], clock)
    assert (len(tracer.queue), tracer.dropped) == (16, 2)


@pytest.mark.parametrize("error", ["rejected", ""])
def test_the_callers_own_fault_is_not_noteworthy(clock, error):
    """Nor is what was cancelled, or a batch that failed through its callers."""
    tracer = make(clock, "parentbased_always_on", most=8)
    early = request(tracer.begin(None))
    while len(tracer.queue) < 7:
        tracer.answered(request(tracer.begin(None)), "Predict")
    tracer.batch(batch_of(early), error)
    tracer.failed(early, "Predict", "INVALID_TENSOR")
    tracer.cancelled(early, "Predict")

    assert (len(tracer.queue), tracer.dropped) == (7, 3)


def test_a_request_dropped_at_its_beginning_may_be_kept_at_its_end(clock):
    """By the tail rule, under its caller's span."""
    tracer = make(clock, "parentbased_always_on", most=8)
    while len(tracer.queue) < 7:
        tracer.answered(request(tracer.begin(None)), "Predict")
    tracer.failed(request(tracer.begin([("traceparent", SAMPLED)])), "Predict", "INTERNAL")

    assert tracer.queue[-1][1].by == "error"
    assert tracer.queue[-1][1].parent_id == int("cd" * 8, 16)


def test_onward_and_resume(clock):
    """What was sampled goes on under its span; what was not says so; what is no context is not passed on."""
    tracer = make(clock)
    trace = tracer.begin([("traceparent", SAMPLED)])
    resumed = tracer.resume(tracer.onward(trace))

    assert (resumed.trace_id, resumed.parent_id, resumed.remote) == (trace.trace_id, trace.span_id, True)
    assert tracer.onward(UNSAMPLED) == UNSAMPLED
    assert tracer.resume(UNSAMPLED) == UNSAMPLED
    assert tracer.onward(None) == tracer.onward("00-\0" + "x" * 49 + "00") == ""
    assert tracer.resume("") is None


def test_a_cancelled_request_was_late_or_left(clock):
    """By its deadline."""
    tracer = make(clock, "always_on")
    tracer.cancelled(request(tracer.begin(None)), "Predict")
    clock.now = 9.0
    tracer.cancelled(request(tracer.begin(None)), "Predict")

    assert [record[5] for record in tracer.queue] == ["CANCELLED", "DEADLINE_EXCEEDED"]


def test_items_of_a_stream(clock):
    """With a context of their own they follow it; else the sampler's part is under the stream."""
    tracer = make(clock, "always_on")
    stream = tracer.begin(None)
    inside, alone, own = tracer.item("", stream), tracer.item("", None), tracer.item(SAMPLED, stream)

    assert (inside.trace_id, inside.parent_id, inside.remote) == (stream.trace_id, stream.span_id, False)
    assert alone.parent_id == 0
    assert (own.trace_id, own.remote) == (int("ab" * 16, 16), True)
    assert make(clock).item("", stream) is None


def test_steps_of_a_model(clock):
    """The inner step ends first and is under the outer one."""
    tracer = make(clock)
    whole = tracer.model("load", "m", 2)
    clock.now = 1.0
    step = whole.inner("warm")
    clock.now = 2.0
    step.end()
    whole.end("ModelLoadError")
    inner, outer = tracer.queue

    assert inner[2:] == (1.0, 2.0, "warm", "m", 2, "")
    assert outer[2:] == (0.0, 2.0, "load", "m", 2, "ModelLoadError")
    assert inner[1].parent_id == outer[1].span_id
    off = make(clock, "always_off").model("load", "m", 2)
    off.inner("warm").end()
    off.end()
