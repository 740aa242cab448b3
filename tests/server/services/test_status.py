"""Errors as statuses."""

import inspect

import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from structlog.testing import capture_logs

from forebay.v1 import error_pb2
from forebay_server import errors
from forebay_server.services import status
from forebay_server.wire.port import Failure

RAISED = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.ForebayError) and hasattr(kind, "reason")
]


def example(kind):
    if issubclass(kind, errors.Overloaded):
        return kind("too much", retry_after=0.0421)
    if kind is errors.InvalidRequest:
        return kind([("inputs[0].shape", "is wrong"), ("model", "is odd")])
    if kind is errors.Internal:
        return kind("abc123")
    return kind("a sentence")


def unpacked(failure):
    """The status in a failure's details, and its details by type."""
    message = status_pb2.Status.FromString(failure.details)
    found = {}
    for packed in message.details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo, error_details_pb2.BadRequest):
            if packed.Is(kind.DESCRIPTOR):
                assert kind not in found
                found[kind] = kind()
                packed.Unpack(found[kind])
    assert len(found) == len(message.details)
    return message, found


def test_table_has_each_error_that_can_be_raised():
    """The table has exactly the classes of the tree that have a reason."""
    assert set(RAISED) == set(status.CODES)


def test_classes_in_between_are_never_leaves():
    """A class without a reason has subclasses: it is never raised itself."""
    for _, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.ForebayError) and not hasattr(kind, "reason"):
            assert kind.__subclasses__()


@pytest.mark.parametrize("kind", RAISED)
def test_each_error_has_code_reason_and_domain(kind):
    """Each failure carries the table's code, its own text, and exactly one ErrorInfo with a reason of the contract."""
    failure = status.failure(example(kind))

    message, details = unpacked(failure)
    info = details[error_details_pb2.ErrorInfo]
    assert failure.code == message.code == status.CODES[kind]
    assert failure.message == message.message == example(kind).message
    assert info.domain == "forebay"
    assert f"ERROR_REASON_{info.reason}" in error_pb2.ErrorReason.keys()  # noqa: SIM118  # an enum wrapper
    assert info.reason == kind.reason


DOCUMENTED = {
    "QUEUE_FULL": "RESOURCE_EXHAUSTED",
    "BYTES_LIMIT": "RESOURCE_EXHAUSTED",
    "TENANT_QUOTA": "RESOURCE_EXHAUSTED",
    "DEADLINE_UNREACHABLE": "DEADLINE_EXCEEDED",
    "DEADLINE_EXPIRED": "DEADLINE_EXCEEDED",
    "DRAINING": "UNAVAILABLE",
    "ENGINE_UNAVAILABLE": "UNAVAILABLE",
    "ENGINE_RESTARTED": "UNAVAILABLE",
    "MODEL_LOADING": "UNAVAILABLE",
    "MODEL_NOT_FOUND": "NOT_FOUND",
    "VERSION_NOT_FOUND": "NOT_FOUND",
    "MODEL_FAILED": "FAILED_PRECONDITION",
    "INVALID_TENSOR": "INVALID_ARGUMENT",
    "INPUT_REJECTED": "INVALID_ARGUMENT",
    "UNSUPPORTED": "UNIMPLEMENTED",
    "INTERNAL": "INTERNAL",
    "JOB_NOT_FOUND": "NOT_FOUND",
    "JOB_KEY_REUSED": "ALREADY_EXISTS",
    "PAYLOAD_QUARANTINED": "FAILED_PRECONDITION",
    "STORE_FULL": "RESOURCE_EXHAUSTED",
    "STORE_UNAVAILABLE": "UNAVAILABLE",
}


def test_codes_are_those_of_the_contract():
    """Each reason of the contract has the code that its comment promises."""
    reasons = {name.removeprefix("ERROR_REASON_") for name in error_pb2.ErrorReason.keys()}  # noqa: SIM118  # see above

    assert DOCUMENTED == status.CODE_NAMES
    assert reasons == {*DOCUMENTED, "UNSPECIFIED"}


@pytest.mark.parametrize("kind", RAISED)
def test_retry_info_comes_with_overload_only(kind):
    """Overload tells when to come back, in details and trailer, rounded up to milliseconds; nothing else does."""
    failure = status.failure(example(kind))

    _, details = unpacked(failure)
    if issubclass(kind, errors.Overloaded):
        assert details[error_details_pb2.RetryInfo].retry_delay.ToMilliseconds() == 43
        assert failure.trailers == (("grpc-retry-pushback-ms", "43"),)
    else:
        assert error_details_pb2.RetryInfo not in details
        assert failure.trailers == ()


def test_retry_delay_is_never_below_ten_milliseconds():
    """A delay of nothing becomes 10 ms."""
    assert status.failure(errors.QueueFull("full", retry_after=0.0)).trailers == (("grpc-retry-pushback-ms", "10"),)


def test_violations_name_each_field():
    """Each bad field is a violation of its own."""
    _, details = unpacked(status.failure(example(errors.InvalidRequest)))

    violations = details[error_details_pb2.BadRequest].field_violations
    assert [(one.field, one.description) for one in violations] == [
        ("inputs[0].shape", "is wrong"),
        ("model", "is odd"),
    ]


def test_details_stay_small():
    """However much was wrong, the headers stay below what clients take by default, and are valid UTF-8."""
    error = errors.InvalidRequest([("inputs" + "\N{PILE OF POO}" * 300, "\ud800" + "x" * 5000)] * 500)

    failure = status.failure(error)

    assert len(failure.message.encode()) <= 512
    assert len(failure.details) * 4 / 3 + 3 * len(failure.message.encode()) < 8000
    assert len(unpacked(failure)[1][error_details_pb2.BadRequest].field_violations) == 16


def test_internal_error_has_its_id_in_the_metadata():
    """The id that finds the log line is in the details."""
    _, details = unpacked(status.failure(errors.Internal("abc123")))

    assert details[error_details_pb2.ErrorInfo].metadata == {"error_id": "abc123"}


def test_unforeseen_exception_is_logged_and_not_told():
    """The caller learns an id and nothing of the exception, the log has both."""
    with capture_logs() as logs:
        answer = status.internal(ValueError("/secret/path"), method="Predict")

    assert "secret" not in answer.message
    assert [(log["error_id"], log["method"], str(log["exc_info"])) for log in logs] == [
        (answer.error_id, "Predict", "/secret/path")
    ]


def test_item_status_is_the_failure_of_the_call():
    """An item's status has the code and details that the call would have had."""
    error = errors.QueueFull("full", retry_after=1.0)

    assert status.status_bytes(error) == status.failure(error).details


def test_an_error_of_nothing_but_text_is_always_the_same_object():
    """An adapter knows it again; errors that differ in class or text, or say more, are never taken for each other."""
    one, other = (status.failure(errors.DeadlineUnreachable("late")) for _ in range(2))
    full = [status.failure(errors.QueueFull("late", retry_after=seconds)) for seconds in (1.0, 2.0)]

    assert one is other
    assert one != status.failure(errors.DeadlineExpired("late"))
    assert one != status.failure(errors.DeadlineUnreachable("later"))
    assert [failure.trailers[0][1] for failure in full] == ["1000", "2000"]


def test_refusals_of_the_adapters():
    """Each refusal of an adapter is a complete failure with the code of its cause."""
    refusals = status.refusals(max_receive_bytes=100, max_send_bytes=200)

    codes = {}
    for name in type(refusals).__dataclass_fields__:
        failure = getattr(refusals, name)
        assert isinstance(failure, Failure)
        info = unpacked(failure)[1][error_details_pb2.ErrorInfo]
        codes[name] = (code_pb2.Code.Name(failure.code), info.reason, len(failure.trailers))
    assert codes == {
        "message_too_large": ("RESOURCE_EXHAUSTED", "BYTES_LIMIT", 0),
        "response_too_large": ("RESOURCE_EXHAUSTED", "BYTES_LIMIT", 0),
        "bytes_held": ("RESOURCE_EXHAUSTED", "BYTES_LIMIT", 1),
        "deadline_expired": ("DEADLINE_EXCEEDED", "DEADLINE_EXPIRED", 0),
        "slow_reader": ("RESOURCE_EXHAUSTED", "BYTES_LIMIT", 0),
        "slow_sender": ("DEADLINE_EXCEEDED", "DEADLINE_EXPIRED", 0),
        "draining": ("UNAVAILABLE", "DRAINING", 0),
        "compressed": ("UNIMPLEMENTED", "UNSUPPORTED", 0),
    }
