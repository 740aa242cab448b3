"""What balancer.yaml does with calls on their way: deadlines, retries, ejection, limits, headers."""

import threading
import time
from collections import Counter

import grpc
import numpy as np
import pytest

from forebay.v1 import inference_pb2, job_service_pb2, model_service_pb2
from forebay_server.config.tree import BatchingConfig
from tests.envoy.conftest import clusters, virtual_host
from tests.serving import array_of, details_of, request_of, row, synthetic
from tests.waiting import eventually

Code = grpc.StatusCode
MODEL = model_service_pb2.GetStatisticsRequest(model="model")


def refuse(code, trailers=()):
    """An answer of the recorder: an error before any header, as the server sends it."""

    def answer(context):
        context.set_trailing_metadata(trailers)
        context.abort(code, "told to")

    return answer


def count(recorder):
    """Calls of Predict that have reached a recorder."""
    return sum(seen.method.endswith("/Predict") for seen in recorder.seen)


# --- deadlines and headers -------------------------------------------------------------------------------------------


def test_the_deadline_of_the_caller_arrives(recorder, balancer, call):
    """The server sees what the caller has left, whether it is shorter or longer than the default."""
    server = recorder()
    caller = call(balancer([server.address]))
    for timeout in (2.0, 500.0):
        caller.predict("model", row(1), timeout=timeout)
        assert abs(server.seen[-1].time_remaining - timeout) < 1.5  # it is sent in whole seconds


def test_a_caller_without_a_deadline_gets_one(recorder, balancer, call):
    """30 s for unary calls of every service; streams have none."""
    server = recorder()
    caller = call(balancer([server.address]))
    caller.predict("model", row(1), timeout=None)
    caller.jobs.CancelJob(job_service_pb2.CancelJobRequest(id="x"))
    for seen in server.seen:
        assert 28 < seen.time_remaining <= 30
    list(caller.jobs.WatchJob(job_service_pb2.WatchJobRequest(id="x")))
    assert server.seen[-1].method.endswith("WatchJob")
    assert server.seen[-1].time_remaining > 1e9


def test_the_server_refuses_by_the_deadline_it_was_told(replica, balancer, call):
    """A deadline that can't be met is refused beforehand, with the server's reason, through Envoy."""
    server = replica(synthetic(base_ms=1500, batching=BatchingConfig(max_batch_size=1)))
    caller = call(balancer([server.addresses["public"]]))
    error = caller.fails(request_of("model", row(1)), timeout=1.4)
    assert details_of(error)[:2] == (Code.DEADLINE_EXCEEDED, "DEADLINE_UNREACHABLE")


def test_a_server_that_does_not_answer(recorder, balancer):
    """Envoy itself ends the call of a REST caller when its time is over."""
    over = threading.Event()

    def hang(_context):
        over.wait(10)
        return b""

    envoy = balancer([recorder(hang).address])
    begin = time.monotonic()
    reply = envoy.http("POST", "/v1/models/model:predict", {}, {"grpc-timeout": "500m"})
    over.set()
    assert 0.4 < time.monotonic() - begin < 9
    assert (reply.status, reply.json["code"]) == (504, 4)


# --- retries ---------------------------------------------------------------------------------------------------------


def test_unavailable_is_tried_on_another_replica(recorder, balancer, call):
    """A caller does not see a replica that answers UNAVAILABLE; the second try never goes to the same one."""
    bad, good = recorder(refuse(Code.UNAVAILABLE)), recorder()
    caller = call(balancer([bad.address, good.address]))
    for _ in range(30):
        caller.predict("model", row(1))
    assert count(good) == 30
    assert 5 <= count(bad) <= 25


def test_overload_is_tried_on_another_replica(replica, balancer, call):
    """A full queue sends the call to the replica that has room, and the answer is right."""
    full = replica(synthetic(hang=9.0, batching=BatchingConfig(max_batch_size=1, max_queued_rows=1)))
    free = replica(synthetic())
    envoy = balancer([full.addresses["public"], free.addresses["public"]])
    caller = call(full)

    def queued():
        (statistics,) = caller.models.GetStatistics(MODEL, timeout=5).statistics
        return statistics.queued_rows

    caller.later("model", row(9))  # never ends
    eventually(lambda: queued() == 0, "it runs")
    caller.later("model", row(9))
    eventually(lambda: queued() == 1, "its queue is full")
    assert details_of(caller.fails(request_of("model", row(1))))[:2] == (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    caller = call(envoy)
    for number in range(20):
        assert np.array_equal(array_of(caller.predict("model", row(number)).outputs[0]), row(number))
    assert envoy.stat("cluster.forebay.upstream_rq_retry_success") > 0


def test_what_is_not_tried_again(recorder, balancer, call):
    """Errors of the caller's own, messages that are too large, and jobs, which might be stored twice."""
    server = recorder(refuse(Code.INVALID_ARGUMENT))
    other = recorder(refuse(Code.RESOURCE_EXHAUSTED))  # without a time to come back, as for a message that is too large
    for each, code in ((server, Code.INVALID_ARGUMENT), (other, Code.RESOURCE_EXHAUSTED)):
        caller = call(balancer([each.address]))
        assert caller.fails(request_of("model", row(1))).code() is code
        assert count(each) == 1
    down = recorder(refuse(Code.UNAVAILABLE, [("grpc-retry-pushback-ms", "1")]))
    caller = call(balancer([down.address]))
    assert caller.fails(request_of("model", row(1))).code() is Code.UNAVAILABLE
    assert count(down) == 3
    with pytest.raises(grpc.RpcError):
        caller.jobs.Submit(job_service_pb2.SubmitRequest(), timeout=5)
    assert sum(seen.method.endswith("/Submit") for seen in down.seen) == 1


def test_large_messages_are_tried_again_too(recorder, balancer, call):
    """What is kept to be sent again holds a message of 12 MiB."""
    bad, good = recorder(refuse(Code.UNAVAILABLE)), recorder()
    caller = call(balancer([bad.address, good.address]))
    body = np.ones((1, 3 << 20), np.float32)
    while not count(bad):
        caller.predict("model", body)
    assert count(good) > 0


# --- ejection --------------------------------------------------------------------------------------------------------


def quick_ejection(config, routes):
    """Times that a test can wait for, no retries to hide the errors, and no health checks after the first."""
    for cluster in (each for name, each in clusters(config).items() if name != "collector"):
        cluster["outlier_detection"] |= {"base_ejection_time": "1s", "interval": "0.2s"}
        cluster["health_checks"][0] |= {"interval": "60s", "no_traffic_interval": "60s"}
    for route in virtual_host(routes)["routes"]:
        route.get("route", {}).pop("retry_policy", None)


def test_a_replica_that_is_gone_is_left_alone_for_a_while(recorder, balancer, call):
    """After five failed connections in a row a replica gets nothing; when it is back, it gets work again."""
    gone, good = recorder(), recorder()
    envoy = balancer([gone.address, good.address], edit=quick_ejection)
    caller = call(envoy)
    gauge = "cluster.forebay.outlier_detection.ejections_active"

    def send():
        future = caller.later("model", row(1))
        assert future.code() in {Code.OK, Code.UNAVAILABLE}
        return future.code() is Code.OK

    assert all(send() for _ in range(20))
    gone.close()
    failed = 0
    while not envoy.stat(gauge):
        failed += not send()
    assert 5 <= failed <= 10
    assert all(send() for _ in range(20))
    back = recorder(address=gone.address)
    eventually(lambda: (send(), count(back))[1] > 0, "asked again")


@pytest.mark.parametrize("code", [Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.INTERNAL, Code.UNAVAILABLE])
def test_statuses_do_not_eject(recorder, balancer, call, code):
    """Impatient callers, overload, bad inputs and one failed model of many leave all replicas in."""
    failing, good = recorder(refuse(code)), recorder()
    envoy = balancer([failing.address, good.address], edit=quick_ejection)
    caller = call(envoy)
    codes = Counter(caller.later("model", row(1)).code() for _ in range(60))
    assert set(codes) == {Code.OK, code}
    assert codes[code] >= 10
    assert envoy.stats("cluster.forebay.outlier_detection.ejections_(active|enforced_total)") == {
        "cluster.forebay.outlier_detection.ejections_active": 0,
        "cluster.forebay.outlier_detection.ejections_enforced_total": 0,
    }


# --- limits ----------------------------------------------------------------------------------------------------------


def test_the_rate_limit(replica, balancer, call):
    """Calls beyond the bucket are RESOURCE_EXHAUSTED with a time to come back; 429 over REST; health is not limited."""

    def five(_config, routes):
        limit = virtual_host(routes)["typed_per_filter_config"]["envoy.filters.http.local_ratelimit"]
        limit["token_bucket"] = {"max_tokens": 5, "tokens_per_fill": 5, "fill_interval": "60s"}

    envoy = balancer([replica(synthetic()).addresses["public"]], edit=five)
    caller = call(envoy)
    for _ in range(5):
        assert caller.predict("model", row(1)).outputs
    error = caller.fails(request_of("model", row(1)))
    assert error.code() is Code.RESOURCE_EXHAUSTED
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "100"
    reply = envoy.http("POST", "/v1/models/model:predict", {})
    assert (reply.status, reply.json["code"], reply.headers["grpc-retry-pushback-ms"]) == (429, 8, "100")
    assert all(caller.serving() for _ in range(10))
    assert envoy.http("GET", "/v1/health").json == {"status": "SERVING"}


def test_large_messages(replica, balancer, call):
    """15 MiB pass both ways; more than 16 MiB is refused by the server, in its own words and only once."""
    envoy = balancer([replica(synthetic(shape="?")).addresses["public"]])
    caller = call(envoy)
    body = np.arange(15 << 18, dtype=np.float32).reshape(1, -1)
    assert np.array_equal(array_of(caller.predict("model", body).outputs[0]), body)
    error = caller.fails(request_of("model", np.ones((1, 17 << 18), np.float32)))
    assert details_of(error)[:2] == (Code.RESOURCE_EXHAUSTED, "BYTES_LIMIT")
    assert envoy.stat("cluster.forebay.upstream_rq_retry") == 0
    assert caller.inference.Predict(
        inference_pb2.PredictRequest(model="model", inputs=request_of("model", row(2)).inputs)
    )
