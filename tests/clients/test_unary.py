"""Unary calls, on both clients, against a real server."""

import datetime as dt
import time

import grpc
import ml_dtypes
import numpy as np
import pytest

import forebay_client
from forebay.v1 import tensor_pb2
from forebay_client import Health, JobState, JobStatistics

ROW = np.array([[1.0, 2.0]], np.float32)


def test_arrays_come_back_by_name(client):
    """A prediction maps output names to arrays and knows what ran."""
    prediction = client.predict("double", {"x": np.array([[1, 2], [3, 4]], np.float32)}, request_id="r-1")

    assert prediction["y"].tolist() == [[2, 4], [6, 8]]
    assert np.dtype(np.float32) == prediction["y"].dtype
    assert (
        prediction.model,
        prediction.version,
        prediction.request_id,
        prediction.timings,
        prediction.index,
    ) == ("double", 3, "r-1", None, None)
    assert list(prediction) == ["y"]
    assert repr(prediction) == "<Prediction of double version 3: y: float32[2, 2]>"


def test_the_only_input_needs_no_name(client, server):
    """An array alone goes to the model's only input, whose name is asked for once."""
    assert client.predict("double", ROW).array.tolist() == [[2, 4]]
    assert client.predict("double", ROW).array.tolist() == [[2, 4]]
    assert [type(request).__name__ for request in server.log.requests] == [
        "GetModelRequest",
        "PredictRequest",
        "PredictRequest",
    ]


def test_an_array_alone_is_refused_by_a_model_with_several_inputs(client):
    """Without a name it is not clear which input is meant."""
    with pytest.raises(ValueError, match="has the inputs a, b: give them by name"):
        client.predict("many", ROW)


def test_a_lists_default_type_is_numpys(client, server):
    """Lists become what numpy makes of them: nothing is cast behind the caller's back."""
    client.predict("echo", {"x": [[1.0]]})

    assert server.log.requests[-1].inputs[0].data_type == tensor_pb2.DATA_TYPE_FP64


@pytest.mark.parametrize(
    "array",
    [
        np.array([True, False]),
        np.arange(3, dtype=np.uint16),
        np.arange(3, dtype=np.longlong),
        np.array([0.5, -1], np.float16),
        np.array([0.5, -1], ml_dtypes.bfloat16),
        np.arange(3, dtype=">i4"),
        np.arange(6, dtype=np.float64).reshape(2, 3).T,
        np.zeros((2, 0), np.float32),
        np.array(5, np.int8),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_numbers_make_the_round_trip(client, array):
    """Types, shapes and values survive, whatever the byte order and the layout in memory."""
    result = client.predict("echo", {"x": array})["x"]

    np.testing.assert_array_equal(array, result)
    assert array.dtype.newbyteorder("<") == result.dtype
    assert array.shape == result.shape


@pytest.mark.parametrize(
    "array",
    [np.array([["a", "bç"], ["", "d"]]), np.array([["a", b"b\xc3\xa7"], ["", "d"]], object)],
    ids=["text", "objects"],
)
def test_strings_come_back_as_bytes(client, array):
    """Text travels as UTF-8, and BYTES are read as an object array of bytes."""
    result = client.predict("echo", {"x": array})["x"]

    assert result.tolist() == [[b"a", b"b\xc3\xa7"], [b"", b"d"]]


@pytest.mark.parametrize("array", [np.array([1j]), np.array(["2026-01-01"], "M8[D]"), np.array([None])])
def test_what_the_contract_has_no_type_for_is_a_type_error(client, array):
    """Nothing is sent, and the input is named."""
    with pytest.raises(TypeError, match="input 'x'"):
        client.predict("echo", {"x": array})


def test_every_option_reaches_the_server(client, server):
    """Version, outputs, priority, parameters, id and the wish for timings are in the request."""
    prediction = client.predict(
        "double",
        {"x": ROW},
        version=3,
        outputs=["y"],
        priority="high",
        parameters={"flag": True, "count": 3, "scale": 0.5, "mode": "fast"},
        request_id="abc",
        timings=True,
    )
    request = server.log.requests[0]

    assert (
        request.version,
        list(request.outputs),
        request.priority,
        request.request_id,
        request.report_timings,
    ) == ("3", ["y"], 1, "abc", True)
    assert {
        name: (value.WhichOneof("value"), getattr(value, value.WhichOneof("value")))
        for name, value in request.parameters.items()
    } == {
        "flag": ("bool_value", True),
        "count": ("int_value", 3),
        "scale": ("double_value", 0.5),
        "mode": ("string_value", "fast"),
    }
    assert (
        forebay_client.Timings(
            queue=0.001,
            collate=0.000002,
            compute=0.003,
            encode=0.000004,
            batch_rows=5,
            batch_requests=2,
            padded_rows=3,
            dispatch_reason="delay",
        )
        == prediction.timings
    )


def test_a_deadline_is_always_set(client, server):
    """30 seconds if the caller says nothing, else what he says; never none."""
    client.predict("double", {"x": ROW})
    client.predict("double", {"x": ROW}, deadline=5)

    assert 29 < server.log.remaining[0] < 31  # gRPC rounds up
    assert 4 < server.log.remaining[1] < 6


@pytest.mark.parametrize("deadline", [0, -1, float("inf"), float("nan")])
def test_what_is_no_deadline_is_refused(client, deadline):
    """There is no way to wait for ever."""
    with pytest.raises(ValueError, match="a deadline is a positive number of seconds"):
        client.predict("double", {"x": ROW}, deadline=deadline)


def test_an_unknown_priority_is_refused(client):
    """The priority is one of three words."""
    with pytest.raises(ValueError, match="priority 'urgent' is none of high, normal, low"):
        client.predict("double", {"x": ROW}, priority="urgent")


def test_the_tenant_and_the_metadata_go_with_every_call(surface, server):
    """Both are said once, to the client."""
    client = surface(server.address, tenant="blue", metadata={"x-team": "vision"})
    client.predict("double", {"x": ROW})
    list(client.stream("double", [{"x": ROW}]))
    client.close()

    assert [(sent["x-forebay-tenant"], sent["x-team"]) for sent in server.log.metadata] == [("blue", "vision")] * 2


def test_an_overload_says_when_to_come_back(client):
    """The reason has a class of its own, and the delay is in seconds."""
    with pytest.raises(forebay_client.QueueFull) as caught:
        client.predict("double", {"x": np.array([[-1, 0]], np.float32)})

    error = caught.value
    assert (error.code, error.reason, error.retry_delay) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", 0.25)
    assert error.details == {"queued_rows": "7"}
    assert str(error) == "RESOURCE_EXHAUSTED (QUEUE_FULL): the queue is full [retry after 0.25 s]"


def test_a_bad_tensor_names_its_fields(client):
    """BadRequest arrives as violations."""
    with pytest.raises(forebay_client.InvalidRequest) as caught:
        client.predict("double", {"x": np.array([[-2, 0]], np.float32)})

    assert (forebay_client.Violation(field="inputs[0].shape", description="is wrong"),) == caught.value.violations


def test_an_internal_error_has_an_id(client):
    """The id finds the fault in the server's log."""
    with pytest.raises(forebay_client.InternalError) as caught:
        client.predict("double", {"x": np.array([[-3, 0]], np.float32)})

    assert caught.value.error_id == "0123abcd"


def test_an_unknown_model_is_not_found(client):
    """Also where the array has no name and the model has to be asked about first."""
    with pytest.raises(forebay_client.ModelNotFound):
        client.predict("nobody", {"x": ROW})
    with pytest.raises(forebay_client.NotFound):
        client.predict("nobody", ROW)


def test_a_response_that_contradicts_itself_is_a_bad_response(client):
    """The caller sees one of our exceptions, not numpy's."""
    with pytest.raises(forebay_client.BadResponse, match="3 bytes, which is not what"):
        client.predict("broken", {"x": ROW})


def test_the_deadline_is_kept_by_the_client_too(client):
    """A server that does not answer costs no more than the deadline."""
    start = time.monotonic()
    with pytest.raises(forebay_client.DeadlineExceeded):
        client.predict("slow", {"x": ROW}, deadline=0.2)

    assert time.monotonic() - start < 5


def test_nobody_there_is_unavailable(surface):
    """A refused connection is an exception of ours, at once."""
    client = surface("127.0.0.1:1")
    with pytest.raises(forebay_client.Unavailable) as caught:
        client.predict("double", {"x": ROW}, deadline=10)
    client.close()

    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "")


def test_messages_over_the_limit_are_too_large(surface, server):
    """Both ways, and apart from overload, which may be retried."""
    client = surface(server.address, max_message_bytes=1 << 16)
    with pytest.raises(forebay_client.MessageTooLarge):
        client.predict("echo", {"x": np.zeros(1 << 17, np.uint8)})
    with pytest.raises(forebay_client.MessageTooLarge):
        client.predict("large", {"x": ROW})
    client.close()


def test_messages_of_sixteen_mebibytes_pass(client):
    """The server's default limit is the client's; gRPC's own would be 4 MiB."""
    assert client.predict("large", {"x": ROW})["y"].size == 1 << 20
    assert client.predict("echo", {"x": np.zeros(3 << 20, np.uint8)})["x"].size == 3 << 20


def test_models_are_listed_over_all_pages(client):
    """Paging is not the caller's business."""
    assert [model.name for model in client.models()] == ["double", "echo", "many", "slow"]


def test_a_model_is_described(client):
    """Units are seconds, types are numpy's."""
    model = client.model("double")

    version = model.versions[0]
    assert (model.labels, model.default_version) == ({"stable": 3}, 3)
    assert (
        version.version,
        version.state,
        version.engine,
        version.max_batch_size,
        version.best_batch_size,
        version.max_delay,
        version.instances,
        version.run_mode,
    ) == (3, "ready", "synthetic", 8, 4, 0.002, 2, "worker")
    assert dt.datetime(2023, 11, 14, 22, 13, 20, tzinfo=dt.UTC) == version.ready_time
    assert (
        forebay_client.TensorSpec(name="x", dtype=np.dtype(np.float32), data_type="FP32", shape=(-1, 2), batched=True),
    ) == version.inputs


@pytest.mark.parametrize(("version", "found"), [("", 3), ("stable", 3), ("3", 3), ("4", None), ("canary", None)])
def test_a_version_is_found_by_number_or_label(client, version, found):
    """As the server would resolve it."""
    result = client.model("double").find(version)

    assert found == (result.version if result is not None else None)


def test_statistics_of_a_server_are_read(client):
    """The server, its jobs, its models, and the buckets of durations by their upper bounds in seconds."""
    found = client.server_statistics()
    (figures,) = found.models

    assert found.start_time == dt.datetime(2023, 11, 14, 22, 13, 20, tzinfo=dt.UTC)
    assert (found.uptime, found.release, found.front_end) == (12.5, "1.2.3", "native")
    assert (found.draining, found.held_bytes) == (True, 7)
    assert found.jobs == JobStatistics(
        store="sqlite", available=True, states={JobState.PENDING: 4, JobState.UNKNOWN: 1}
    )
    assert (figures.state, figures.engine, figures.busy) == ("ready", "synthetic", 2.5)
    assert (figures.instances, figures.usable_instances, figures.running_batches) == (2, 1, 1)
    assert figures.request_time.growth == 2.0
    assert figures.request_time.buckets == pytest.approx({0.008: 1, 0.032: 9})
    assert figures.queue_time.buckets == {}


def test_statistics_are_read(client):
    """Counts by name, times in seconds."""
    (found,) = client.statistics("double")

    assert (
        found.model,
        found.batch_sizes,
        found.dispatches,
        found.wait_margin,
    ) == ("double", {4: 2}, {"idle": 2}, 1.5)
    assert (forebay_client.Outcome(code="OK", reason="", requests=10),) == found.outcomes
    assert (forebay_client.BatchCost(bucket="2", rows=4, predicted=0.002, samples=9),) == found.costs
    assert forebay_client.Latency(count=10, total=1.0, p50=0.1, p90=0.2, p99=1.0) == found.request_time


@pytest.mark.parametrize(
    ("service", "health"),
    [("", Health.SERVING), ("model/slow", Health.NOT_SERVING), ("model/nobody", Health.SERVICE_UNKNOWN)],
)
def test_health_is_told(client, service, health):
    """A service that nobody knows is a state, not an exception."""
    assert health == client.health(service)


def test_a_closed_client_says_so(surface, server):
    """Using it is a mistake of the program, not a failure of the server."""
    client = surface(server.address)
    client.predict("double", {"x": ROW})
    inner = client.client
    client.close()

    assert inner._closed
    with pytest.raises(RuntimeError, match="the client is closed"):
        inner._check_open()
