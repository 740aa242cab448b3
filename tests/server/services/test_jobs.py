"""Durable jobs over gRPC, driven through the endpoints, at a small desk."""

import math

import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from forebay.v1 import inference_pb2, job_service_pb2
from forebay_server import errors
from forebay_server.jobs.states import JobState
from forebay_server.jobs.store import Found, Job, Page
from forebay_server.services.jobs import JobService
from forebay_server.services.submissions import Submissions
from forebay_server.wire.port import FAIL, FINISH, RESPOND, SEND, MethodKind, Peer

ID = "0123456789abcdef0123456789abcdef"
NOBODY = "0" * 32
JOB = Job(ID, "", 7, JobState.PENDING, "double", "", 0, 2, "", 0, 0, 1000.0, None, None, None, None)
RUNNING = JOB._replace(state=JobState.RUNNING, attempt=1, started=1001.0)
DONE = RUNNING._replace(state=JobState.SUCCEEDED, ended=1002.0, purges=1100.0, served_version=7)
RESPONSE = inference_pb2.PredictResponse(model="double", version=7)


class Desk:
    """Takes notes of what is asked, and answers when the test says so."""

    def __init__(self):
        self.asked = []
        self.left = []

    def submit(self, job, done):
        self.asked.append(("submit", job, done))

    def look(self, job_id, tenant, done):
        self.asked.append(("look", (job_id, tenant), done))

    def wait(self, job_id, tenant, connection, until, done):
        self.asked.append(("wait", (job_id, tenant, connection, until), done))
        return len(self.asked)

    def watch(self, job_id, tenant, connection, tell):
        self.asked.append(("watch", (job_id, tenant, connection), tell))
        return len(self.asked)

    def leave(self, waiter):
        self.left.append(waiter)

    def cancel(self, job_id, tenant, done):
        self.asked.append(("cancel", (job_id, tenant), done))

    def page(self, page, done):
        self.asked.append(("page", page, done))

    def prospect(self, job):
        assert job.state is JobState.PENDING
        return 3, 0.5

    def take(self):
        ((kind, what, done),) = self.asked
        self.asked.clear()
        return kind, what, done


class Jobs:
    """A caller."""

    def __init__(self, house, **options):
        self.house = house
        self.desk = Desk()
        submissions = Submissions(house.intake, default_ttl=60.0, max_ttl=60.0, allowed=lambda _url, _secret: None)
        self.service = JobService(self.desk, house.intake, submissions, house.outbox, **options)
        self.submit, self.result, self.watch, self.cancel, self.list = self.service.service().endpoints
        self.take = house.take

    def call(self, endpoint, message, *, call=5, deadline=math.inf, peer=None, metadata=None):
        body = message if isinstance(message, bytes) else message.SerializeToString()
        endpoint.on_call((1, call, 0, body, deadline, peer or Peer(0, "unix:", None), metadata))

    def ask(self, endpoint, message, **options):
        """What the desk is asked for."""
        self.call(endpoint, message, **options)
        assert self.take() == []
        return self.desk.take()

    def refused(self, endpoint, message, **options):
        """Code, reason and violations of a call that is refused at once."""
        self.call(endpoint, message, **options)
        assert self.desk.asked == []
        (action,) = self.take()
        return failure(action)


def failure(action):
    """(code, reason, violations)."""
    kind, call, failed = action
    assert (kind, call) == (FAIL, 5)
    details = status_pb2.Status.FromString(failed.details).details
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert details[0].Unpack(info)
    if len(details) > 1:
        details[1].Unpack(bad)
    return failed.code, info.reason, [(one.field, one.description) for one in bad.field_violations]


@pytest.fixture
def jobs(house):
    return Jobs(house)


def the_job(**fields):
    made = job_service_pb2.SubmitResponse().job
    made.id, made.state, made.model = ID, 1, "double"
    made.create_time.seconds = 1000
    made.jobs_ahead = 3
    made.estimated_wait.FromNanoseconds(500_000_000)
    return made


def test_methods(jobs):
    """The contract's methods, in its kinds."""
    service = jobs.service.service()
    assert service.name == "forebay.v1.JobService"
    assert [(one.method.path, one.method.kind) for one in service.endpoints] == [
        ("/forebay.v1.JobService/Submit", MethodKind.UNARY),
        ("/forebay.v1.JobService/Result", MethodKind.UNARY),
        ("/forebay.v1.JobService/WatchJob", MethodKind.SERVER_STREAM),
        ("/forebay.v1.JobService/CancelJob", MethodKind.UNARY),
        ("/forebay.v1.JobService/ListJobs", MethodKind.UNARY),
    ]


def test_every_endpoint_refuses_what_is_no_message(jobs):
    """INVALID_ARGUMENT, with the message's name."""
    for endpoint in jobs.service.service().endpoints:
        name = endpoint.method.path.rpartition("/")[2]
        sentence = f"the message can't be parsed as a {name}Request"
        assert jobs.refused(endpoint, b"\xff") == (3, "INVALID_TENSOR", [("", sentence)])


def test_a_fault_of_a_handler_is_an_internal_error(jobs, monkeypatch):
    """Its text stays here."""
    monkeypatch.setattr(jobs.desk, "look", lambda *_: 1 / 0)
    assert jobs.refused(jobs.result, job_service_pb2.ResultRequest(id=ID)) == (13, "INTERNAL", [])


class TestSubmit:
    """Hands over a job."""

    def test_the_desk_gets_the_job(self, jobs, request_for):
        """With the tenant of the call; the answer is the job, with its prospects."""
        inside = request_for()
        kind, job, done = jobs.ask(
            jobs.submit,
            job_service_pb2.SubmitRequest(request=inside),
            peer=Peer(1, "a", None),
            metadata=[("x-tenant", "acme")],
        )
        assert (kind, job.tenant, job.payload) == ("submit", "acme", inside.SerializeToString())

        done(JOB)

        ((kind, call, body),) = jobs.take()
        assert (kind, call) == (RESPOND, 5)
        assert job_service_pb2.SubmitResponse.FromString(body) == job_service_pb2.SubmitResponse(job=the_job())

    @pytest.mark.parametrize(
        ("error", "code", "reason"),
        [
            (errors.QueueFull("as many jobs wait as may", retry_after=2.0), 8, "QUEUE_FULL"),
            (errors.StoreFull("full", retry_after=2.0), 8, "STORE_FULL"),
            (errors.StoreUnavailable("away"), 14, "STORE_UNAVAILABLE"),
            (errors.JobKeyReused("used"), 6, "JOB_KEY_REUSED"),
            (errors.Draining("draining"), 14, "DRAINING"),
        ],
    )
    def test_refusals_of_the_desk(self, jobs, request_for, error, code, reason):
        """Each its status."""
        _, _, done = jobs.ask(jobs.submit, job_service_pb2.SubmitRequest(request=request_for()))
        done(error)
        (action,) = jobs.take()
        assert failure(action)[:2] == (code, reason)

    def test_what_predict_would_refuse(self, jobs, request_for):
        """Refused before the desk hears of it."""
        bad = request_for(outputs=["z"])
        assert jobs.refused(jobs.submit, job_service_pb2.SubmitRequest(request=bad)) == (
            3,
            "INVALID_TENSOR",
            [("request.outputs[0]", "the model has no output 'z'")],
        )
        other = inference_pb2.PredictRequest(model="other")
        assert jobs.refused(jobs.submit, job_service_pb2.SubmitRequest(request=other)) == (5, "MODEL_NOT_FOUND", [])

    def test_an_answer_that_can_not_be_written_harms_nobody(self, jobs, request_for, monkeypatch):
        """The desk, which calls, is not thrown at."""
        _, _, done = jobs.ask(jobs.submit, job_service_pb2.SubmitRequest(request=request_for()))
        monkeypatch.setattr(jobs.desk, "prospect", lambda _job: 1 / 0)
        done(JOB)
        (action,) = jobs.take()
        assert failure(action)[:2] == (13, "INTERNAL")


class TestResult:
    """A job and its outcome."""

    def request(self, wait=None, job_id=ID):
        message = job_service_pb2.ResultRequest(id=job_id)
        if wait is not None:
            message.wait.FromNanoseconds(round(wait * 1e9))
        return message

    @pytest.mark.parametrize("wait", [None, 0])
    def test_at_once(self, jobs, wait):
        """Without `wait` the job is told as it is."""
        kind, what, done = jobs.ask(jobs.result, self.request(wait), peer=Peer(0, "a", "spiffe://acme"))
        assert (kind, what) == ("look", (ID, "spiffe://acme"))

        done(Found(DONE, RESPONSE.SerializeToString()))

        ((_, _, body),) = jobs.take()
        response = job_service_pb2.ResultResponse.FromString(body)
        assert response.response == RESPONSE
        assert (response.job.state, response.job.version, response.job.jobs_ahead) == (3, 7, 0)

    @pytest.mark.parametrize(
        ("deadline", "wait", "until"),
        [
            (math.inf, 5.0, 105.0),
            (math.inf, 1e6, 129.5),  # The default deadline is 30 s, the longest margin half a second.
            (104.0, 5.0, 103.6),
            (104.0, 3.0, 103.0),
            (100.5, 5.0, 100.45),
            (5000.0, 1e6, 159.5),  # Deadlines are cut to 60 s.
        ],
    )
    def test_waits_as_long_as_it_may(self, jobs, deadline, wait, until):
        """Until the end of `wait`, or a margin before the call's deadline."""
        peer = Peer(0, "a", None)
        kind, what, _ = jobs.ask(jobs.result, self.request(wait), deadline=deadline, peer=peer)
        assert kind == "wait"
        assert what[:3] == (ID, "", id(peer))
        assert what[3] == pytest.approx(until, abs=1e-9)
        assert jobs.service.waiting == 1

    def test_a_deadline_that_is_over(self, jobs):
        """Nothing to wait for."""
        assert jobs.ask(jobs.result, self.request(5.0), deadline=99.0)[0] == "look"

    def test_the_end_of_the_wait(self, jobs):
        """With whatever the desk tells."""
        _, _, done = jobs.ask(jobs.result, self.request(5.0))
        done(Found(JOB, None))

        ((_, _, body),) = jobs.take()
        assert job_service_pb2.ResultResponse.FromString(body) == job_service_pb2.ResultResponse(job=the_job())
        assert jobs.service.waiting == 0

    def test_a_caller_that_goes(self, jobs):
        """The desk is told; what it still says is said to nobody."""
        _, _, done = jobs.ask(jobs.result, self.request(5.0))
        jobs.result.on_cancel((5, 5, 0, None, math.inf, None, None))
        jobs.result.on_cancel((5, 5, 0, None, math.inf, None, None))
        done(Found(DONE, b""))

        assert jobs.desk.left == [1]
        assert jobs.take() == []

    @pytest.mark.parametrize(
        "bad",
        [
            "",
            "x",
            ID.upper(),
            ID[:-1],
            ID + "0",
            ID[:-1] + "g",
            " " + ID[1:],
            ID + "\n",
            "ä" * 32,
            "\0" * 32,
            "x" * 9999,
        ],
    )
    def test_an_id_that_can_not_be_one(self, jobs, bad):
        """Looked for like any other, as one that nobody has, so it takes as long and ends the same way."""
        assert jobs.ask(jobs.result, self.request(job_id=bad))[1] == (NOBODY, "")
        assert jobs.ask(jobs.result, self.request(1.0, job_id=bad))[1][0] == NOBODY
        assert jobs.ask(jobs.watch, job_service_pb2.WatchJobRequest(id=bad))[1][0] == NOBODY
        assert jobs.ask(jobs.cancel, job_service_pb2.CancelJobRequest(id=bad))[1][0] == NOBODY

    def test_not_found_has_one_text(self, jobs):
        """Whatever the store says."""
        answers = set()
        for text in ("no job 17", "foreign", ""):
            _, _, done = jobs.ask(jobs.result, self.request())
            done(errors.JobNotFound(text))
            ((kind, _, failed),) = jobs.take()
            assert kind == FAIL
            answers.add(failed)
        ((code, text, *_),) = answers
        assert (code, text) == (5, "there is no such job")

    @pytest.mark.parametrize(
        ("seconds", "nanos", "sentence"),
        [(-1, 0, "must not be negative"), (0, -1, "must not be negative"), (2**62, 0, "is no valid duration")],
    )
    def test_bad_waits(self, jobs, seconds, nanos, sentence):
        """The field is named."""
        message = job_service_pb2.ResultRequest(id=ID, wait=duration_pb2.Duration(seconds=seconds, nanos=nanos))
        assert jobs.refused(jobs.result, message) == (3, "INVALID_TENSOR", [("wait", sentence)])

    def test_an_outcome_too_large_for_a_message(self, house):
        """BYTES_LIMIT, at the byte."""
        outcome = bytes(1000)
        jobs = Jobs(house)
        _, _, done = jobs.ask(jobs.result, self.request())
        done(Found(DONE, outcome))
        ((_, _, body),) = jobs.take()

        for limit, kind in ((len(body), RESPOND), (len(body) - 1, FAIL)):
            jobs = Jobs(house, max_send_bytes=limit)
            _, _, done = jobs.ask(jobs.result, self.request())
            done(Found(DONE, outcome))
            (action,) = jobs.take()
            assert action[0] == kind
        assert failure(action)[:2] == (8, "BYTES_LIMIT")
        assert len(status_pb2.Status.FromString(action[2].details).details) == 1  # no RetryInfo


class TestWatch:
    """Told of each change."""

    def watch(self, jobs, **options):
        kind, what, tell = jobs.ask(jobs.watch, job_service_pb2.WatchJobRequest(id=ID), **options)
        assert kind == "watch"
        return what, tell

    def states(self, jobs):
        return [
            job_service_pb2.WatchJobResponse.FromString(body).job.state if kind == SEND else (kind, body)
            for kind, _, body in jobs.take()
        ]

    def test_until_the_end(self, jobs):
        """A message for each change, and the end after the final one."""
        peer = Peer(0, "a", None)
        what, tell = self.watch(jobs, peer=peer)
        assert what == (ID, "", id(peer))
        for job in (JOB, RUNNING, JOB, RUNNING):
            tell(job)
        assert self.states(jobs) == [1, 2, 1, 2]
        assert jobs.service.waiting == 1

        tell(DONE)

        assert self.states(jobs) == [3, (FINISH, None)]
        assert jobs.service.waiting == 0

    @pytest.mark.parametrize(
        ("error", "code", "reason"),
        [
            (errors.JobNotFound(""), 5, "JOB_NOT_FOUND"),
            (errors.TenantQuota("too many", retry_after=1.0), 8, "TENANT_QUOTA"),
            (errors.Draining(""), 14, "DRAINING"),
        ],
    )
    def test_errors_end_it(self, jobs, error, code, reason):
        """Each its status."""
        _, tell = self.watch(jobs)
        tell(error)
        (action,) = jobs.take()
        assert failure(action)[:2] == (code, reason)
        assert jobs.service.waiting == 0

    def test_a_caller_that_goes(self, jobs):
        """The desk is told."""
        _, tell = self.watch(jobs)
        jobs.watch.on_cancel((5, 5, 0, None, math.inf, None, None))
        tell(JOB)
        assert jobs.desk.left == [1]
        assert jobs.take() == []

    def test_slow_readers_get_the_latest_only(self, jobs):
        """What happened while one did not read is told in one message when it does."""
        _, tell = self.watch(jobs)
        jobs.watch.on_full(5)
        jobs.watch.on_full(99)
        for job in (JOB, RUNNING, DONE):
            tell(job)
        assert jobs.take() == []

        jobs.watch.on_writable((6, 5, 0, None, math.inf, None, None))

        assert self.states(jobs) == [3, (FINISH, None)]

    def test_slow_readers_without_news(self, jobs):
        """Nothing is told twice."""
        _, tell = self.watch(jobs)
        tell(JOB)
        jobs.watch.on_full(5)
        jobs.watch.on_writable((6, 5, 0, None, math.inf, None, None))
        assert self.states(jobs) == [1]
        tell(RUNNING)
        assert self.states(jobs) == [2]


def test_cancel(jobs):
    """The answer is the job as it is then."""
    kind, what, done = jobs.ask(
        jobs.cancel, job_service_pb2.CancelJobRequest(id=ID), peer=Peer(0, "a", "spiffe://acme")
    )
    assert (kind, what) == ("cancel", (ID, "spiffe://acme"))
    done(JOB._replace(state=JobState.CANCELLED))
    ((_, _, body),) = jobs.take()
    assert job_service_pb2.CancelJobResponse.FromString(body).job.state == 5


class TestList:
    """Pages of jobs."""

    def page(self, jobs, count=0, **fields):
        """What is asked for, and the response when there are so many."""
        kind, page, done = jobs.ask(jobs.list, job_service_pb2.ListJobsRequest(**fields))
        assert kind == "page"
        done([JOB._replace(sequence=100 - place) for place in range(min(count, page.limit))])
        ((_, _, body),) = jobs.take()
        return page, job_service_pb2.ListJobsResponse.FromString(body)

    def test_all(self, jobs):
        """100 unless asked otherwise, one more to see whether there are more; no prospects."""
        page, response = self.page(jobs, 3)
        assert page == Page("", frozenset(), "", 0, 101)
        assert [job.id for job in response.jobs] == [ID] * 3
        assert not response.jobs[0].jobs_ahead
        assert response.next_page_token == ""

    def test_filters(self, jobs):
        """By state and model."""
        page, _ = self.page(jobs, states=[1, 4, 1], model="gone", page_size=5000)
        assert page == Page("", frozenset({JobState.PENDING, JobState.FAILED}), "gone", 0, 1001)

    def test_pages(self, jobs):
        """The token leads to what comes after the last that was shown, to the last page and no further."""
        question = {"states": [1], "model": "double", "page_size": 2}
        _, response = self.page(jobs, 3, **question)
        assert len(response.jobs) == 2

        page, response = self.page(jobs, 2, page_token=response.next_page_token, **question)

        assert page.before == 99
        assert len(response.jobs) == 2
        assert response.next_page_token == ""

    def test_a_token_of_another_question(self, jobs):
        """Other filters, or another tenant: INVALID_ARGUMENT. Another size is fine."""
        _, response = self.page(jobs, 3, page_size=2)
        token = response.next_page_token
        assert self.page(jobs, page_token=token, page_size=7)[0].before == 99
        bad = (3, "INVALID_TENSOR", [("page_token", "is not one that the server gave for this question")])
        for fields in ({"states": [1]}, {"model": "m"}):
            message = job_service_pb2.ListJobsRequest(page_token=token, **fields)
            assert jobs.refused(jobs.list, message) == bad
        message = job_service_pb2.ListJobsRequest(page_token=token)
        assert jobs.refused(jobs.list, message, peer=Peer(0, "a", "spiffe://other")) == bad

    def test_bad_questions(self, jobs):
        """Everything that is wrong is named."""
        message = job_service_pb2.ListJobsRequest(states=[1, 0, 99], model="a b", page_size=-1)
        code, reason, violations = jobs.refused(jobs.list, message)
        assert (code, reason) == (3, "INVALID_TENSOR")
        assert [field for field, _ in violations] == ["states[1]", "states[2]", "page_size", "model"]
