"""From a stored request to one of the scheduler, and back to stored bytes."""

import math

import numpy as np
import pytest

from forebay.v1 import inference_pb2
from forebay_server import errors
from forebay_server.errors import InvalidRequest
from forebay_server.scheduling.request import Level, Priority
from forebay_server.services.job_requests import JobDecoder


class Runner:
    """Who runs jobs."""

    def succeeded_all(self, runs, responses, version):
        for run, response in zip(runs, responses, strict=True):
            run.at_once = True
            run.succeeded(response, version)


class Run:
    """A job that is to run."""

    runner = Runner()
    at_once = False

    def __init__(self, message=None):
        self.version = 0
        self.outcomes = []
        self.payload = b"" if message is None else message.SerializeToString()

    def succeeded(self, response, version):
        self.outcomes.append((inference_pb2.PredictResponse.FromString(response), version))

    def failed(self, error):
        self.outcomes.append(error)


@pytest.fixture
def decode(house):
    decoder = JobDecoder(house.intake)

    def decode(message, run, deadline=math.inf):
        body = message if isinstance(message, bytes) else message.SerializeToString()
        return decoder.decode(body, "acme", deadline, house.clock.now, run)

    return decode


@pytest.mark.parametrize("template", [False, True])
def test_a_job_runs_like_a_call(house, decode, request_for, template):
    """Its rows are on the job level, with its own tenant, deadline and priority; the answer is the same as a call's."""
    message = request_for([1, 2, 3, 4], request_id="mine")
    if template:
        for _ in range(2):
            decode(message, Run())
        assert house.intake.match(message.SerializeToString()) is not None
    run = Run()

    request = decode(message, run, 250.0)

    assert (request.level, request.rows, request.nbytes, request.tenant) == (Level.JOB, 2, 16, "acme")
    assert (request.deadline, request.arrival, request.priority) == (250.0, 100.0, Priority.NORMAL)
    assert house.intake.admit(request, 100.0) is None
    house.scheduler.run(request)
    house.predict(1, message)
    house.scheduler.run(house.scheduler.admitted[-1])
    ((_, _, body),) = house.take()
    assert run.outcomes == [(inference_pb2.PredictResponse.FromString(body), 7)]
    assert np.frombuffer(run.outcomes[0][0].outputs[0].data, "<f4").tolist() == [2, 4, 6, 8]


def test_calls_do_not_become_jobs(house, decode, request_for):
    """A template that was learned from a job leaves calls on the online level."""
    for _ in range(3):
        decode(request_for(), Run())
    house.predict(1, request_for())

    assert house.scheduler.admitted[0].level == Level.ONLINE


def test_a_deadline_far_away_stays(decode, request_for):
    """The server's limit on the deadlines of calls is not one on jobs."""
    assert decode(request_for(), Run(), 1e9).deadline == 1e9
    assert decode(request_for(), Run()).deadline == math.inf


def test_no_rows(house, decode, request_for):
    """Answered at once, with the version that would have run."""
    run = Run()
    response = inference_pb2.PredictResponse.FromString(decode(request_for([], request_id="r"), run))

    assert (response.version, list(response.outputs[0].shape), response.request_id) == (7, [0, 2], "r")
    assert run.version == 7
    assert house.scheduler.lanes == []


def test_timings(house, decode, request_for):
    """Told if asked for."""
    run = Run()
    house.scheduler.run(decode(request_for(report_timings=True), run))
    assert run.outcomes[0][0].timings.compute_nanos == 1_000_000_000


def test_an_error_of_the_run(decode, request_for):
    """It goes to the job."""
    run = Run()
    error = errors.InputRejected("no cats")
    decode(request_for(), run).fail(error)
    assert run.outcomes == [error]


def test_outputs_that_can_not_be_encoded(house, decode, request_for, make_outputs, batch_of):
    """An exception becomes an internal error of the job, not of the dispatcher."""
    run = Run()
    request = decode(request_for(), run)
    request.succeed(make_outputs(), 0, batch_of([request]))

    (error,) = run.outcomes
    assert type(error) is errors.Internal
    assert house.take() == []


def test_outputs_too_large_for_people(house, decode, request_for, make_served, make_outputs, batch_of):
    """A readable answer that turns out too large is the job's error."""
    run = Run()
    request = decode(request_for(readable=True), run)
    request.succeed(make_outputs(np.zeros((5000, 2), "<f4")), 0, batch_of([request]))
    request.rows = 5000
    request.succeed(make_outputs(np.zeros((5000, 2), "<f4")), 0, batch_of([request]))

    assert [type(outcome) for outcome in run.outcomes] == [tuple, InvalidRequest]


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (b"\xff", InvalidRequest),
        (inference_pb2.PredictRequest(model="gone"), errors.ModelNotFound),
        (inference_pb2.PredictRequest(model="double", version="8"), errors.VersionNotFound),
        (inference_pb2.PredictRequest(model="double"), InvalidRequest),
    ],
)
def test_what_can_not_be_run(decode, message, error):
    """The model may have changed since the job was submitted."""
    with pytest.raises(error):
        decode(message, Run())


def learn(decode, message):
    """Has messages like this one follow a template."""
    for _ in range(2):
        decode(message, Run())


@pytest.mark.parametrize("name", ["", "id-0"])
def test_jobs_that_are_alike_are_decoded_at_once(house, decode, request_for, name):
    """Those at the beginning, up to one that is of another kind; each becomes what it becomes by itself."""
    learn(decode, request_for([9, 9], request_id=name))
    messages = [request_for([place, -place], request_id=name and f"id-{place}") for place in range(4)]
    runs = [Run(message) for message in messages]
    runs.insert(3, Run(request_for([1, 2, 3, 4])))

    requests = JobDecoder(house.intake).decode_all(runs, "acme", house.clock.now)

    assert [request.run for request in requests] == runs[:3]
    for request, run in zip(requests, runs, strict=False):
        alone = decode(run.payload, run)
        names = ("lane", "rows", "nbytes", "deadline", "arrival", "tenant", "priority", "level", "shapes", "parameters")
        for each in (*names, "report", "encoder", "tail", "state", "run"):
            assert getattr(request, each) == getattr(alone, each), each
        assert list(request.inputs) == list(alone.inputs)


def test_jobs_of_no_known_kind_are_not_decoded_at_once(house, decode, request_for):
    """Whoever asks does it one by one, and finds out what is wrong with them."""
    runs = [Run(request_for([1, 2])), Run(request_for([3, 4]))]
    assert not JobDecoder(house.intake).decode_all(runs, "acme", house.clock.now)
    learn(decode, request_for([1, 2]))
    house.catalogue.models.clear()
    assert not JobDecoder(house.intake).decode_all(runs, "acme", house.clock.now)


@pytest.mark.parametrize("name", ["", "id-0"])
def test_jobs_of_a_batch_get_their_responses_at_once(house, decode, request_for, name):
    """The same bytes that each gets by itself. One that wants timings, has several rows or is a call is left."""
    for _ in range(2):
        house.predict(1, request_for([9, 9]))
    learn(decode, request_for([9, 9], request_id=name))
    plain = [request_for([place, -place], request_id=name and f"id-{place}") for place in range(3)]
    alone = [Run() for _ in plain]
    for run, message in zip(alone, plain, strict=True):
        house.scheduler.run(decode(message, run))  # also makes known what the responses look like
    special = request_for([7, 7], request_id="t", report_timings=True)
    runs = [Run() for _ in range(4)]
    requests = [decode(message, run) for message, run in zip([*plain, special], runs, strict=True)]
    house.scheduler.run_together(*requests)

    assert [run.at_once for run in runs] == [True, True, True, False]
    for place, (run, one) in enumerate(zip(runs, alone, strict=False)):
        ((together, version),), ((by_itself, _),) = run.outcomes, one.outcomes
        data = np.frombuffer(by_itself.outputs[0].data, "<f4") + place
        by_itself.outputs[0].data = data.tobytes()
        assert (together, version) == (by_itself, 7)
    assert runs[3].outcomes[0][0].timings.batch_rows == 4
