"""REST/JSON: what the HTTP rules make of the contract, and what callers get who do not keep to it."""

import base64
import http.client
import json
import subprocess
import time

import pytest

from forebay_server.config.tree import BatchingConfig, JobsConfig
from tests.serving import synthetic

INPUT = {"name": "x", "dataType": "DATA_TYPE_FP32", "shape": [1, 4], "numbers": [5.1, 3.5, 1.4, 0.2]}
PREDICT = "/v1/models/model:predict"


@pytest.fixture
def rest(replica, sidecar):
    """A sidecar before a server with jobs."""
    server = replica(synthetic(base_ms=1), jobs=JobsConfig(store="memory:"))
    return sidecar(server.addresses["public"])


def test_predict(rest):
    """A row as numbers, its answer as numbers; by version and by label's absence; enums as numbers too."""
    for path in (PREDICT, "/v1/models/model/versions/1:predict"):
        reply = rest.http("POST", path, {"inputs": [INPUT], "readable": True, "requestId": "r"})
        assert reply.status == 200
        assert reply.json == {
            "model": "model",
            "version": "1",
            "requestId": "r",
            "outputs": [
                {
                    "name": "y",
                    "dataType": "DATA_TYPE_FP32",
                    "shape": ["1", "4"],
                    "numbers": [5.099999904632568, 3.5, 1.399999976158142, 0.20000000298023224],
                }
            ],
        }
    raw = base64.b64encode(bytes(16)).decode()
    reply = rest.http(
        "POST", PREDICT, {"inputs": [{"name": "x", "data_type": 11 + 1, "shape": ["1", "4"], "data": raw}]}
    )
    assert reply.json["outputs"][0]["data"] == raw


def test_health_and_models(rest):
    """Health by name, models, statistics."""
    assert rest.http("GET", "/v1/health").json == {"status": "SERVING"}
    assert rest.http("GET", "/v1/health/model/model").json == {"status": "SERVING"}
    assert rest.http("GET", "/v1/health/forebay.v1.JobService").json == {"status": "SERVING"}
    reply = rest.http("GET", "/v1/health/model/nobody")
    assert (reply.status, reply.json["code"]) == (404, 5)
    assert [model["name"] for model in rest.http("GET", "/v1/models").json["models"]] == ["model"]
    assert rest.http("GET", "/v1/models/model").json["model"]["versions"][0]["version"] == "1"
    assert rest.http("GET", "/v1/models/model/statistics").json["statistics"][0]["model"] == "model"
    assert rest.http("GET", "/v1/statistics").json["statistics"][0]["model"] == "model"


def test_a_job_from_submit_to_result(rest):
    """Submit, wait for the result, find it in the list, and cancel what has finished."""
    body = {"request": {"model": "model", "inputs": [INPUT], "readable": True}, "requestId": "order-17"}
    job = rest.http("POST", "/v1/jobs", body).json["job"]
    assert rest.http("POST", "/v1/jobs", body).json["job"]["id"] == job["id"], "the key stands for the same job"
    result = rest.http("GET", f"/v1/jobs/{job['id']}?wait=10s").json
    assert result["job"]["state"] == "JOB_STATE_SUCCEEDED"
    assert result["response"]["outputs"][0]["numbers"][1] == 3.5
    listed = rest.http("GET", "/v1/jobs?states=JOB_STATE_SUCCEEDED&page_size=5").json["jobs"]
    assert [each["id"] for each in listed] == [job["id"]]
    assert rest.http("POST", f"/v1/jobs/{job['id']}:cancel", {}).json["job"]["state"] == "JOB_STATE_SUCCEEDED"


def lines_of(envoy, path, accept):
    """The lines of a response as they come, each with its time; and the content type."""
    connection = http.client.HTTPConnection(envoy.address, timeout=20)
    try:
        connection.request("GET", path, headers={"accept": accept})
        response = connection.getresponse()
        kind = response.headers["content-type"]
        return kind, [(line.decode().strip(), time.monotonic()) for line in response if line.strip()]
    finally:
        connection.close()


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_watching_a_job(replica, sidecar, accept):
    """Changes come when they happen: as lines of JSON, or as events to who accepts those."""
    server = replica(
        synthetic(base_ms=150, batching=BatchingConfig(max_batch_size=1)), jobs=JobsConfig(store="memory:")
    )
    envoy = sidecar(server.addresses["public"])
    ids = [
        envoy.http("POST", "/v1/jobs", {"request": {"model": "model", "inputs": [INPUT], "parameters": {}}}).json[
            "job"
        ]["id"]
        for _ in range(3)
    ]
    kind, lines = lines_of(envoy, f"/v1/jobs/{ids[-1]}:watch", accept)
    if accept == "text/event-stream":
        assert kind.startswith("text/event-stream")
        assert all(line.startswith("data: ") for line, _ in lines)
    else:
        assert kind.startswith("application/")
    states = [json.loads(line.removeprefix("data: "))["job"]["state"] for line, _ in lines]
    assert states[-1] == "JOB_STATE_SUCCEEDED"
    assert len(states) > 1
    assert lines[-1][1] - lines[0][1] > 0.1, "the first change came before the last had happened"


def test_errors_have_their_details(rest):
    """What the server refuses comes with its reason, as typed JSON."""
    reply = rest.http("POST", "/v1/models/nobody:predict", {"inputs": [INPUT]})
    assert reply.status == 404
    assert reply.json["code"] == 5
    (info,) = reply.json["details"]
    assert (info["@type"], info["reason"], info["domain"]) == (
        "type.googleapis.com/google.rpc.ErrorInfo",
        "MODEL_NOT_FOUND",
        "forebay",
    )
    reply = rest.http("POST", PREDICT, {"inputs": [INPUT | {"shape": [2, 4]}]})
    assert reply.status == 400
    kinds = {detail["@type"].rpartition(".")[2]: detail for detail in reply.json["details"]}
    assert kinds["ErrorInfo"]["reason"] == "INVALID_TENSOR"
    assert kinds["BadRequest"]["fieldViolations"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", PREDICT, b"{", 400, 3),
        ("POST", PREDICT, b"[1]", 400, 3),
        ("POST", PREDICT, {"inputs": "x"}, 400, 3),
        ("POST", PREDICT, {"inputs": [INPUT | {"shape": ["one"]}]}, 400, 3),
        ("POST", PREDICT, {"inputs": [INPUT | {"dataType": "FLOAT"}]}, 400, 3),
        ("POST", PREDICT, {"model": "other", "inputs": [INPUT]}, 400, 3),
        ("POST", PREDICT, {}, 400, 3),
        ("POST", PREDICT, {"input": [INPUT]}, 400, 3),  # an unknown field is dropped, and then an input is missing
        ("GET", "/v1/jobs?colour=red", None, 400, 3),
        ("GET", "/v1/jobs?page_size=many", None, 400, 3),
        ("GET", "/v1/nothing", None, 404, 5),
        ("GET", "/", None, 404, 5),
        ("DELETE", PREDICT, None, 404, 5),
        ("GET", "/v1/jobs/none", None, 404, 5),
        ("GET", "/v1/jobs/none:watch", None, 404, 5),
    ],
)
def test_bad_requests(rest, method, path, body, status, code):
    """Each is refused with a JSON error, never a success and never a fault of the server."""
    reply = rest.http(method, path, body)
    assert (reply.status, reply.json["code"]) == (status, code), reply
    assert reply.json["message"]


def test_large_bodies(replica, sidecar):
    """11 MiB of tensor pass both ways; beyond the server's limit it is its own refusal, beyond Envoy's it is 413."""
    envoy = sidecar(replica(synthetic(shape="?")).addresses["public"])

    def send(mib):
        data = base64.b64encode(bytes(mib << 20)).decode()
        tensor = {"name": "x", "dataType": "DATA_TYPE_FP32", "shape": [1, mib << 18], "data": data}
        return data, envoy.http("POST", PREDICT, {"inputs": [tensor]})

    data, reply = send(11)
    assert reply.json["outputs"][0]["data"] == data
    _, reply = send(17)
    assert (reply.status, reply.json["code"]) == (429, 8)
    assert reply.json["details"][0]["reason"] == "BYTES_LIMIT"
    _, reply = send(26)
    assert (reply.status, reply.json["code"]) == (413, 8)


def test_without_a_server(sidecar):
    """503, as JSON."""
    reply = sidecar("127.0.0.1:1").http("POST", PREDICT, {"inputs": [INPUT]})
    assert (reply.status, reply.json["code"]) == (503, 14)


def test_curl_knows_no_protocol_buffers(rest):
    """The same from the shell."""
    command = [
        "curl",
        "-sS",
        "--json",
        json.dumps({"inputs": [INPUT], "readable": True}),
        f"http://{rest.address}{PREDICT}",
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
    assert json.loads(done.stdout)["outputs"][0]["numbers"][1] == 3.5
