"""Every documented error, seen by a caller: its code, its reason, its details, and nothing that it should not say."""

import threading
import time

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2

from forebay.v1 import error_pb2, inference_pb2, tensor_pb2
from forebay_client import Client
from forebay_client import QueueFull as ClientQueueFull
from forebay_server.config.tree import (
    BatchingConfig,
    BucketsConfig,
    EngineConfig,
    ExposureConfig,
    LimitsConfig,
    ModelConfig,
    TenantConfig,
)
from tests.serving import details_of, request_of, row, synthetic
from tests.waiting import eventually

Code = grpc.StatusCode

SECRET = "the-secret-of-the-model"


def check(error, code, reason, *, text=""):
    """What all errors have in common, and the code and reason of this one; gives the details by kind."""
    found_code, found_reason, details = details_of(error)
    assert (found_code, found_reason) == (code, reason), error
    assert f"ERROR_REASON_{reason}" in error_pb2.ErrorReason.keys()  # noqa: SIM118  # not a dictionary
    assert text in error.details()
    assert error.details()
    by_kind = {type(detail): detail for detail in details}
    trailers = dict(error.trailing_metadata())
    retry = by_kind.get(error_details_pb2.RetryInfo)
    assert ("grpc-retry-pushback-ms" in trailers) == (retry is not None), "both, or neither"
    if retry is not None:
        delay = retry.retry_delay.ToMilliseconds()
        assert delay == int(trailers["grpc-retry-pushback-ms"])
        assert 10 <= delay <= 30_000
    assert not list(error.initial_metadata() or ()), "errors come without headers of their own"
    return by_kind


def overloaded(error, reason):
    assert error_details_pb2.RetryInfo in check(error, Code.RESOURCE_EXHAUSTED, reason)


def busy(caller, model="model", value=1.0, **fields):
    """A call that keeps the only instance busy; the next ones wait."""
    return caller.later(model, row(value), **fields)


@pytest.fixture
def slow(serve, call):
    """A server of one model that takes 0.2 s for each row; gives the server, a caller, and the calls that wait."""

    def start(*, waiting=0, base_ms=200, **options):
        batching = BatchingConfig(max_batch_size=1, check_rows=False, **options.pop("batching", {}))
        server = serve(
            synthetic(base_ms=base_ms, batching=batching, engine={"run": "worker"}, **options.pop("engine", {})),
            **options,
        )
        caller = call(server)
        calls = [busy(caller)]
        time.sleep(0.05)  # until it runs
        calls += [busy(caller) for _ in range(waiting)]
        time.sleep(0.05)
        return caller, calls

    return start


# --- overload --------------------------------------------------------------------------------------------------------


def test_queue_full(slow):
    """A queue that holds as many rows as it may refuses with QUEUE_FULL and a delay; those that wait are answered."""
    caller, calls = slow(waiting=2, batching={"max_queued_rows": 2})
    overloaded(caller.fails(request_of("model", row(1))), "QUEUE_FULL")
    assert all(future.result() for future in calls)


def test_queue_full_in_a_stream_and_by_the_client(slow):
    """A stream's item is refused as a call would be, and the client's exception knows when to come back."""
    caller, _ = slow(waiting=2, base_ms=1000, batching={"max_queued_rows": 2})
    item = inference_pb2.StreamItem(id=5, request=request_of("model", row(1)))
    (message,) = caller.inference.StreamPredict(iter([inference_pb2.StreamPredictRequest(items=[item])]), timeout=5)
    (result,) = message.results
    assert (result.id, result.error.code) == (5, Code.RESOURCE_EXHAUSTED.value[0])
    address = caller.channel._channel.target().decode()
    with Client(address, retry=None) as client, pytest.raises(ClientQueueFull) as caught:
        client.predict("model", {"x": row(1)})
    assert caught.value.retry_delay > 0


def test_more_rows_than_the_queue_holds(slow):
    """A request that could never be queued is refused for good: without a delay."""
    caller, _ = slow(batching={"max_queued_rows": 2})
    error = caller.fails(request_of("model", row(1, 3)))
    assert error_details_pb2.RetryInfo not in check(error, Code.RESOURCE_EXHAUSTED, "BYTES_LIMIT")


def test_bytes_limit_of_the_server(slow):
    """When the server holds as many bytes as it may, it refuses with BYTES_LIMIT and a delay."""
    limits = LimitsConfig(max_held_mib=0.25)
    caller, _ = slow(limits=limits)
    large = request_of("model", np.zeros((12_000, 4), np.float32))
    futures = [caller.inference.Predict.future(large, timeout=3000) for _ in range(4)]
    errors = [future.exception() for future in futures[1:]]
    reasons = {details_of(error)[1] for error in errors}
    assert reasons == {"BYTES_LIMIT"}
    for error in errors:
        overloaded(error, "BYTES_LIMIT")
    for future in futures:
        future.cancel()


def test_bytes_limit_of_a_message(serve, call):
    """A message over the size limit is refused with BYTES_LIMIT, without a delay: it will never fit."""
    server = serve(synthetic(), limits=LimitsConfig(max_receive_mib=1))
    caller = call(server)
    error = caller.fails(request_of("model", np.zeros((70_000, 4), np.float32)))
    if server.wire_name == "native":
        assert error_details_pb2.RetryInfo not in check(error, Code.RESOURCE_EXHAUSTED, "BYTES_LIMIT")
    else:  # grpcio refuses it by itself, before we know of it
        assert error.code() is Code.RESOURCE_EXHAUSTED
    assert caller.predict("model", row(1)).outputs


def test_bytes_limit_of_a_response(serve, call):
    """A response over the size limit becomes BYTES_LIMIT, in a call and in a stream, which goes on."""
    caller = call(serve(synthetic(), limits=LimitsConfig(max_send_mib=1)))
    large = request_of("model", np.zeros((70_000, 4), np.float32))
    error = caller.fails(large)
    assert error_details_pb2.RetryInfo not in check(error, Code.RESOURCE_EXHAUSTED, "BYTES_LIMIT")
    items = [
        inference_pb2.StreamItem(id=1, request=large),
        inference_pb2.StreamItem(id=2, request=request_of("model", row(2))),
    ]
    messages = (inference_pb2.StreamPredictRequest(items=[item]) for item in items)
    results = {
        result.id: result
        for message in caller.inference.StreamPredict(messages, timeout=20)
        for result in message.results
    }
    assert results[1].error.code == Code.RESOURCE_EXHAUSTED.value[0]
    assert results[2].response.outputs


def test_tenant_quota(serve, call):
    """A tenant with as many rows waiting as it may have gets TENANT_QUOTA; others are not affected."""
    server = serve(
        synthetic(base_ms=200, batching=BatchingConfig(max_batch_size=1, check_rows=False), engine={"run": "worker"}),
        tenants={"small": TenantConfig(max_queued_rows=1)},
        server={"public": ExposureConfig(address="127.0.0.1:0", trusted=True)},
    )
    caller = call(server)
    small = (("x-forebay-tenant", "small"),)
    calls = [caller.later("model", row(1), metadata=small)]
    time.sleep(0.05)
    calls.append(caller.later("model", row(1), metadata=small))
    time.sleep(0.05)
    overloaded(caller.fails(request_of("model", row(1)), metadata=small), "TENANT_QUOTA")
    calls.append(caller.later("model", row(1)))
    too_many = caller.fails(request_of("model", row(1, 2)), metadata=small)
    assert error_details_pb2.RetryInfo not in check(too_many, Code.RESOURCE_EXHAUSTED, "BYTES_LIMIT")
    assert all(future.result() for future in calls)


# --- time ------------------------------------------------------------------------------------------------------------


def test_deadline_unreachable(slow):
    """A deadline that can't be met by the measured speed is refused at once, long before it passes."""
    caller, _ = slow(waiting=3)
    begin = time.monotonic()
    check(caller.fails(request_of("model", row(1)), timeout=0.25), Code.DEADLINE_EXCEEDED, "DEADLINE_UNREACHABLE")
    assert time.monotonic() - begin < 0.15


def test_deadline_expired(serve, call):
    """A request whose deadline passes while it waits is told so by the server, if the caller still listens."""
    server = serve(
        synthetic(base_ms=1, hang=9.0, engine={"max_execution_s": 0.4}, batching=BatchingConfig(max_batch_size=1)),
    )
    caller = call(server)
    hung = caller.later("model", row(9), timeout=20)
    time.sleep(0.05)
    # A caller's own clock would cut a unary call off; an item's timeout is the server's business alone.
    item = inference_pb2.StreamItem(id=5, request=request_of("model", row(1)))
    item.timeout.FromMilliseconds(100)
    (message,) = caller.inference.StreamPredict(iter([inference_pb2.StreamPredictRequest(items=[item])]), timeout=10)
    (result,) = message.results
    assert result.error.code == Code.DEADLINE_EXCEEDED.value[0]
    (info,) = result.error.details
    parsed = error_details_pb2.ErrorInfo()
    assert info.Unpack(parsed)
    assert parsed.reason == "DEADLINE_EXPIRED"
    assert caller.fails(request_of("model", row(1)), timeout=0.05).code() is Code.DEADLINE_EXCEEDED
    assert hung.exception().code() is Code.UNAVAILABLE


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "version", "reason"),
    [
        ("nobody", "", "MODEL_NOT_FOUND"),
        ("nobody", "1", "MODEL_NOT_FOUND"),
        ("model", "2", "VERSION_NOT_FOUND"),
        ("model", "stable", "VERSION_NOT_FOUND"),
        ("model", "0001", "VERSION_NOT_FOUND"),
        ("model", "99999999999999999999", "VERSION_NOT_FOUND"),
    ],
)
def test_not_found(serve, call, model, version, reason):
    """An unknown model, version or label is NOT_FOUND with its own reason."""
    caller = call(serve(synthetic()))
    check(caller.fails(request_of(model, row(1), version=version)), Code.NOT_FOUND, reason)


@pytest.mark.parametrize("model", ["", "../etc/passwd", "a b", "x" * 129, "\u0000", "ümlaut"])
def test_names_that_are_none(serve, call, model):
    """What can't be a name is INVALID_ARGUMENT, whatever it may mean elsewhere."""
    caller = call(serve(synthetic()))
    details = check(caller.fails(request_of(model, row(1))), Code.INVALID_ARGUMENT, "INVALID_TENSOR")
    assert [violation.field for violation in details[error_details_pb2.BadRequest].field_violations] == ["model"]


def python_model(tmp_path, name, body):
    """A model of Python code."""
    path = tmp_path / f"{name}.py"
    path.write_text(
        "import time, os\nimport numpy as np\n"
        "from forebay_server.engines.base import RejectInput\n"
        "from forebay_server.engines.python import model\n"
        "@model(inputs={'x': ('FP32', (-1, 4))}, outputs={'y': ('FP32', (-1, 4))})\n"
        f"class Model:\n{body}"
    )
    return ModelConfig(name="model", path=f"python:{path}:Model", batching=BatchingConfig(check_rows=False))


def test_model_loading(serve, call, tmp_path):
    """While a model loads its callers get MODEL_LOADING, from the first moment; afterwards they are answered."""
    body = (
        "    def load(self):\n"
        f"        while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\n"
        "    def infer(self, x):\n        return x\n"
    )
    server = serve(python_model(tmp_path, "e2e_loading", body), ready=False)
    caller = call(server)
    check(caller.fails(request_of("model", row(1))), Code.UNAVAILABLE, "MODEL_LOADING")
    assert not caller.serving()
    (tmp_path / "go").touch()
    assert server.wait_ready(20)
    assert caller.predict("model", row(1)).version == 1
    assert caller.serving()


def test_model_failed(serve, call, tmp_path):
    """A model that could not be loaded is MODEL_FAILED, and the reason for people does not reach callers."""
    body = f"    def load(self):\n        raise ValueError({SECRET!r})\n    def infer(self, x):\n        return x\n"
    server = serve(python_model(tmp_path, "e2e_failed", body), ready=False)
    assert not server.wait_ready(20)
    error = call(server).fails(request_of("model", row(1)))
    check(error, Code.FAILED_PRECONDITION, "MODEL_FAILED")
    assert SECRET not in repr(error)


def test_a_model_after_a_failed_one_is_announced_as_failed_too(serve, call):
    """A server that stays up although a start-up model failed does not leave the next one loading for ever."""
    server = serve(ModelConfig(name="bad", path="synthetic:nonsense=1"), synthetic("good"), ready=False)
    assert not server.wait_ready(20)
    caller = call(server)
    assert caller.fails(request_of("bad", row(1))).code() is Code.FAILED_PRECONDITION
    assert not caller.serving()


# --- bad input -------------------------------------------------------------------------------------------------------

FP32 = tensor_pb2.DATA_TYPE_FP32
GOOD = {"name": "x", "data_type": FP32, "shape": [1, 4], "data": bytes(16)}
BAD_TENSORS = {
    "wrong name": ({"name": "z"}, {"inputs[0].name", "inputs"}),
    "no name": ({"name": ""}, {"inputs[0].name", "inputs"}),
    "wrong type": ({"data_type": tensor_pb2.DATA_TYPE_INT32}, {"inputs[0].data_type"}),
    "no type": ({"data_type": 0}, {"inputs[0].data_type"}),
    "unknown type": ({"data_type": 99}, {"inputs[0].data_type"}),
    "rank too low": ({"shape": [4]}, {"inputs[0].shape"}),
    "rank too high": ({"shape": [1, 4, 1]}, {"inputs[0].shape"}),
    "no shape": ({"shape": []}, {"inputs[0].shape"}),
    "rank far too high": ({"shape": [1] * 1000}, {"inputs[0].shape"}),
    "wrong row": ({"shape": [1, 5]}, {"inputs[0].shape"}),
    "negative": ({"shape": [-1, 4]}, {"inputs[0].shape"}),
    "huge count": ({"shape": [2**62, 4]}, {"inputs[0].shape"}),
    "overflowing product": ({"shape": [2**62 + 1, 4]}, {"inputs[0].shape"}),
    "more rows than bytes": ({"shape": [2**31 - 1, 4]}, {"inputs[0].data"}),
    "too few bytes": ({"data": bytes(15)}, {"inputs[0].data"}),
    "too many bytes": ({"data": bytes(17)}, {"inputs[0].data"}),
    "no data": ({"data": b""}, {"inputs[0].data"}),
    "two forms": ({"numbers": [1, 2, 3, 4]}, {"inputs[0]"}),
    "strings for numbers": ({"data": b"", "strings": ["a", "b", "c", "d"]}, {"inputs[0].strings"}),
    "too few numbers": ({"data": b"", "numbers": [1]}, {"inputs[0].numbers"}),
    "number out of range": ({"data": b"", "numbers": [1e300, 0, 0, 0]}, {"inputs[0].numbers"}),
}
BAD_REQUESTS = {
    "no inputs": (lambda r: r.ClearField("inputs"), {"inputs"}),
    "an input twice": (lambda r: r.inputs.append(r.inputs[0]), {"inputs[1].name"}),
    "too many inputs": (lambda r: r.inputs.extend([r.inputs[0]] * 64), {"inputs"}),
    "unknown output": (lambda r: r.outputs.append("q"), {"outputs[0]"}),
    "output twice": (lambda r: r.outputs.extend(["y", "y"]), {"outputs"}),
    "long request id": (lambda r: setattr(r, "request_id", "i" * 129), {"request_id"}),
    "parameter without value": (lambda r: r.parameters["p"].SetInParent(), {"parameters['p']"}),
    "NaN parameter": (lambda r: setattr(r.parameters["p"], "double_value", float("nan")), {"parameters['p']"}),
    "too many parameters": (
        lambda r: [setattr(r.parameters[str(n)], "int_value", n) for n in range(33)],
        {"parameters"},
    ),
    "version that is no name": (lambda r: setattr(r, "version", "../1"), {"version"}),
}


def test_invalid_tensors(serve, call):
    """Each kind of bad input is INVALID_ARGUMENT and names the field; the server goes on as before."""
    caller = call(serve(synthetic(), synthetic("other")))
    requests = []
    for name, (change, fields) in BAD_TENSORS.items():
        request = inference_pb2.PredictRequest(model="model", inputs=[tensor_pb2.Tensor(**{**GOOD, **change})])
        requests.append((name, request, fields))
    for name, (change, fields) in BAD_REQUESTS.items():
        request = inference_pb2.PredictRequest(model="model", inputs=[tensor_pb2.Tensor(**GOOD)])
        change(request)
        requests.append((name, request, fields))
    for name, request, fields in requests:
        error = caller.fails(request)
        details = check(error, Code.INVALID_ARGUMENT, "INVALID_TENSOR")
        found = details[error_details_pb2.BadRequest].field_violations
        assert {violation.field for violation in found} == fields, name
        assert all(violation.description for violation in found)
    assert caller.predict("model", row(3)).outputs[0].data == row(3).tobytes()


def test_bytes_that_are_no_message(serve, call):
    """Malformed protobuf is INVALID_ARGUMENT, in a call and in a stream."""
    caller = call(serve(synthetic()))
    predict = caller.channel.unary_unary("/forebay.v1.InferenceService/Predict")
    with pytest.raises(grpc.RpcError) as caught:
        predict(b"\xff\xff\xff", timeout=10)
    check(caught.value, Code.INVALID_ARGUMENT, "INVALID_TENSOR")
    stream = caller.channel.stream_stream("/forebay.v1.InferenceService/StreamPredict")
    with pytest.raises(grpc.RpcError) as caught:
        list(stream(iter([b"\xff\xff\xff"]), timeout=10))
    check(caught.value, Code.INVALID_ARGUMENT, "INVALID_TENSOR")


@pytest.mark.parametrize("fault", ["options", "items", "id"])
def test_faults_of_a_stream(serve, call, fault):
    """Options that come late, too many items, and an id in flight each end the stream with INVALID_TENSOR."""
    caller = call(serve(synthetic(base_ms=100, batching=BatchingConfig(max_batch_size=4))))
    item = inference_pb2.StreamItem(id=1, request=request_of("model", row(9)))
    first = inference_pb2.StreamPredictRequest(items=[item])
    second = {
        "options": inference_pb2.StreamPredictRequest(options=inference_pb2.StreamOptions(max_in_flight=1)),
        "items": inference_pb2.StreamPredictRequest(
            items=[inference_pb2.StreamItem(id=n + 9, request=request_of("model", row(1))) for n in range(1025)]
        ),
        "id": first,
    }[fault]
    with pytest.raises(grpc.RpcError) as caught:
        list(caller.inference.StreamPredict(iter([first, second]), timeout=10))
    details = check(caught.value, Code.INVALID_ARGUMENT, "INVALID_TENSOR")
    (violation,) = details[error_details_pb2.BadRequest].field_violations
    assert fault in violation.field


def test_a_readable_answer_that_is_too_large(serve, call):
    """Outputs of more than 4,096 elements can't be had in readable form; 4,096 can."""
    caller = call(serve(synthetic()))
    assert len(caller.predict("model", row(1, 1024), readable=True).outputs[0].numbers) == 4096
    error = caller.fails(request_of("model", row(1, 1025), readable=True))
    details = check(error, Code.INVALID_ARGUMENT, "INVALID_TENSOR")
    assert details[error_details_pb2.BadRequest].field_violations[0].field == "readable"


def test_no_bucket_is_large_enough(serve, call, onnx_models):
    """A shape beyond the largest bucket is INVALID_TENSOR."""
    buckets = BucketsConfig(shapes={"x": [[4]]}, outputs={"y": [0]})
    caller = call(serve(ModelConfig(path=str(onnx_models.make_sequence_model()), buckets=buckets)))
    check(caller.fails(request_of("sequence", row(1, 1, 5))), Code.INVALID_ARGUMENT, "INVALID_TENSOR")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_policy(serve, call, value):
    """NaN and infinity are refused where the model's owner says so, and pass otherwise."""
    caller = call(serve(synthetic("strict", model={"nan": "reject"}), synthetic("lax")))
    array = row(1)
    array[0, 2] = value
    check(caller.fails(request_of("strict", array)), Code.INVALID_ARGUMENT, "INVALID_TENSOR")
    assert caller.predict("lax", array).outputs[0].data == array.tobytes()


# --- faults ----------------------------------------------------------------------------------------------------------


def test_input_rejected(serve, call, tmp_path):
    """A model's own refusal reaches the caller with its text."""
    body = (
        "    def infer(self, x):\n"
        "        if (x[:, 0] == 7).any():\n"
        "            raise RejectInput('seven is not welcome', np.flatnonzero(x[:, 0] == 7).tolist())\n"
        "        return x\n"
    )
    caller = call(serve(python_model(tmp_path, "e2e_rejects", body)))
    error = caller.fails(request_of("model", row(7)))
    check(error, Code.INVALID_ARGUMENT, "INPUT_REJECTED", text="seven is not welcome")


@pytest.mark.parametrize("run", ["inline", "worker"])
def test_internal(serve, call, tmp_path, run, capfd):
    """An exception of the model is INTERNAL with an id and a fixed text; its own text is in the log only."""
    body = f"    def infer(self, x):\n        if (x[:, 0] == 7).any(): raise ValueError({SECRET!r})\n        return x\n"
    model = python_model(tmp_path, f"e2e_internal_{run}", body)
    caller = call(
        serve(ModelConfig(name="model", path=model.path, batching=model.batching, engine=EngineConfig(run=run)))
    )
    error = caller.fails(request_of("model", row(7)))
    details = check(error, Code.INTERNAL, "INTERNAL")
    ident = details[error_details_pb2.ErrorInfo].metadata["error_id"]
    assert len(ident) == 16
    assert error.details() == f"internal error {ident}"
    for place in (repr(error), str(error.trailing_metadata()), str(error.initial_metadata())):
        assert SECRET not in place
        assert "ValueError" not in place
    assert caller.predict("model", row(1)).outputs
    logged = "".join(capfd.readouterr())
    assert ident in logged
    assert SECRET in logged


def test_a_wrong_output_is_internal(serve, call, tmp_path):
    """A model that returns fewer rows than it was given is at fault, and nobody gets a neighbour's rows."""
    body = "    def infer(self, x):\n        return x[:-1] if x[0, 0] == 7 else x\n"
    caller = call(serve(python_model(tmp_path, "e2e_wrong_output", body)))
    check(caller.fails(request_of("model", row(7, 3))), Code.INTERNAL, "INTERNAL")
    assert caller.predict("model", row(1, 3)).outputs


@pytest.mark.parametrize("run", ["inline", "worker"])
def test_a_model_that_leaves_takes_nobody_along(serve, call, tmp_path, run):
    """SystemExit in a model costs that model its instance; the others are answered, and so is the caller."""
    body = "    def infer(self, x):\n        if (x[:, 0] == 7).any(): raise SystemExit(3)\n        return x\n"
    model = python_model(tmp_path, f"e2e_exits_{run}", body)
    server = serve(
        ModelConfig(name="model", path=model.path, batching=model.batching, engine=EngineConfig(run=run)),
        synthetic("other"),
    )
    caller = call(server)
    check(caller.fails(request_of("model", row(7)), timeout=5), Code.UNAVAILABLE, "ENGINE_UNAVAILABLE")
    check(caller.fails(request_of("model", row(1)), timeout=5), Code.UNAVAILABLE, "ENGINE_UNAVAILABLE")
    assert caller.predict("other", row(1), timeout=5).outputs
    eventually(lambda: not caller.serving("model/model"), "its health turns")
    assert caller.serving()


def test_engine_unavailable_when_dead(serve, call):
    """A model whose only instance died is ENGINE_UNAVAILABLE."""
    caller = call(serve(synthetic(dies=7.0), synthetic("other")))
    check(caller.fails(request_of("model", row(7))), Code.UNAVAILABLE, "ENGINE_UNAVAILABLE")
    check(caller.fails(request_of("model", row(1))), Code.UNAVAILABLE, "ENGINE_UNAVAILABLE")
    assert caller.predict("other", row(1)).outputs


def test_engine_unavailable_when_stuck(serve, call):
    """Callers of a batch that hangs, and those that wait behind it, get ENGINE_UNAVAILABLE."""
    caller = call(
        serve(synthetic(hang=7.0, engine={"max_execution_s": 0.2}, batching=BatchingConfig(max_batch_size=1)))
    )
    calls = [caller.later("model", row(7))]
    time.sleep(0.02)
    calls += [caller.later("model", row(1)) for _ in range(3)]
    for future in calls:
        check(future.exception(), Code.UNAVAILABLE, "ENGINE_UNAVAILABLE")
    check(caller.fails(request_of("model", row(1))), Code.UNAVAILABLE, "ENGINE_UNAVAILABLE")


def test_engine_restarted(serve, call):
    """What ran on an instance that died gets ENGINE_RESTARTED while another instance serves on."""
    caller = call(serve(synthetic(dies=7.0, engine={"instances": 2, "run": "worker"})))
    check(caller.fails(request_of("model", row(7))), Code.UNAVAILABLE, "ENGINE_RESTARTED")
    assert caller.predict("model", row(1)).outputs
    assert caller.serving("model/model")


def test_out_of_memory(serve, call):
    """A request for which there is no memory even alone is UNAVAILABLE; larger batches are cut to what fits."""
    caller = call(serve(synthetic(oom_above=2, batching=BatchingConfig(check_rows=False))))
    assert caller.predict("model", row(1, 16)).outputs[0].shape[0] == 16
    caller = call(serve(synthetic(oom_above=0, batching=BatchingConfig(check_rows=False))))
    check(caller.fails(request_of("model", row(1))), Code.UNAVAILABLE, "ENGINE_UNAVAILABLE")


def test_unsupported(serve, call):
    """A compressed message is UNIMPLEMENTED unless it is enabled; an unknown method is UNIMPLEMENTED always."""
    caller = call(serve(synthetic()))
    request = request_of("model", np.zeros((500, 4), np.float32))
    with pytest.raises(grpc.RpcError) as caught:
        caller.inference.Predict(request, timeout=10, compression=grpc.Compression.Gzip)
    assert caught.value.code() is Code.UNIMPLEMENTED
    if dict(caught.value.trailing_metadata()).get("grpc-status-details-bin"):
        check(caught.value, Code.UNIMPLEMENTED, "UNSUPPORTED")
    with pytest.raises(grpc.RpcError) as caught:
        caller.channel.unary_unary("/forebay.v1.JobService/Submit")(b"", timeout=10)
    assert caught.value.code() is Code.UNIMPLEMENTED
    caller = call(serve(synthetic(), limits=LimitsConfig(accept_gzip=True)))
    assert caller.inference.Predict(request, timeout=10, compression=grpc.Compression.Gzip).outputs


def test_draining(serve, call):
    """While a server drains, new calls and items are refused with DRAINING, and accepted ones answered."""
    batching = BatchingConfig(max_batch_size=8, check_rows=False)
    server = serve(synthetic(base_ms=100, batching=batching, engine={"run": "worker"}))
    caller = call(server)
    gate = threading.Event()
    item = inference_pb2.StreamItem(id=1, request=request_of("model", row(1)))

    def messages():
        yield inference_pb2.StreamPredictRequest(items=[item])
        gate.wait(10)
        item.id = 2
        yield inference_pb2.StreamPredictRequest(items=[item])

    stream = caller.inference.StreamPredict(messages(), timeout=20)
    accepted = [caller.later("model", row(n, 8)) for n in range(4)]
    time.sleep(0.05)
    drain = threading.Thread(target=server.drain)
    drain.start()
    notice = next(stream)
    assert notice.HasField("drain")
    assert notice.drain.grace.ToSeconds() == 10
    gate.set()
    results = {result.id: result for message in stream for result in message.results}
    assert results[1].response.outputs
    assert results[2].error.code == Code.UNAVAILABLE.value[0]
    assert b"DRAINING" in results[2].error.SerializeToString()
    assert all(future.result() for future in accepted)
    drain.join(20)
    assert not drain.is_alive()
    assert caller.fails(request_of("model", row(1)), timeout=5).code() is Code.UNAVAILABLE
