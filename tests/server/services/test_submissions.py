"""From a `SubmitRequest` to a job for the store."""

from hashlib import sha256

import pytest
from google.protobuf import duration_pb2
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from forebay.v1 import inference_pb2, job_pb2, job_service_pb2
from forebay_server import errors
from forebay_server.errors import InvalidRequest
from forebay_server.jobs.store import Submit, Webhook
from forebay_server.services.submissions import Submissions, fingerprint, split_submit

Request = job_service_pb2.SubmitRequest
Predict = inference_pb2.PredictRequest


def seconds(value, nanos=0):
    return duration_pb2.Duration(seconds=value, nanos=nanos)


@pytest.fixture
def submissions(house):
    def allowed(url, secret):
        if not url.startswith("https://ok/"):
            return "webhook.url", "is not allowed"
        return None if secret == "main" else ("webhook.secret", "is not known")

    return Submissions(house.intake, default_ttl=60.0, max_ttl=3600.0, allowed=allowed)


@pytest.fixture
def refused(submissions):
    """The violations of a message that is refused."""

    def read(message, tenant=""):
        with pytest.raises(InvalidRequest) as caught:
            submissions.read(message.SerializeToString(), tenant)
        return caught.value.violations

    return read


def test_everything_that_a_job_is(submissions, request_for):
    """Each field goes where it belongs, and the payload are the bytes of the request inside."""
    inside = request_for(version="7", priority=1, request_id="echo")
    message = Request(request=inside, request_id="key", expire_after=seconds(5, 500_000_000), ttl=seconds(90))
    message.webhook.url, message.webhook.secret = "https://ok/x", "main"

    job = submissions.read(message.SerializeToString(), "acme")

    assert len(job.id) == 32
    assert set(job.id) <= set("0123456789abcdef")
    assert job == Submit(
        id=job.id,
        tenant="acme",
        request_id="key",
        fingerprint=fingerprint(inside),
        model="double",
        version="7",
        priority=1,
        payload=inside.SerializeToString(),
        expire_after=5.5,
        ttl=90.0,
        webhook=Webhook("https://ok/x", "main"),
    )


def test_what_is_not_said(submissions, request_for):
    """Without options: no key and no fingerprint, no expiry, the default time to live, normal priority, no webhook."""
    inside = request_for(priority=77)

    job = submissions.read(Request(request=inside).SerializeToString(), "")

    assert (job.request_id, job.fingerprint, job.expire_after, job.ttl, job.webhook) == ("", b"", None, 60.0, None)
    assert (job.version, job.priority) == ("", 2)


def test_ids_are_random(submissions, request_for):
    """A thousand ids differ, in every digit."""
    body = Request(request=request_for()).SerializeToString()
    ids = {submissions.read(body, "").id for _ in range(1000)}

    assert len(ids) == 1000
    assert all(len({one[digit] for one in ids}) == 16 for digit in range(32))


def test_a_template_gives_the_same_job(house, submissions, request_for):
    """What follows a template is the same job as what is parsed."""
    inside = b"\x30\x03" + request_for([1.0, 2.0], request_id="abcd").SerializeToString()  # LOW, before the rest
    body = b"\x0a" + bytes([len(inside)]) + inside + Request(request_id="key").SerializeToString()
    parsed = submissions.read(body, "t")
    for call in range(2):
        house.predict(call, inside)
    assert house.intake.match(inside) is not None

    followed = submissions.read(body, "t")

    fields = ("request_id", "fingerprint", "model", "version", "priority", "payload", "expire_after", "ttl", "webhook")
    assert [getattr(followed, field) for field in fields] == [getattr(parsed, field) for field in fields]
    assert followed.priority == 3


def test_a_template_tells_payloads_apart(house, submissions, request_for):
    """The fingerprint of what follows one is that of the message, for each message."""
    messages = [request_for([float(number), 2.0], request_id=f"ab{number}") for number in range(4)]
    for call in range(2):
        house.predict(call, messages[0].SerializeToString())

    jobs = [
        submissions.read(Request(request=message, request_id="key").SerializeToString(), "t") for message in messages
    ]

    assert all(house.intake.match(message.SerializeToString()) for message in messages)
    assert [job.fingerprint for job in jobs] == [fingerprint(message) for message in messages]
    assert len({job.fingerprint for job in jobs}) == 4


def test_ttl_is_cut(submissions, request_for):
    """The operator's maximum is the most."""
    assert submissions.read(Request(request=request_for(), ttl=seconds(10**9)).SerializeToString(), "").ttl == 3600.0


@pytest.mark.parametrize("field", ["expire_after", "ttl"])
@pytest.mark.parametrize(
    ("duration", "sentence"),
    [
        (seconds(0), "must be positive"),
        (seconds(-1), "must be positive"),
        (seconds(0, -1), "must be positive"),
        (seconds(1, -1), "is no valid duration"),
        (seconds(-1, 1), "is no valid duration"),
        (seconds(1, 10**9), "is no valid duration"),
        (seconds(2**63 - 1), "is no valid duration"),
        (seconds(-(2**63)), "is no valid duration"),
    ],
)
def test_bad_durations(refused, request_for, field, duration, sentence):
    """Negative, zero, or none at all: the field is named."""
    assert refused(Request(request=request_for(), **{field: duration})) == [(field, sentence)]


def test_a_job_that_expires_in_a_hundred_years_is_a_mistake(submissions, refused, request_for):
    """Ten years are the most."""
    decade = 10 * 1461 * 21600
    assert submissions.read(Request(request=request_for(), expire_after=seconds(decade)).SerializeToString(), "")
    assert refused(Request(request=request_for(), expire_after=seconds(decade + 1))) == [
        ("expire_after", "at most 10 years")
    ]


def test_keys(submissions, refused, request_for):
    """128 characters, however many bytes; not U+0000."""
    assert submissions.read(Request(request=request_for(), request_id="ä" * 128).SerializeToString(), "")
    assert refused(Request(request=request_for(), request_id="k" * 129)) == [
        ("request_id", "at most 128 characters, not 129")
    ]
    assert refused(Request(request=request_for(), request_id="a\0")) == [("request_id", "must not contain U+0000")]


@pytest.mark.parametrize(
    ("url", "secret", "violation"),
    [
        ("http://10.0.0.1/", "main", ("webhook.url", "is not allowed")),
        ("", "", ("webhook.url", "is not allowed")),
        ("https://ok/", "other", ("webhook.secret", "is not known")),
    ],
)
def test_webhooks_have_to_be_allowed(refused, request_for, url, secret, violation):
    """The field that is to blame is named."""
    webhook = job_pb2.Webhook(url=url, secret=secret)
    assert refused(Request(request=request_for(), webhook=webhook)) == [violation]


def test_the_request_inside_is_checked_as_predict_does(house, submissions, refused, request_for):
    """The same errors, their fields below `request`; what else is wrong is told with them."""
    bad = request_for()
    bad.inputs[0].name = "z"
    bad.outputs.append("nothing")
    house.predict(1, bad)
    ((_, _, failure),) = house.take()

    violations = refused(Request(request=bad, ttl=seconds(-1)))

    assert violations == [
        ("request.inputs[0].name", "the model has no input 'z'"),
        ("request.inputs", "the input 'x' is missing"),
        ("request.outputs[0]", "the model has no output 'nothing'"),
        ("ttl", "must be positive"),
    ]
    assert all(f"{field.removeprefix('request.')}: {sentence}" in failure.message for field, sentence in violations[:3])
    assert house.events == [
        ("refused", ("double", 7), 0, "INVALID_TENSOR", ""),
        ("refused", ("double", 7), 2, "INVALID_TENSOR", ""),
    ]
    assert house.scheduler.admitted == []


def test_no_request(refused):
    """A message without a request has no model."""
    ((field, _),) = refused(Request())
    assert field == "request.model"


@pytest.mark.parametrize(
    ("inside", "state", "error"),
    [
        (Predict(model="other"), 3, errors.ModelNotFound),
        (Predict(model="double", version="8"), 3, errors.VersionNotFound),
        (Predict(model="double"), 1, errors.ModelLoading),
        (Predict(model="double"), 4, errors.ModelFailed),
    ],
)
def test_models_that_are_not_there(house, submissions, inside, state, error):
    """As for `Predict`."""
    house.served.state = state
    with pytest.raises(error):
        submissions.read(Request(request=inside).SerializeToString(), "")


def test_an_engine_that_is_lost(house, submissions, request_for):
    """As for `Predict`."""
    house.scheduler.lost = errors.EngineUnavailable("the model's engine has failed")
    with pytest.raises(errors.EngineUnavailable):
        submissions.read(Request(request=request_for()).SerializeToString(), "")


def test_no_bucket_is_large_enough(house, submissions, refused, request_for):
    """The shapes are looked at as if it were to run, but no queue is opened."""

    def bucket_of(_shapes):
        raise InvalidRequest([("inputs[0].shape", "no bucket is large enough")])

    submissions.read(Request(request=request_for()).SerializeToString(), "")
    house.served.bucket_of = bucket_of

    assert refused(Request(request=request_for())) == [("request.inputs[0].shape", "no bucket is large enough")]
    assert house.scheduler.lanes == []


@pytest.mark.parametrize(
    "body", [b"\xff", b"\x0a\x05abc", b"\x0a", b"\x0a" + b"\xff" * 9 + b"\x01", b"\x0a\x02\xff\xff"]
)
def test_no_message(submissions, body):
    """Bytes that are no message, outside or inside."""
    with pytest.raises(DecodeError):
        submissions.read(body, "")


requests = st.builds(
    lambda name, size, request_id: Predict(
        model=name, request_id=request_id, inputs=[{"name": "x", "data": b"d" * size}]
    ),
    st.text(max_size=5),
    st.integers(0, 300),
    st.text(max_size=5),
)


messages = st.one_of(requests.map(lambda one: Request(request=one)), st.builds(Request, request_id=st.text()))


@given(st.lists(messages, max_size=4))
def test_splitting_is_parsing(parts):
    """However often and wherever the request is in the message, the parts are what the parser sees."""
    body = b"".join(part.SerializeToString() for part in parts)
    whole = Request.FromString(body)

    payload, options = split_submit(body)

    assert Predict.FromString(payload) == whole.request
    assert options.request_id == whole.request_id


@given(st.binary(max_size=40))
def test_splitting_of_anything(body):
    """What the parser refuses is refused when it is split, or when the payload is parsed."""
    try:
        whole = Request.FromString(body)
    except DecodeError:
        with pytest.raises(DecodeError):
            Predict.FromString(split_submit(body)[0])
    else:
        assert Predict.FromString(split_submit(body)[0]) == whole.request


def test_the_payload_is_not_written_anew():
    """A request that is the message's beginning is cut out as it came, however it was written."""
    unusual = b"\x12\x01v\x0a\x01m"  # version before model
    assert split_submit(b"\x0a\x06" + unusual)[0] == unusual
    assert split_submit(b"\x0a\x86\x00" + unusual + b"\x12\x01k")[0] == unusual
    assert split_submit(b"\x12\x01k\x0a\x06" + unusual)[0] == b"\x0a\x01m\x12\x01v"


class TestFingerprint:
    """Equal for what the contract calls the same request, different for anything else."""

    def make(self, **fields):
        message = Predict(**{"model": "m", "version": "1", "outputs": ["y"], **fields})
        message.inputs.add(name="a", data_type=12, shape=[1, 2], data=b"12345678")
        message.inputs.add(name="b", data_type=12, shape=[2], numbers=[0.5, 2.0])
        message.inputs.add(name="c", data_type=13, shape=[1], strings=["t"])
        message.parameters["p"].int_value = 1
        message.parameters["q"].string_value = "x"
        return message

    def test_does_not_change(self):
        """It is compared with those that an earlier release has stored."""
        head = (
            b"('m', '1', [('a', 12, [1, 2], 8, 0, []), ('b', 12, [2], 0, 2, []), ('c', 13, [1], 0, 0, ['t'])], ['y'], "
            b"[('p', 'int_value', 1), ('q', 'string_value', 'x')])"
        )
        numbers = bytes.fromhex("000000000000e03f0000000000000040")
        assert fingerprint(self.make()) == sha256(head + b"12345678" + numbers).digest()

    def test_what_does_not_count(self):
        """The caller's id, priority, form of the answer, the order of parameters, and what nobody knows."""
        other = self.make(request_id="r", priority=1, report_timings=True, readable=True)
        other.ClearField("parameters")
        other.parameters["q"].string_value = "x"
        other.parameters["p"].int_value = 1
        unknown = Predict.FromString(self.make().SerializeToString() + b"\xf8\x07\x01")

        assert fingerprint(other) == fingerprint(self.make()) == fingerprint(unknown)

    def test_what_counts(self):
        """Every other change gives another one."""

        def changed(change):
            message = self.make()
            change(message)
            return fingerprint(message)

        changes = [
            lambda m: setattr(m, "model", "n"),
            lambda m: setattr(m, "version", ""),
            lambda m: m.outputs.append("z"),
            lambda m: m.ClearField("outputs"),
            lambda m: setattr(m.inputs[0], "name", "z"),
            lambda m: setattr(m.inputs[0], "data_type", 11),
            lambda m: m.inputs[0].shape.append(1),
            lambda m: setattr(m.inputs[0], "data", b"12345679"),
            lambda m: setattr(m.inputs[0], "data", b"1234567"),
            lambda m: m.inputs[1].numbers.append(1.0),
            lambda m: m.inputs[1].numbers.__setitem__(0, 0.25),
            lambda m: m.inputs[2].strings.__setitem__(0, "u"),
            lambda m: m.inputs.add(name="d"),
            lambda m: m.inputs.reverse(),
            lambda m: setattr(m.parameters["p"], "int_value", 2),
            lambda m: setattr(m.parameters["p"], "bool_value", True),
            lambda m: setattr(m.parameters["p"], "double_value", 1.0),
            lambda m: setattr(m.parameters["r"], "int_value", 1),
        ]
        prints = {fingerprint(self.make()), *map(changed, changes)}

        assert len(prints) == len(changes) + 1


def test_a_job_knows_its_model_by_the_name_that_was_asked_for(submissions, house, request_for):
    """A label stays a label: it is resolved when the job runs."""
    house.catalogue.resolve = lambda _name, _version: house.served
    house.intake.resolve = house.catalogue.resolve
    job = submissions.read(Request(request=request_for(version="stable")).SerializeToString(), "")
    assert (job.model, job.version) == ("double", "stable")
