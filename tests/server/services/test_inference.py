"""Unary calls, driven through the endpoints without a socket."""

import math

import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

from forebay.v1 import inference_pb2
from forebay_server import errors
from forebay_server.scheduling.request import Priority
from forebay_server.wire.port import FAIL, RESPOND, MethodKind, Peer


def reason(action):
    """(call, code, reason) of a failure."""
    kind, call, failure = action
    assert kind == FAIL
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(failure.details).details[0].Unpack(info)
    return call, failure.code, info.reason


def answer(action):
    """(call, response) of a success."""
    kind, call, body = action
    assert kind == RESPOND
    return call, inference_pb2.PredictResponse.FromString(body)


def test_methods(house):
    """The service offers the two methods of the contract."""
    assert [(endpoint.method.path, endpoint.method.kind) for endpoint in (house.unary, house.stream)] == [
        ("/forebay.v1.InferenceService/Predict", MethodKind.UNARY),
        ("/forebay.v1.InferenceService/StreamPredict", MethodKind.BIDI_STREAM),
    ]


def test_predict_answers_when_the_batch_has_run(house, request_for):
    """A call is admitted with all that the scheduler needs, and answered with its own rows and its own id."""
    house.predict(5, request_for([1, 2, 3, 4], request_id="mine", priority=1), deadline=110.0)

    (request,) = house.scheduler.admitted
    assert house.take() == []
    assert (request.rows, request.nbytes, request.deadline, request.arrival) == (2, 16, 110.0, 100.0)
    assert (request.priority, request.tenant, request.parameters, request.shapes) == (Priority.HIGH, "", None, None)
    assert request.lane.key == ("double", 7)
    assert request.lane.bucket == ((2,),)
    assert house.inference.in_flight() == 1

    house.scheduler.run(request)

    (action,) = house.take()
    call, response = answer(action)
    assert call == 5
    assert (response.model, response.version, response.request_id) == ("double", 7, "mine")
    assert not response.HasField("timings")
    (output,) = response.outputs
    assert (output.name, output.data_type, list(output.shape)) == ("y", 12, [2, 2])
    assert np.frombuffer(output.data, "<f4").tolist() == [2, 4, 6, 8]
    assert house.inference.in_flight() == 0


def test_timings_are_told_if_asked_for(house, request_for):
    """Every stage in nanoseconds, from the batch's stamps."""
    house.predict(5, request_for(report_timings=True))
    house.clock.now = 102.0
    house.scheduler.run(*house.scheduler.admitted)

    timings = answer(house.take()[0])[1].timings
    assert timings == inference_pb2.Timings(
        queue_nanos=500_000_000,
        collate_nanos=250_000_000,
        compute_nanos=1_000_000_000,
        encode_nanos=250_000_000,
        batch_rows=1,
        batch_requests=1,
        padded_rows=1,
        dispatch_reason=inference_pb2.DISPATCH_REASON_IDLE,
    )


@pytest.mark.parametrize(
    ("given", "counts"), [(math.inf, 130.0), (101.0, 101.0), (160.0, 160.0), (5000.0, 160.0), (99.0, 99.0)]
)
def test_deadline(house, request_for, given, counts):
    """None becomes the default, a distant one is cut to the maximum."""
    house.predict(1, request_for(), deadline=given)

    assert house.scheduler.admitted[0].deadline == counts


@pytest.mark.parametrize(
    ("peer", "metadata", "tenant"),
    [
        (Peer(0, "a", None), [("x-tenant", "acme")], ""),
        (Peer(1, "a", None), [("x-tenant", "acme")], "acme"),
        (Peer(1, "a", None), [("x-tenant", "forged"), ("x-tenant", "acme")], "acme"),
        (Peer(0, "a", "spiffe://acme"), [("x-tenant", "evil")], "spiffe://acme"),
        (Peer(0, "a", "spiffe://acme"), None, "spiffe://acme"),
        (Peer(1, "a", "spiffe://proxy"), [("x-tenant", "acme")], "acme"),
        (Peer(1, "a", "spiffe://proxy"), [("other", "acme")], "spiffe://proxy"),
        (Peer(1, "a", None), [("x-tenant", b"bytes")], ""),
        (Peer(7, "a", None), [("x-tenant", "acme")], ""),
    ],
)
def test_tenant(house, request_for, peer, metadata, tenant):
    """Metadata is believed on a trusted exposure only, the certificate everywhere."""
    house.predict(1, request_for(), peer=peer, metadata=metadata)

    assert house.scheduler.admitted[0].tenant == tenant


def test_parameters_choose_the_queue(house, request_for):
    """Parameters reach the scheduler as plain values of their own types."""
    message = request_for()
    message.parameters["a"].bool_value = True
    message.parameters["b"].int_value = 3
    message.parameters["c"].double_value = 0.5
    message.parameters["d"].string_value = "text"

    house.predict(1, message)

    expected = {"a": True, "b": 3, "c": 0.5, "d": "text"}
    assert house.scheduler.lanes == [(("double", 7), ((2,),), expected)]
    assert house.scheduler.admitted[0].parameters == expected
    assert house.scheduler.admitted[0].parameters["a"] is True


def test_queue_is_looked_up_once_per_shape(house, request_for):
    """Plain requests of one shape share the queue that the first one found."""
    for call in range(3):
        house.predict(call, request_for())

    assert len(house.scheduler.lanes) == 1
    assert len({id(request.lane) for request in house.scheduler.admitted}) == 1


def test_padded_request_keeps_its_own_shapes(house, request_for):
    """What is padded to a bucket remembers its shapes, to be cut back."""
    house.served.pad_to = ((4,),)

    house.predict(1, request_for())

    (request,) = house.scheduler.admitted
    assert request.lane.bucket == ((4,),)
    assert request.shapes == ((2,),)


def test_no_rows_are_answered_without_the_engine(house, request_for):
    """A request of no rows gets outputs of no rows at once."""
    house.predict(3, request_for([], request_id="none"))

    call, response = answer(house.take()[0])
    assert (call, response.request_id, house.scheduler.admitted) == (3, "none", [])
    assert [(output.name, list(output.shape), output.data) for output in response.outputs] == [("y", [0, 2], b"")]


def test_wanted_outputs(house, request_for):
    """Only the outputs asked for are answered."""
    house.predict(3, request_for(outputs=["y"]))
    house.scheduler.run(*house.scheduler.admitted)

    assert [output.name for output in answer(house.take()[0])[1].outputs] == ["y"]


def test_readable_outputs(house, request_for):
    """Readable outputs are numbers."""
    house.predict(3, request_for(readable=True))
    house.scheduler.run(*house.scheduler.admitted)

    (output,) = answer(house.take()[0])[1].outputs
    assert (list(output.numbers), output.data) == ([2.0, 4.0], b"")


def test_malformed_message(house):
    """Bytes that are no message are INVALID_ARGUMENT."""
    house.predict(9, b"\xff\xff\xff")

    assert reason(house.take()[0]) == (9, 3, "INVALID_TENSOR")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model": "other"}, (1, 5, "MODEL_NOT_FOUND")),
        ({"version": "8"}, (1, 5, "VERSION_NOT_FOUND")),
        ({"model": ""}, (1, 3, "INVALID_TENSOR")),
        ({"model": "../../etc/passwd"}, (1, 3, "INVALID_TENSOR")),
        ({"version": "not a version"}, (1, 3, "INVALID_TENSOR")),
        ({"request_id": "x" * 129}, (1, 3, "INVALID_TENSOR")),
        ({"outputs": ["z"]}, (1, 3, "INVALID_TENSOR")),
    ],
)
def test_bad_requests(house, request_for, fields, expected):
    """Each fault has its code and reason, and nothing is admitted."""
    house.predict(1, request_for(**fields))

    assert reason(house.take()[0]) == expected
    assert house.scheduler.admitted == []


def test_invalid_requests_are_counted(house, request_for):
    """Statistics hear of what was refused before the scheduler saw it."""
    house.predict(1, request_for(outputs=["z"]))

    assert house.events == [("refused", ("double", 7), 0, "INVALID_TENSOR", "")]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (1, (1, 14, "MODEL_LOADING")),
        (2, (1, 14, "MODEL_LOADING")),
        (4, (1, 9, "MODEL_FAILED")),
        (5, (1, 9, "MODEL_FAILED")),
        (6, (1, 9, "MODEL_FAILED")),
    ],
)
def test_model_that_is_not_ready(house, request_for, state, expected):
    """Loading is to be retried elsewhere; failed needs an operator."""
    house.served.state = state

    house.predict(1, request_for())

    assert reason(house.take()[0]) == expected


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (errors.QueueFull("full", retry_after=1), (1, 8, "QUEUE_FULL")),
        (errors.BytesLimit("full", retry_after=1), (1, 8, "BYTES_LIMIT")),
        (errors.TenantQuota("full", retry_after=1), (1, 8, "TENANT_QUOTA")),
        (errors.DeadlineUnreachable("late"), (1, 4, "DEADLINE_UNREACHABLE")),
        (errors.EngineUnavailable("stuck"), (1, 14, "ENGINE_UNAVAILABLE")),
        (errors.ModelNotFound("gone"), (1, 5, "MODEL_NOT_FOUND")),
    ],
)
def test_refusals_of_the_scheduler(house, request_for, refusal, expected):
    """What the scheduler refuses is answered at once, and not waited for."""
    house.scheduler.refuse = refusal

    house.predict(1, request_for())

    assert reason(house.take()[0]) == expected
    assert house.inference.in_flight() == 0


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.DeadlineExpired("too late"), (1, 4, "DEADLINE_EXPIRED")),
        (errors.InputRejected("too long"), (1, 3, "INPUT_REJECTED")),
        (errors.EngineRestarted("again"), (1, 14, "ENGINE_RESTARTED")),
        (errors.Internal(), (1, 13, "INTERNAL")),
    ],
)
def test_failures_after_admission(house, request_for, error, expected):
    """A request that fails later is answered with its error."""
    house.predict(1, request_for())

    house.scheduler.admitted[0].fail(error)

    assert reason(house.take()[0]) == expected
    assert house.inference.in_flight() == 0


def test_outputs_that_break_are_internal(house, request_for, batch_of):
    """An engine whose outputs can't be read fails its request with INTERNAL, and nothing else."""
    house.predict(1, request_for())
    (request,) = house.scheduler.admitted

    request.succeed(None, 0, batch_of([request]))

    assert reason(house.take()[0]) == (1, 13, "INTERNAL")


def test_cancel_reaches_the_scheduler(house, request_for):
    """A cancelled call drops its request; an unknown one is nothing."""
    house.predict(1, request_for())

    house.unary.on_cancel((5, 1, 0, None, math.inf, None, None))
    house.unary.on_cancel((5, 2, 0, None, math.inf, None, None))

    assert house.scheduler.cancelled == house.scheduler.admitted
    assert house.inference.in_flight() == 0
    assert house.take() == []


def test_draining_refuses(house, request_for):
    """After drain, new calls get UNAVAILABLE and those accepted are still answered."""
    house.predict(1, request_for())
    house.inference.drain(10.0)

    house.predict(2, request_for())
    house.scheduler.run(*house.scheduler.admitted)

    refused, answered = house.take()
    assert reason(refused) == (2, 14, "DRAINING")
    assert answer(answered)[0] == 1


def test_reloaded_model_gets_a_new_plan(house, request_for, make_served):
    """A version that was loaded again is checked by its new specification."""
    house.predict(1, request_for())
    spec = house.served.spec
    renamed = type(spec)(inputs=spec.inputs, outputs=(), batched=True)
    house.catalogue.models["double"] = make_served(spec=renamed)

    house.predict(2, request_for(outputs=["y"]))

    assert reason(house.take()[0]) == (2, 3, "INVALID_TENSOR")


def test_a_response_that_is_known_to_be_too_large_is_not_computed(make_house, request_for):
    """By the specification a row of two FP32 gives one of eight bytes; only the outputs that are wanted count."""
    house = make_house(max_response=24)
    house.predict(5, request_for([0] * 8))
    assert reason(house.take()[0]) == (5, 8, "BYTES_LIMIT")
    assert house.scheduler.admitted == []

    house.predict(6, request_for([0] * 6))
    assert [request.rows for request in house.scheduler.admitted] == [3]

    with pytest.raises(errors.MessageTooLarge, match="the response to 4 rows is larger than 24 bytes"):
        house.intake.check(request_for([0] * 8))
    assert house.intake.check(request_for([0] * 6)) == ("double", 7)
