"""The tables of errors are total, and details are read with care."""

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

import forebay_client
from forebay.v1 import error_pb2
from forebay_client import _errors


class Failure(grpc.RpcError):
    def __init__(self, code, message="", trailers=()):
        self._parts = (code, message, trailers)

    def code(self):
        return self._parts[0]

    def details(self):
        return self._parts[1]

    def trailing_metadata(self):
        return self._parts[2]


def detailed(code, reason, domain="forebay"):
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain))
    status = status_pb2.Status(code=code.value[0], details=[detail])
    return Failure(code, "m", [("grpc-status-details-bin", status.SerializeToString())])


def test_every_reason_of_the_contract_has_a_class():
    """A new reason must be given one."""
    contract = {name.removeprefix("ERROR_REASON_") for name in error_pb2.ErrorReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118  # no mapping

    assert set(_errors.BY_REASON) == contract


def test_every_status_code_but_ok_has_a_class():
    """Whatever a proxy makes up, it is one of our exceptions."""
    assert set(_errors.BY_CODE) == set(grpc.StatusCode) - {grpc.StatusCode.OK}


BARE = set(grpc.StatusCode) - {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}


@pytest.mark.parametrize("code", sorted(BARE, key=lambda code: code.value[0]))
def test_a_bare_status_raises_the_class_of_its_code(code):
    """Without details, and without trailers at all."""
    error = _errors.from_rpc(Failure(code, "text", None))

    assert type(error) is _errors.BY_CODE[code]
    assert (error.code, error.reason, error.message, error.retry_delay) == (code, "", "text", None)


@pytest.mark.parametrize("text", ["CANCELLED", "Received RST_STREAM with error code 8", "", None])
def test_a_call_that_nobody_here_has_cancelled_was_cut_off(text):
    """A server that stops at once says so of its calls, now and then: it is one that went away."""
    error = _errors.from_rpc(Failure(grpc.StatusCode.CANCELLED, text))

    assert type(error) is forebay_client.Unavailable
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "")


@pytest.mark.parametrize("text", ["Channel closed!", "Locally cancelled by application!"])
def test_a_call_that_was_cancelled_here_is_cancelled(text):
    """By closing the client, say: it is not made again."""
    assert type(_errors.from_rpc(Failure(grpc.StatusCode.CANCELLED, text))) is forebay_client.Cancelled


def test_an_unknown_reason_raises_the_class_of_its_code():
    """Servers may be newer than clients."""
    error = _errors.from_rpc(detailed(grpc.StatusCode.UNAVAILABLE, "SUN_SPOTS"))

    assert type(error) is forebay_client.Unavailable
    assert error.reason == "SUN_SPOTS"


def test_the_reason_of_another_domain_is_not_ours():
    """A proxy's QUEUE_FULL means something else."""
    error = _errors.from_rpc(detailed(grpc.StatusCode.UNAVAILABLE, "QUEUE_FULL", domain="proxy.example"))

    assert type(error) is forebay_client.Unavailable
    assert error.reason == ""


def test_a_bytes_limit_without_a_delay_is_a_message_that_is_too_large():
    """The two must not be mixed up: one may be retried, the other never."""
    assert type(_errors.from_rpc(detailed(grpc.StatusCode.RESOURCE_EXHAUSTED, "BYTES_LIMIT"))) is (
        forebay_client.MessageTooLarge
    )
    failure = detailed(grpc.StatusCode.RESOURCE_EXHAUSTED, "BYTES_LIMIT")
    failure.trailing_metadata().append(("grpc-retry-pushback-ms", "1500"))
    error = _errors.from_rpc(failure)
    assert type(error) is forebay_client.BytesLimit
    assert error.retry_delay == 1.5


@pytest.mark.parametrize("trailer", [("grpc-status-details-bin", b"\xff\xff"), ("grpc-retry-pushback-ms", "-1")])
def test_broken_trailers_do_no_harm(trailer):
    """The code and the text still stand."""
    error = _errors.from_rpc(Failure(grpc.StatusCode.UNAVAILABLE, "text", [trailer]))

    assert type(error) is forebay_client.Unavailable
    assert (error.message, error.retry_delay) == ("text", None)
