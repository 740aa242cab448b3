"""Writes the descriptor set that Envoy transcodes REST/JSON by: the contract, health, and the HTTP rules.

    python tools/transcoding.py RULES OUTPUT

The rules are the `http` part of a `google.api.Service` as YAML. They go into the methods' options here and nowhere
else, so that neither the contract nor any client depends on `google.api`. The types of `google.rpc` are in the set as
well: without them Envoy answers errors that carry details with an empty body.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import yaml
from google.api import annotations_pb2, http_pb2, service_pb2
from google.protobuf import descriptor_pb2, json_format
from google.protobuf.descriptor import FileDescriptor
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2

from forebay.v1 import inference_service_pb2, job_service_pb2, model_service_pb2

SERVICES = [inference_service_pb2, job_service_pb2, model_service_pb2, health_pb2]
DETAILS = [status_pb2, error_details_pb2]
ANNOTATIONS = annotations_pb2.DESCRIPTOR.name


def with_imports(files: Iterable[FileDescriptor]) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    """The files and all that they import, by name; each comes after its imports."""
    found: dict[str, descriptor_pb2.FileDescriptorProto] = {}
    for file in files:
        for name, imported in with_imports(file.dependencies).items():
            found.setdefault(name, imported)
        proto = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(proto)
        found.setdefault(file.name, proto)
    return found


def annotate(files: Iterable[descriptor_pb2.FileDescriptorProto], rules: Iterable[http_pb2.HttpRule]) -> None:
    """Writes each rule into the options of the method that it selects.

    Raises:
        SystemExit: A rule selects no method, or two select the same.
    """
    methods = {
        f"{file.package}.{service.name}.{method.name}": (file, method)
        for file in files
        for service in file.service
        for method in service.method
    }
    for rule in rules:
        if rule.selector not in methods:
            raise SystemExit(f"there is no method {rule.selector}")
        file, method = methods[rule.selector]
        if method.options.HasExtension(annotations_pb2.http):
            raise SystemExit(f"{rule.selector} has two rules; use additional_bindings")
        chosen = method.options.Extensions[annotations_pb2.http]
        chosen.CopyFrom(rule)
        chosen.ClearField("selector")
        if ANNOTATIONS not in file.dependency:
            file.dependency.append(ANNOTATIONS)


def descriptor_set(rules: Path) -> descriptor_pb2.FileDescriptorSet:
    """The whole set."""
    service = json_format.ParseDict(yaml.safe_load(rules.read_text()), service_pb2.Service())
    # The annotations come first: the services import them once they are annotated.
    files = with_imports(module.DESCRIPTOR for module in [annotations_pb2, *DETAILS, *SERVICES])
    annotate(files.values(), service.http.rules)
    return descriptor_pb2.FileDescriptorSet(file=files.values())


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(descriptor_set(source).SerializeToString(deterministic=True))
