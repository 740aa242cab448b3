"""The load generator against servers that are right, wrong, refuse, or are not there."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from bench import generator, models, server
from forebay.v1 import inference_pb2, inference_service_pb2_grpc

pytestmark = pytest.mark.loadgen


@pytest.fixture(scope="module")
def honest(loadgen, model_files, core):
    with server.Server(server.COLUMNS["grpc_aio"], model_files.model, model_files.calls, str(core)) as running:
        yield running


@pytest.fixture(scope="module")
def liar(loadgen, model_files, core):
    column = server.COLUMNS["grpc_aio"]
    with server.Server(column, model_files.model, model_files.calls, str(core), options=("--lie",)) as running:
        yield running


def load(target, calls, seconds=1.0, warm_up=0.2, **options):
    command = generator.arguments(target, calls, seconds, warm_up, options)
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    return finished.returncode, json.loads(finished.stdout) if finished.stdout else None, finished.stderr


@pytest.mark.parametrize(
    "options",
    [
        {"in_flight": 8},
        {"rate": 300},
        {"rate": 300, "arrivals": "uniform"},
        {"mode": "stream"},
        {"mode": "stream", "streams": 3, "items": 32, "window": 64},
        {"mode": "stream", "items": 2, "rate": 300},
    ],
)
def test_right_answers_are_all_counted_as_such(honest, model_files, options):
    """Closed and open, unary and streams: everything is OK, and a latency is recorded for each."""
    code, report, _ = load(honest.target, model_files.calls, **options)
    assert code == 0
    assert report["ok"] > 100
    assert report["by_status"] == {"OK": report["ok"]}
    assert report["latency_ms"]["count"] == report["ok"] == report["requests"] == report["ok_in_time"]
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p99"] <= report["latency_ms"]["max"]
    assert sum(second["ok"] for second in report["series"]) == report["ok"]
    assert report["cpu_s"] > 0


def test_latencies_can_be_added_up(honest, model_files):
    """Each success is in one bucket; without being asked the generator does not tell."""
    options = generator.arguments(honest.target, model_files.calls, 0.5, 0.0, {"in_flight": 4, "buckets": True})
    report = json.loads(subprocess.run(options, capture_output=True, text=True, check=True).stdout)
    assert sum(count for _, count in report["latency_buckets"]) == report["ok"] > 0
    assert report["latency_buckets"] == sorted(report["latency_buckets"])
    assert report["latency_buckets"][-1][0] / 1e6 == pytest.approx(report["latency_ms"]["max"], rel=0.001)
    assert "latency_buckets" not in load(honest.target, model_files.calls, seconds=0.1, warm_up=0.0)[1]


def test_an_open_loop_sends_what_the_schedule_says(honest, model_files):
    """At 500 a second, evenly, exactly 500 requests are due in a second."""
    code, report, _ = load(honest.target, model_files.calls, rate=500, arrivals="uniform")
    assert (code, report["requests"], report["send_lag_ms"]["count"]) == (0, 500, 500)


@pytest.mark.parametrize("options", [{"in_flight": 8}, {"mode": "stream", "items": 4}])
def test_wrong_values_are_found_and_fatal(liar, model_files, options):
    """A server that answers every tenth request with zeros and status OK is caught, in the right proportion."""
    code, report, errors = load(liar.target, model_files.calls, **options)
    assert code == generator.WRONG_VALUES
    assert 0.09 < report["by_reason"]["OK/wrong values"] / report["requests"] < 0.11
    assert report["mismatches"] >= report["by_reason"]["OK/wrong values"]
    assert report["ok"] + report["by_reason"]["OK/wrong values"] == report["requests"]
    assert "output `y` has wrong values" in errors


@pytest.mark.parametrize("mode", ["unary", "stream"])
def test_refusals_are_counted_by_status(honest, model_files, tmp_path, mode):
    """Requests for a model that is not there fail with their code, are no mismatch and no latency."""
    request, answer = models.read_calls(model_files.calls)[0]
    wrong = inference_pb2.PredictRequest.FromString(request)
    wrong.model = "nothing"
    calls = tmp_path / "wrong.calls"
    messages = (wrong.SerializeToString(), answer)
    calls.write_bytes(b"".join(len(message).to_bytes(4, "little") + message for message in messages))
    code, report, _ = load(honest.target, calls, mode=mode)
    assert (code, report["ok"], report["mismatches"], report["latency_ms"]["count"]) == (0, 0, 0, 0)
    assert report["by_status"] == {"INVALID_ARGUMENT": report["requests"]}
    assert report["requests"] > 100


class Full(inference_service_pb2_grpc.InferenceServiceServicer):
    """Refuses everything, with details."""

    def Predict(self, request, context):
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="forebay"))
        status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="full", details=[detail])
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")


def test_reasons_are_read_from_the_details_of_a_status(loadgen, model_files):
    """The ErrorInfo reason of a refusal stands beside its code."""
    refusing = grpc.server(ThreadPoolExecutor(4))
    inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(Full(), refusing)
    port = refusing.add_insecure_port("127.0.0.1:0")
    refusing.start()
    try:
        code, report, _ = load(f"127.0.0.1:{port}", model_files.calls, in_flight=2)
    finally:
        refusing.stop(None).wait()
    assert code == 0
    assert report["by_reason"] == {"RESOURCE_EXHAUSTED/QUEUE_FULL": report["requests"]}


def test_a_deadline_that_cannot_be_met_is_given_up_and_counted(honest, model_files):
    """Ten times what the server can do, with 50 ms: late requests fail, and are counted as such."""
    code, report, _ = load(honest.target, model_files.calls, rate=30_000, deadline_ms=50)
    assert code == 0
    assert report["by_status"]["DEADLINE_EXCEEDED"] > 100
    assert report["ok_in_time"] <= report["ok"]


def test_a_dead_server_is_one_sentence(loadgen, model_files):
    """Nothing listens: exit status 1 and a sentence, no report."""
    code, report, errors = load("127.0.0.1:1", model_files.calls)
    assert (code, report) == (1, None)
    assert errors.startswith("forebay-loadgen: cannot connect to 127.0.0.1:1")


def test_a_server_that_dies_is_counted_not_fatal(loadgen, model_files, core):
    """Requests after its death are UNAVAILABLE; the run goes on to its end."""
    column = server.COLUMNS["grpc_threads"]
    with server.Server(column, model_files.model, model_files.calls, str(core)) as running:
        command = generator.arguments(running.target, model_files.calls, 1.5, 0.0, {"in_flight": 4})
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            process.wait(0.7)
        except subprocess.TimeoutExpired:
            subprocess.run(["kill", "-KILL", str(running.pid)], check=True)
        report = json.loads(process.communicate()[0])
    assert process.returncode == 0
    assert report["by_status"]["OK"] > 100
    assert report["by_status"]["UNAVAILABLE"] > 10


def test_a_file_of_calls_that_checks_nothing_is_refused(loadgen, tmp_path):
    """Without expected answers a run would prove nothing."""
    path = tmp_path / "empty.calls"
    path.write_bytes(b"")
    code, _, errors = load("127.0.0.1:1", path)
    assert code == 1
    assert "it holds no calls" in errors
