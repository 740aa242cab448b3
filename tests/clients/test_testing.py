"""The server for users' own tests, as they would use it."""

import grpc
import pytest
from google.protobuf import duration_pb2

import forebay_client
from forebay.v1 import inference_pb2, inference_service_pb2_grpc
from forebay_client import Health, JobState
from forebay_client.testing import FakeModel, FakeServer


def double(inputs):
    return {"y": inputs["x"] * 2}


def refuse(inputs):
    raise ValueError("not this one")


def crash(inputs):
    raise LookupError("a secret")


@pytest.fixture
def server():
    models = {
        "double": double,
        "refuse": refuse,
        "crash": crash,
        "slow": FakeModel(run=double, seconds=0.3, version=7, inputs=("x",)),
    }
    with FakeServer(models) as made:
        yield made


def test_models_are_functions(client, server):
    """Of arrays by name; both clients, and arrays without names."""
    assert client.predict("double", [[1.0, 2.0]]).array.tolist() == [[2.0, 4.0]]
    assert client.predict("slow", {"x": [[1.0]]}, version=7, timings=True).timings.compute == 0.3
    assert [model.name for model in client.models()] == ["crash", "double", "refuse", "slow"]
    assert [request.model for request in server.requests] == ["double", "slow"]


def test_it_fails_as_the_contract_says(client):
    """Each reason is the exception that a real server's would be."""
    with pytest.raises(forebay_client.ModelNotFound):
        client.predict("other", {"x": [[1.0]]})
    with pytest.raises(forebay_client.VersionNotFound):
        client.predict("double", {"x": [[1.0]]}, version=2)
    with pytest.raises(forebay_client.InputRejected, match="not this one"):
        client.predict("refuse", {"x": [[1.0]]})
    with pytest.raises(forebay_client.InternalError) as caught:
        client.predict("crash", {"x": [[1.0]]})
    assert "secret" not in str(caught.value)
    assert caught.value.error_id == "0123456789abcdef"


@pytest.mark.parametrize("reason", sorted(forebay_client._errors.BY_REASON))
def test_every_reason_can_be_had(surface, server, reason):
    """With its own exception and status code, on both clients."""
    client = surface(server.address, retry=None)
    delay = 0.01 if reason == "BYTES_LIMIT" else None  # without one it means the message itself
    server.fail_next(reason, times=4, message="so be it", retry_delay=delay)  # gRPC repeats UNAVAILABLE thrice
    with pytest.raises(forebay_client._errors.BY_REASON[reason]) as caught:
        client.predict("double", {"x": [[1.0]]})
    client.close()

    assert type(caught.value) is forebay_client._errors.BY_REASON[reason]
    assert (caught.value.reason, caught.value.message) == (reason, "so be it")


def test_faults_without_a_reason_need_a_code(server):
    """And reasons are those of the contract."""
    with pytest.raises(ValueError, match="no reason 'QUEUE_FUL'"):
        server.fail_next("QUEUE_FUL")
    with pytest.raises(ValueError, match="needs a code"):
        server.fail_next()


def test_streams_and_jobs_go_the_same_way(client, server, outcomes):
    """To the same models, with the same faults."""
    server.fail_next("INPUT_REJECTED")
    found, error = outcomes(client.stream("double", [{"x": [[float(value)]]} for value in range(4)]))
    assert error is None
    assert [type(outcome).__name__ for outcome in found] == ["InputRejected", *["Prediction"] * 3]

    job = client.submit("double", {"x": [[1.0]]}, request_id="key")
    assert client.result(job, timeout=10).prediction.array.tolist() == [[2.0]]
    assert client.submit("double", {"x": [[1.0]]}, request_id="key").id == job.id
    with pytest.raises(forebay_client.JobKeyReused):
        client.submit("double", {"x": [[2.0]]}, request_id="key")
    failed = client.submit("refuse", {"x": [[1.0]]})
    with pytest.raises(forebay_client.InputRejected) as caught:
        client.result(failed, timeout=10)
    assert caught.value.job.state is JobState.FAILED
    slow = client.submit("slow", {"x": [[1.0]]})
    assert list(client.watch(slow, timeout=10))[-1].state is JobState.SUCCEEDED
    cancelled = client.submit("slow", {"x": [[1.0]]})
    assert client.cancel(cancelled).state is JobState.CANCELLED
    assert [found.id for found in client.jobs(states=["FAILED"])] == [failed.id]
    assert len(list(client.jobs(page_size=2))) == 4
    with pytest.raises(forebay_client.JobNotFound):
        client.job("nobody")


def test_health_is_told(client, server):
    """Of the server and of its models."""
    assert client.health() is Health.SERVING
    assert client.health("model/double") is Health.SERVING
    assert client.health("model/other") is Health.SERVICE_UNKNOWN
    server.set_health(serving=False)
    assert client.health() is Health.NOT_SERVING


def test_it_speaks_to_plain_stubs(server):
    """The contract is on the wire, not in the client."""
    with grpc.insecure_channel(server.address) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        server.fail_next("QUEUE_FULL", retry_delay=1.5)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(inference_pb2.PredictRequest(model="double"), timeout=5)

    trailers = dict(caught.value.trailing_metadata())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert trailers["grpc-retry-pushback-ms"] == "1500"
    delay = forebay_client._errors.from_rpc(caught.value).retry_delay
    assert duration_pb2.Duration(seconds=1, nanos=500_000_000).ToNanoseconds() / 1e9 == delay


def test_the_metadata_is_kept(surface, server):
    """For those who test what they send."""
    client = surface(server.address, tenant="blue")
    client.predict("double", {"x": [[1.0]]})
    client.close()

    assert server.metadata[0]["x-forebay-tenant"] == "blue"
