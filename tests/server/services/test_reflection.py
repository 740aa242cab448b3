"""Reflection against protobuf's own descriptors."""

import math

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2

from forebay.v1 import inference_service_pb2, tensor_pb2
from forebay_server.services.reflection import V1, V1ALPHA, ReflectionService
from forebay_server.wire.port import CREDIT, FAIL, FINISH, SEND

CALL = 6


class Reflection:
    """A caller."""

    def __init__(self):
        self.outbox = []
        self.service = ReflectionService(["forebay.v1.InferenceService", "grpc.health.v1.Health"], self.outbox)
        (self.endpoint,) = self.service.services()[0].endpoints

    def event(self, handler, kind, body=None):
        handler((kind, CALL, 0, body, math.inf, None, None))
        actions = list(self.outbox)
        self.outbox.clear()
        return actions

    def ask(self, **fields):
        request = reflection_pb2.ServerReflectionRequest(host="h", **fields)
        self.event(self.endpoint.on_call, 2)
        (kind, call, body), credit = self.event(self.endpoint.on_message, 3, request.SerializeToString())
        assert (kind, call, credit) == (SEND, CALL, (CREDIT, CALL, 1))
        response = reflection_pb2.ServerReflectionResponse.FromString(body)
        assert response.original_request == request
        return response

    def files(self, **fields):
        response = self.ask(**fields).file_descriptor_response
        return [descriptor_pb2.FileDescriptorProto.FromString(one) for one in response.file_descriptor_proto]


@pytest.fixture
def reflection():
    return Reflection()


def test_both_versions_are_offered(reflection):
    """The same method under both names."""
    assert [one.method.path for service in reflection.service.services() for one in service.endpoints] == [
        f"/{V1}/ServerReflectionInfo",
        f"/{V1ALPHA}/ServerReflectionInfo",
    ]


def test_list_services(reflection):
    """What was given, and reflection itself."""
    services = reflection.ask(list_services="*").list_services_response.service

    assert [service.name for service in services] == [
        "forebay.v1.InferenceService",
        "grpc.health.v1.Health",
        V1,
        V1ALPHA,
    ]


@pytest.mark.parametrize("symbol", ["forebay.v1.InferenceService", "forebay.v1.InferenceService.Predict"])
def test_symbol_gives_a_set_of_files_that_stands_alone(reflection, symbol):
    """A caller can build the contract from the answer alone, and it is ours."""
    files = reflection.files(file_containing_symbol=symbol)

    assert files[0].name == "forebay/v1/inference_service.proto"
    pool = descriptor_pool.DescriptorPool()
    for file in reversed(files):
        missing = [name for name in file.dependency if name not in {one.name for one in files}]
        assert missing == []
    pending = list(files)
    while pending:
        file = next(one for one in pending if all(_has(pool, name) for name in one.dependency))
        pool.Add(file)
        pending.remove(file)
    service = pool.FindServiceByName("forebay.v1.InferenceService")
    assert [method.name for method in service.methods] == ["Predict", "StreamPredict"]
    proto = descriptor_pb2.FileDescriptorProto()
    inference_service_pb2.DESCRIPTOR.CopyToProto(proto)
    assert files[0] == proto


def _has(pool, name):
    try:
        pool.FindFileByName(name)
    except KeyError:
        return False
    return True


def test_file_by_name(reflection):
    """By its path."""
    proto = descriptor_pb2.FileDescriptorProto()
    tensor_pb2.DESCRIPTOR.CopyToProto(proto)

    assert reflection.files(file_by_filename="forebay/v1/tensor.proto") == [proto]


@pytest.mark.parametrize("name", [V1, V1ALPHA])
def test_reflection_reflects_itself(reflection, name):
    """Both versions can be looked up, with messages of their own package."""
    (file,) = reflection.files(file_containing_symbol=name)

    package = name.rpartition(".")[0]
    assert file.package == package
    assert file.service[0].method[0].input_type == f".{package}.ServerReflectionRequest"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"file_containing_symbol": "forebay.v1.Nothing"}, 5),
        ({"file_by_filename": "nothing.proto"}, 5),
        ({"all_extension_numbers_of_type": "forebay.v1.Nothing"}, 5),
        ({"file_containing_extension": {"containing_type": "forebay.v1.Tensor", "extension_number": 999}}, 5),
        ({"file_containing_extension": {"containing_type": "forebay.v1.Nothing", "extension_number": 1}}, 5),
        ({}, 3),
    ],
)
def test_what_is_not_there(reflection, fields, code):
    """An error in the answer; the stream goes on."""
    assert reflection.ask(**fields).error_response.error_code == code


def test_extension_numbers(reflection):
    """The extensions of a type, none for messages of proto3."""
    response = reflection.ask(all_extension_numbers_of_type="forebay.v1.Tensor").all_extension_numbers_response

    assert (response.base_type_name, list(response.extension_number)) == ("forebay.v1.Tensor", [])


def test_life_of_a_stream(reflection):
    """Credit, answers, finish at half-close; what comes later is nothing."""
    endpoint = reflection.endpoint
    assert reflection.event(endpoint.on_call, 2) == [(CREDIT, CALL, 1)]
    assert reflection.event(endpoint.on_half_close, 4) == [(FINISH, CALL, None)]
    assert reflection.event(endpoint.on_message, 3, b"") == []
    assert reflection.event(endpoint.on_cancel, 5) == []


def test_malformed_message(reflection):
    """Bytes that are no message end the stream."""
    reflection.event(reflection.endpoint.on_call, 2)

    ((kind, call, failure),) = reflection.event(reflection.endpoint.on_message, 3, b"\xff")

    assert (kind, call, failure.code) == (FAIL, CALL, 3)


def test_slow_reader(reflection):
    """No credit while answers are not read; the one owed comes when they are."""
    endpoint = reflection.endpoint
    reflection.event(endpoint.on_call, 2)
    endpoint.on_full(CALL)
    assert [action[0] for action in reflection.event(endpoint.on_message, 3, b"")] == [SEND]

    assert reflection.event(endpoint.on_writable, 6) == [(CREDIT, CALL, 1)]
    assert [action[0] for action in reflection.event(endpoint.on_message, 3, b"")] == [SEND, CREDIT]
