"""The golden cases through the Python clients, plain stubs, and a client that is made from the contract alone."""

import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import google.rpc
import grpc
import numpy as np
import pytest
from google.protobuf import json_format

import forebay_client
from forebay.v1 import inference_pb2, inference_service_pb2_grpc, job_service_pb2, job_service_pb2_grpc
from forebay_client import Client, ForebayError, _errors, _tensors
from tests.clients.surfaces import AsyncSurface

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
GOLDEN = json.loads((HERE / "cases.json").read_text())
PRIORITIES = {0: "normal", 1: "high", 2: "normal", 3: "low"}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The server that the cases are for, in a process of its own."""
    folder = tmp_path_factory.mktemp("conformance")
    arguments = [*GOLDEN["serve"], "--jobs", str(folder / "jobs.db"), "--listen", "127.0.0.1:0", "--log-format", "json"]
    with subprocess.Popen(
        [Path(sys.executable).parent / "forebay", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={"XDG_CACHE_HOME": str(folder), "PATH": "/usr/bin:/bin", "HOME": str(folder)},
    ) as process:
        found, ready = "", 0
        for line in process.stderr:
            event = json.loads(line)
            found = event["public"] if event["event"] == "listening" else found
            ready += event["event"] == "model_ready"
            if ready == 4:
                break
        drain = threading.Thread(target=process.stderr.read)
        drain.start()
        yield found
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        drain.join()


def request_of(case):
    return json_format.ParseDict(case, inference_pb2.PredictRequest())


def response_of(case):
    return json_format.ParseDict(case, inference_pb2.PredictResponse())


class Stubs:
    """What is generated, and no more."""

    def __init__(self, address):
        self.channel = grpc.insecure_channel(address)
        self.inference = inference_service_pb2_grpc.InferenceServiceStub(self.channel)
        self.jobs = job_service_pb2_grpc.JobServiceStub(self.channel)

    def close(self):
        self.channel.close()

    def predict(self, request, timeout):
        try:
            return self.inference.Predict(request, timeout=timeout)
        except grpc.RpcError as error:
            return _errors.from_rpc(error)

    def stream(self, requests):
        items = [inference_pb2.StreamItem(id=index, request=request) for index, request in enumerate(requests)]
        options = inference_pb2.StreamOptions(order=inference_pb2.RESULT_ORDER_AS_SENT)
        message = inference_pb2.StreamPredictRequest(options=options, items=items)
        found = []
        for response in self.inference.StreamPredict(iter([message]), timeout=30):
            for result in response.results:
                is_error = result.WhichOneof("outcome") == "error"
                found.append(_errors.from_status(result.error) if is_error else result.response)
        return found

    def submit(self, request):
        try:
            job = self.jobs.Submit(job_service_pb2.SubmitRequest(request=request), timeout=30).job
            message = job_service_pb2.ResultRequest(id=job.id)
            message.wait.FromSeconds(20)
            result = self.jobs.Result(message, timeout=30)
        except grpc.RpcError as error:
            return _errors.from_rpc(error)
        return _errors.from_status(result.error) if result.HasField("error") else result.response

    def result(self, job_id):
        try:
            return self.jobs.Result(job_service_pb2.ResultRequest(id=job_id), timeout=30)
        except grpc.RpcError as error:
            return _errors.from_rpc(error)


class Ours:
    """The Python client, sync or async; what it gives is made a message again."""

    def __init__(self, make, address):
        self.client = make(address)

    def close(self):
        self.client.close()

    @staticmethod
    def inputs(request):
        return {tensor.name: _tensors.decode(tensor) for tensor in request.inputs}

    @staticmethod
    def options(request):
        return {
            "version": request.version,
            "outputs": list(request.outputs) or None,
            "priority": PRIORITIES[request.priority],
            "parameters": {
                name: getattr(value, value.WhichOneof("value")) for name, value in request.parameters.items()
            },
        }

    @staticmethod
    def message(prediction):
        return inference_pb2.PredictResponse(
            model=prediction.model,
            version=prediction.version,
            outputs=[_tensors.encode(name, array) for name, array in prediction.items()],
            request_id=prediction.request_id,
        )

    def predict(self, request, timeout):
        options = {"request_id": request.request_id, "deadline": timeout}
        try:
            found = self.client.predict(request.model, self.inputs(request), **self.options(request), **options)
        except ForebayError as error:
            return error
        return self.message(found)

    def stream(self, requests):
        # A stream of this client has one model and one set of options: one stream for each item then.
        found = []
        for request in requests:
            stream = self.client.stream(
                request.model, [self.inputs(request)], failures="yield", **self.options(request)
            )
            for outcome in stream:
                if isinstance(outcome, ForebayError):
                    found.append(outcome)
                else:
                    found.append(self.message(outcome))
                    found[-1].request_id = request.request_id  # items have an index instead
        return found

    def submit(self, request):
        try:
            job = self.client.submit(request.model, self.inputs(request), **self.options(request))
            prediction = self.client.result(job, timeout=20).prediction
        except ForebayError as error:
            return error
        found = self.message(prediction)
        found.request_id = request.request_id  # the key is the job's
        return found

    def result(self, job_id):
        try:
            return self.client.result(job_id, timeout=0)
        except ForebayError as error:
            return error


@pytest.fixture(params=["stubs", "sync", "async"])
def caller(request, address):
    """One of the clients."""
    made = {
        "stubs": lambda: Stubs(address),
        "sync": lambda: Ours(Client, address),
        "async": lambda: Ours(AsyncSurface, address),
    }[request.param]()
    yield made
    made.close()


def check(case, found):
    """Whether what came is what the case says."""
    if "response" in case:
        assert response_of(case["response"]) == found
        return
    wanted = case["error"]
    assert isinstance(found, ForebayError)
    assert found.code.name == wanted["code"]
    assert found.reason == wanted.get("reason", found.reason)
    assert [violation.field for violation in found.violations] == wanted.get("fields", [])


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"].replace(" ", "-"))
def test_a_case(caller, case):
    """Every client sees the same."""
    if case.get("plain") and not isinstance(caller, Stubs):
        pytest.skip("only plain stubs can send this")
    match case["method"]:
        case "Predict":
            check(case, caller.predict(request_of(case["request"]), case.get("timeoutMs", 30_000) / 1000))
        case "Submit":
            check(case, caller.submit(request_of(case["request"])))
        case "Result":
            check(case, caller.result(case["id"]))
        case "StreamPredict":
            found = caller.stream([request_of(request) for request in case["requests"]])
            assert len(found) == len(case["outcomes"])
            for wanted, outcome in zip(case["outcomes"], found, strict=True):
                check(wanted, outcome)


def test_the_checks_can_fail():
    """The positive control: other bytes, another reason, a response for an error."""
    case = GOLDEN["cases"][0]
    other = response_of(case["response"])
    other.outputs[0].data = np.zeros(4, "<f4").tobytes()
    with pytest.raises(AssertionError):
        check(case, other)
    error = {"error": {"code": "NOT_FOUND", "reason": "MODEL_NOT_FOUND"}}
    with pytest.raises(AssertionError):
        check(error, forebay_client.VersionNotFound("x", reason="VERSION_NOT_FOUND"))
    with pytest.raises(AssertionError):
        check(error, response_of(case["response"]))


def test_the_contract_needs_no_client_of_ours(address):
    """Node with the `.proto` files: nothing is generated, and nothing written by hand but the comparison."""
    if shutil.which("npm") is None:
        pytest.skip("there is no Node here")
    modules = REPOSITORY / "build" / "conformance-node"
    lock = (HERE / "node" / "package-lock.json").read_text()
    installed = modules / ".installed"
    if not installed.exists() or installed.read_text() != lock:
        modules.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / "node" / name, modules)
        subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=modules, check=True, timeout=100
        )
        installed.write_text(lock)
    shutil.copy(HERE / "node" / "conformance.js", modules)
    common = next(iter(google.rpc.__path__)).removesuffix("google/rpc")
    ran = subprocess.run(
        ["node", "conformance.js", address, HERE / "cases.json", REPOSITORY / "protos", common],
        cwd=modules,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-1] == f"{len(GOLDEN['cases'])} cases passed"
