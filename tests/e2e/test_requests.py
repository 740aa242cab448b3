"""What a request can ask for, and who asks: priorities, parameters, versions, readable forms, timings, tenants."""

import contextlib
import threading
import time
from pathlib import Path

import grpc
import numpy as np

from forebay.v1 import inference_pb2, model_service_pb2, tensor_pb2
from forebay_client import Client
from forebay_server.config.tree import (
    BatchingConfig,
    ExposureConfig,
    LimitsConfig,
    ModelConfig,
    TenantConfig,
    TlsConfig,
)
from tests.certificates import Authority
from tests.serving import array_of, details_of, request_of, row, synthetic
from tests.waiting import eventually

ONE = BatchingConfig(max_batch_size=1, check_rows=False)
LOCAL = "127.0.0.1:0"


def order_of(caller, groups, *, head=1.0):
    """Sends groups of (metadata, fields, count) behind a call that keeps the instance busy; the order of completion."""
    done = []
    futures = [caller.later("model", row(head))]
    time.sleep(0.1)
    for name, metadata, fields, count in groups:
        for _ in range(count):
            future = caller.later("model", row(1), metadata=metadata, **fields)
            future.add_done_callback(lambda _future, name=name: done.append(name))
            futures.append(future)
        time.sleep(0.05)
    for future in futures:
        future.result()
    deadline = time.monotonic() + 5
    while len(done) < len(futures) - 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    return done


def slow(**options):
    return synthetic(base_ms=12, batching=ONE, engine={"run": "worker"}, **options)


def test_a_flood_of_one_tenant_does_not_starve_another(serve, call):
    """On a trusted exposure a tenant with few requests is served by its share, not behind another's flood."""
    server = serve(slow(), server={"public": ExposureConfig(address=LOCAL, trusted=True)})
    tenants = [(("x-forebay-tenant", name),) for name in ("flood", "calm")]
    done = order_of(call(server), [("flood", tenants[0], {}, 40), ("calm", tenants[1], {}, 5)])
    last = max(index for index, name in enumerate(done) if name == "calm")
    assert last < 20, done


def test_weights_of_tenants(serve, call):
    """A tenant of weight 4 gets about four times the share of one of weight 1 while both have work."""
    server = serve(
        slow(),
        tenants={"heavy": TenantConfig(weight=4), "light": TenantConfig(weight=1)},
        server={"public": ExposureConfig(address=LOCAL, trusted=True)},
    )
    tenants = [(("x-forebay-tenant", name),) for name in ("light", "heavy")]
    done = order_of(call(server), [("light", tenants[0], {}, 40), ("heavy", tenants[1], {}, 24)])
    end = len(done) - 1 - done[::-1].index("heavy")
    begin = done.index("heavy")
    assert done[begin:end].count("light") <= 0.4 * done[begin:end].count("heavy"), done


def test_metadata_is_not_believed_elsewhere(serve, call):
    """On an exposure that is not trusted the tenant's name in metadata changes nothing."""
    server = serve(slow(), tenants={"vip": TenantConfig(weight=1000), "small": TenantConfig(max_queued_rows=1)})
    caller = call(server)
    small = (("x-forebay-tenant", "small"),)
    assert all(future.result() for future in [caller.later("model", row(1), metadata=small) for _ in range(5)])
    vip = (("x-forebay-tenant", "vip"),)
    done = order_of(caller, [("nobody", None, {}, 15), ("vip", vip, {"timeout": 25}, 3)])
    assert done.index("vip") >= 10, done


def test_a_certificate_names_the_tenant(serve, call, tmp_path):
    """With mTLS the tenant is who the certificate says, and metadata can't change it."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server")
    pair = [Path(path).read_bytes() for path in authority.issue("small")]
    credentials = grpc.ssl_channel_credentials(Path(authority.ca_path).read_bytes(), pair[1], pair[0])
    tls = TlsConfig(certificate=certificate, key=key, client_ca=authority.ca_path)
    server = serve(
        synthetic(base_ms=200, batching=ONE, engine={"run": "worker"}),
        tenants={"small": TenantConfig(max_queued_rows=1), "localhost": TenantConfig(max_queued_rows=1)},
        server={"public": ExposureConfig(address=LOCAL, tls=tls)},
    )
    caller = call(server, credentials=credentials)
    other = (("x-forebay-tenant", "other"),)
    futures = [caller.later("model", row(1), metadata=other)]
    time.sleep(0.1)
    futures.append(caller.later("model", row(1), metadata=other))
    time.sleep(0.05)
    error = caller.fails(request_of("model", row(1)), metadata=other)
    assert details_of(error)[1] == "TENANT_QUOTA"
    assert all(future.result() for future in futures)


def test_priorities(serve, call):
    """A later request of high priority overtakes most of those of low priority, and these are served all the same."""
    low, high = inference_pb2.PRIORITY_LOW, inference_pb2.PRIORITY_HIGH
    done = order_of(call(serve(slow())), [("low", None, {"priority": low}, 30), ("high", None, {"priority": high}, 8)])
    assert max(index for index, name in enumerate(done) if name == "high") < 25, done
    assert done.count("low") == 30


def test_only_equal_parameters_share_a_batch(serve, call):
    """Requests with equal parameters meet in a batch, others never; 1, 1.0 and true are not equal."""
    caller = call(serve(synthetic(batching=BatchingConfig(max_delay_ms=100, check_rows=False))))
    values = [{"int_value": 1}, {"double_value": 1.0}, {"bool_value": True}, {"string_value": "1"}]
    futures = [
        caller.later("model", row(1), parameters={"p": inference_pb2.Parameter(**value)}, report_timings=True)
        for value in values
        for _ in range(3)
    ]
    futures += [caller.later("model", row(1), report_timings=True) for _ in range(3)]
    assert [future.result().timings.batch_requests for future in futures] == [3] * 15


def test_versions_and_labels(serve, call):
    """A version is found by number and by label; without one `stable` counts, else the newest."""
    server = serve(
        synthetic("a", scale=1.0, model={"version": 1, "labels": ["stable", "old"]}),
        synthetic("a", scale=2.0, model={"version": 2, "labels": ["canary"]}),
        synthetic("b", scale=3.0, model={"version": 3}),
        synthetic("b", scale=10.0, model={"version": 10}),
    )
    caller = call(server)
    for model, version, number, factor in [
        ("a", "", 1, 1), ("a", "1", 1, 1), ("a", "stable", 1, 1), ("a", "old", 1, 1),
        ("a", "2", 2, 2), ("a", "canary", 2, 2), ("b", "", 10, 10), ("b", "3", 3, 3),
    ]:  # fmt: skip
        response = caller.predict(model, row(5), version=version)
        assert (response.model, response.version) == (model, number)
        assert array_of(response.outputs[0])[0, 0] == 5 * factor
    models = caller.models.ListModels(model_service_pb2.ListModelsRequest(), timeout=5).models
    assert [(model.name, model.default_version, [v.version for v in model.versions]) for model in models] == [
        ("a", 1, [2, 1]),
        ("b", 10, [10, 3]),
    ]


def test_readable_tensors(serve, call):
    """Numbers in, numbers out; the same values as in the raw form."""
    caller = call(serve(synthetic(scale=2.0)))
    tensor = tensor_pb2.Tensor(name="x", data_type=tensor_pb2.DATA_TYPE_FP32, shape=[1, 4], numbers=[1, 2.5, -3, 0])
    request = inference_pb2.PredictRequest(model="model", inputs=[tensor], readable=True, request_id="id-1")
    response = caller.inference.Predict(request, timeout=10)
    assert list(response.outputs[0].numbers) == [2, 5, -6, 0]
    assert not response.outputs[0].data
    assert response.request_id == "id-1"
    request.readable = False
    assert array_of(caller.inference.Predict(request, timeout=10).outputs[0]).tolist() == [[2, 5, -6, 0]]


def test_timings_add_up(serve, call):
    """The parts of the time are those of the whole, and only there if asked for."""
    caller = call(serve(synthetic(base_ms=30, batching=BatchingConfig(max_batch_size=4))))
    assert not caller.predict("model", row(1)).HasField("timings")
    begin = time.monotonic()
    timings = caller.predict("model", row(1, 3), report_timings=True).timings
    whole = time.monotonic() - begin
    parts = [timings.queue_nanos, timings.collate_nanos, timings.compute_nanos, timings.encode_nanos]
    assert all(part >= 0 for part in parts)
    assert 0.03 <= timings.compute_nanos / 1e9 <= sum(parts) / 1e9 <= whole
    assert (timings.batch_rows, timings.batch_requests, timings.padded_rows) == (3, 1, 0)
    assert timings.dispatch_reason == inference_pb2.DISPATCH_REASON_IDLE


def test_no_rows(serve, call):
    """A request without rows is answered with outputs without rows, in a call and in a stream."""
    caller = call(serve(synthetic()))
    response = caller.predict("model", row(1, 0), request_id="none")
    assert (response.request_id, list(response.outputs[0].shape), response.outputs[0].data) == ("none", [0, 4], b"")
    item = inference_pb2.StreamItem(id=3, request=request_of("model", row(1, 0)))
    (message,) = caller.inference.StreamPredict(iter([inference_pb2.StreamPredictRequest(items=[item])]), timeout=5)
    assert list(message.results[0].response.outputs[0].shape) == [0, 4]


def test_statistics_tell_what_happened(serve, call):
    """Counts of outcomes, batches and times are those of the calls that were made."""
    caller = call(serve(synthetic(poison=-1.0)))
    for value in range(5):
        caller.predict("model", row(value, 2))
    caller.fails(request_of("model", row(-1)))
    caller.fails(request_of("model", row(1, 1, 5)))
    (figures,) = caller.models.GetStatistics(
        model_service_pb2.GetStatisticsRequest(model="model"), timeout=5
    ).statistics
    assert {(count.code, count.reason): count.requests for count in figures.outcomes} == {
        ("OK", ""): 5,
        ("INTERNAL", "INTERNAL"): 1,
        ("INVALID_ARGUMENT", "INVALID_TENSOR"): 1,
    }
    assert {count.rows: count.batches for count in figures.batch_sizes}[2] == 5
    assert figures.request_time.count >= 5
    assert (figures.queued_rows, figures.held_bytes) == (0, 0)


def test_settings_beside_the_model(serve, call, onnx_models):
    """The TOML beside a model's file names it and sets its batches; the server's own settings are stronger."""
    path = onnx_models.make_linear_model()
    path.with_suffix(".toml").write_text(
        'name = "digits"\nversion = 7\nlabels = ["stable"]\nnan = "reject"\n'
        "[batching]\nmax_batch_size = 4\nmax_delay_ms = 3\n"
    )
    caller = call(serve(ModelConfig(path=str(path), batching=BatchingConfig(max_delay_ms=5))))
    sent = np.ones((9, 64), np.float32)
    response = caller.predict("digits", sent, version="stable", report_timings=True)
    assert response.version == 7
    assert np.array_equal(array_of(response.outputs[0]), onnx_models.linear(sent))
    assert caller.fails(request_of("digits", sent * np.nan)).code() is grpc.StatusCode.INVALID_ARGUMENT
    (version,) = caller.models.GetModel(model_service_pb2.GetModelRequest(model="digits"), timeout=5).model.versions
    assert version.batching.max_batch_size == 4
    assert version.batching.max_delay.ToMilliseconds() == 5


def test_exposures_offer_what_they_should(serve, call):
    """The probe has health and nothing else; the operator what the public has."""
    server = serve(
        synthetic(),
        server={"operator": ExposureConfig(address=LOCAL), "probe": ExposureConfig(address=LOCAL)},
    )
    assert call(server, "operator").predict("model", row(1)).outputs
    probe = call(server, "probe")
    assert probe.serving()
    assert probe.fails(request_of("model", row(1))).code() is grpc.StatusCode.UNIMPLEMENTED


def test_cancelled_requests_do_not_run(serve, call):
    """What is cancelled while it waits costs the engine nothing."""
    caller = call(serve(slow()))
    futures = [caller.later("model", row(1)) for _ in range(40)]
    time.sleep(0.05)
    for future in futures[1:]:
        future.cancel()
    futures[0].result()
    begin = time.monotonic()
    caller.predict("model", row(1))
    assert time.monotonic() - begin < 0.2
    assert threading.active_count() < 50


def test_unix_socket(serve, tmp_path):
    """A server on a Unix socket answers the client as any other."""
    address = f"unix:{tmp_path / 's'}"
    server = serve(synthetic(), server={"public": ExposureConfig(address=address)})
    with Client(server.addresses["public"]) as client:
        assert client.predict("model", row(3))["y"].tolist() == [[3] * 4]


def test_busy_streams_of_one_tenant_all_progress(serve, call):
    """Streams that always have items waiting share the engine, though all items of the first have earlier deadlines."""
    batching = BatchingConfig(max_batch_size=4, check_rows=False)
    model = synthetic(base_ms=10, batching=batching, engine={"run": "worker"})
    caller = call(serve(model, limits=LimitsConfig(stream_window=16)))
    results = [0, 0, 0]

    def endless():
        item = inference_pb2.StreamItem(request=request_of("model", row(1)))
        while True:
            item.id += 1
            yield inference_pb2.StreamPredictRequest(items=[item])

    streams, readers = [], []

    def read(number):
        with contextlib.suppress(grpc.FutureCancelledError, grpc.RpcError):
            for message in streams[number]:
                results[number] += sum(result.HasField("response") for result in message.results)

    for number in range(3):
        streams.append(caller.inference.StreamPredict(endless(), timeout=40 + 10 * number))
        readers.append(threading.Thread(target=read, args=(number,)))
        readers[-1].start()
        eventually(lambda number=number: sum(results) > 32 * number, "the stream is busy")
    before = list(results)
    time.sleep(1.5)
    gained = [after - earlier for after, earlier in zip(results, before, strict=True)]
    for stream, reader in zip(streams, readers, strict=True):
        stream.cancel()
        reader.join(10)
    assert min(gained) > 0.5 * sum(gained) / 3 > 0, gained
