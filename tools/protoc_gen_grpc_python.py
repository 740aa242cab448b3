"""A protoc plug-in that writes `*_pb2_grpc.py`.

protoc has no built-in generator for gRPC's Python stubs; grpcio-tools carries one, but only behind its own protoc. This
plug-in takes buf's request, hands the descriptors to that protoc, and returns what it wrote.
"""

import sys
import tempfile
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.protobuf.compiler import plugin_pb2
from grpc_tools import protoc


def main() -> None:
    """Reads a CodeGeneratorRequest from stdin and writes a CodeGeneratorResponse to stdout."""
    request = plugin_pb2.CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
    response = plugin_pb2.CodeGeneratorResponse(
        supported_features=plugin_pb2.CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL
    )
    with tempfile.TemporaryDirectory() as folder:
        descriptors = Path(folder, "descriptors.binpb")
        descriptors.write_bytes(descriptor_pb2.FileDescriptorSet(file=request.proto_file).SerializeToString())
        out = Path(folder, "out")
        out.mkdir()
        with_services = [
            proto.name for proto in request.proto_file if proto.name in set(request.file_to_generate) and proto.service
        ]
        status = protoc.main(
            ["protoc", f"--descriptor_set_in={descriptors}", f"--grpc_python_out={out}", *with_services]
        )
        if status:
            response.error = f"grpc_tools.protoc ended with {status}"
        for path in sorted(out.rglob("*.py")):
            response.file.add(name=path.relative_to(out).as_posix(), content=path.read_text())
    sys.stdout.buffer.write(response.SerializeToString())


if __name__ == "__main__":
    main()
