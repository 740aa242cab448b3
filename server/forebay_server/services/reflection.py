"""gRPC reflection, v1 and v1alpha: what grpcurl, ghz and buf ask to call a server without its protos.

Both versions have the same messages on the wire, so one implementation, on grpcio-reflection's v1alpha messages, serves
both. Answers come from protobuf's default descriptor pool, which knows every contract that the server has imported. A
stream gets one credit at a time, and none while its answers are not read.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError
from google.rpc import code_pb2
from grpc_reflection.v1alpha import reflection_pb2

from forebay_server import errors
from forebay_server.services.service import Endpoint, Outbox, Service
from forebay_server.services.status import failure, internal
from forebay_server.wire.port import CREDIT, FAIL, FINISH, SEND, Event, Method, MethodKind

V1: Final = "grpc.reflection.v1.ServerReflection"
V1ALPHA: Final = "grpc.reflection.v1alpha.ServerReflection"

MALFORMED = failure(errors.InvalidRequest([("", "the message can't be parsed as a ServerReflectionRequest")]))

_READS, _FULL, _OWED = range(3)
"""A stream's answers are read; wait for its reader; wait, and a credit will be due when they don't."""

_Request = reflection_pb2.ServerReflectionRequest
_Response = reflection_pb2.ServerReflectionResponse


class ReflectionService:
    """Reflection over gRPC.

    Args:
        services: Full names of the services to list; those of reflection are added.
        outbox: Where answers go.
    """

    def __init__(self, services: Iterable[str], outbox: Outbox) -> None:
        self._services = sorted({*services, V1, V1ALPHA})
        self._outbox = outbox
        self._pools = (descriptor_pool.Default(), _v1_pool())
        self._streams: dict[int, int] = {}
        """The open streams and whether their answers are read."""

    def services(self) -> Sequence[Service]:
        """The two services for the dispatcher."""
        return [
            Service(
                name=name,
                endpoints=[
                    Endpoint(
                        method=Method(path=f"/{name}/ServerReflectionInfo", kind=MethodKind.BIDI_STREAM),
                        on_call=self._opened,
                        on_message=self._message,
                        on_half_close=self._half_closed,
                        on_cancel=self._cancelled,
                        on_writable=self._writable,
                        on_full=self._filled,
                    )
                ],
            )
            for name in (V1, V1ALPHA)
        ]

    def _opened(self, event: Event) -> None:
        self._streams[event[1]] = _READS
        self._outbox.append((CREDIT, event[1], 1))

    def _message(self, event: Event) -> None:
        call = event[1]
        state = self._streams.get(call)
        if state is None:
            return
        try:
            request = _Request.FromString(event[3] or b"")
        except DecodeError:
            del self._streams[call]
            self._outbox.append((FAIL, call, MALFORMED))
            return
        try:
            message = self.answer(request).SerializeToString()
        except Exception as error:  # noqa: BLE001  # nothing that one message does may stop the dispatcher
            del self._streams[call]
            self._outbox.append((FAIL, call, failure(internal(error, method="ServerReflectionInfo"))))
            return
        self._outbox.append((SEND, call, message))
        if state == _READS:
            self._outbox.append((CREDIT, call, 1))
        else:
            self._streams[call] = _OWED

    def _half_closed(self, event: Event) -> None:
        if self._streams.pop(event[1], None) is not None:
            self._outbox.append((FINISH, event[1], None))

    def _cancelled(self, event: Event) -> None:
        self._streams.pop(event[1], None)

    def _filled(self, call: int) -> None:
        if self._streams.get(call) == _READS:
            self._streams[call] = _FULL

    def _writable(self, event: Event) -> None:
        call = event[1]
        if self._streams.get(call) == _OWED:
            self._outbox.append((CREDIT, call, 1))
        if call in self._streams:
            self._streams[call] = _READS

    def answer(self, request: reflection_pb2.ServerReflectionRequest) -> reflection_pb2.ServerReflectionResponse:
        """The response to one request."""
        response = _Response(valid_host=request.host, original_request=request)
        kind = request.WhichOneof("message_request")
        try:
            if kind == "list_services":
                for name in self._services:
                    response.list_services_response.service.add(name=name)
            elif kind == "all_extension_numbers_of_type":
                numbers = self._extension_numbers(request.all_extension_numbers_of_type)
                response.all_extension_numbers_response.CopyFrom(numbers)
            elif kind is None:
                _fail(response, code_pb2.INVALID_ARGUMENT, "no request that this server knows")
            else:
                response.file_descriptor_response.CopyFrom(_with_dependencies(self._find(kind, request)))
        except KeyError:
            _fail(response, code_pb2.NOT_FOUND, "not found")
        return response

    def _find(self, kind: str, request: reflection_pb2.ServerReflectionRequest) -> FileDescriptor:
        """The file that a request asks for.

        Raises:
            KeyError: There is none.
        """
        if kind == "file_by_filename":
            file: FileDescriptor = self._lookup("FindFileByName", request.file_by_filename)
            return file
        if kind == "file_containing_symbol":
            return self._file_of(request.file_containing_symbol)
        return self._extension_file(request.file_containing_extension)

    def _lookup(self, method: str, *arguments: Any) -> Any:
        """Asks the pools in turn.

        Raises:
            KeyError: None of them knows it.
        """
        for pool in self._pools:
            try:
                return getattr(pool, method)(*arguments)
            except KeyError:
                continue
        raise KeyError(arguments)

    def _file_of(self, symbol: str) -> FileDescriptor:
        """The file of a message, enum, field, service or method."""
        file: FileDescriptor
        try:
            file = self._lookup("FindFileContainingSymbol", symbol)
        except KeyError:
            file = self._lookup("FindMethodByName", symbol).containing_service.file
        return file

    def _extension_numbers(self, type_name: str) -> reflection_pb2.ExtensionNumberResponse:
        for pool in self._pools:
            try:
                message = pool.FindMessageTypeByName(type_name)
            except KeyError:
                continue
            numbers = sorted(extension.number for extension in pool.FindAllExtensions(message))
            return reflection_pb2.ExtensionNumberResponse(base_type_name=type_name, extension_number=numbers)
        raise KeyError(type_name)

    def _extension_file(self, request: reflection_pb2.ExtensionRequest) -> FileDescriptor:
        for pool in self._pools:
            try:
                message = pool.FindMessageTypeByName(request.containing_type)
                extension: Any = pool.FindExtensionByNumber(message, request.extension_number)
            except KeyError:
                continue
            file: FileDescriptor = extension.file
            return file
        raise KeyError(request.containing_type)


def _fail(response: reflection_pb2.ServerReflectionResponse, code: int, message: str) -> None:
    response.error_response.error_code = code
    response.error_response.error_message = message


def _with_dependencies(first: FileDescriptor) -> reflection_pb2.FileDescriptorResponse:
    """A file and all that it imports, directly or not, each once."""
    seen = {first.name}
    files = [first]
    for file in files:  # grows while it is walked
        for dependency in file.dependencies:
            if dependency.name not in seen:
                seen.add(dependency.name)
                files.append(dependency)
    return reflection_pb2.FileDescriptorResponse(file_descriptor_proto=[file.serialized_pb for file in files])


def _v1_pool() -> descriptor_pool.DescriptorPool:
    """A pool with the file of v1, which is that of v1alpha under another name. No package ships it."""
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name = file.name.replace("v1alpha", "v1")
    file.package = file.package.replace("v1alpha", "v1")
    file.ClearField("options")
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(".v1alpha.", ".v1.")
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(".v1alpha.", ".v1.")
            method.output_type = method.output_type.replace(".v1alpha.", ".v1.")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool
