"""routes.yaml, changed while calls run: canaries, callers who ask for the next version, copies of calls."""

import threading
from collections import Counter

import grpc
import numpy as np

from forebay.v1 import model_service_pb2
from tests.envoy.conftest import route_of
from tests.serving import array_of, request_of, row, synthetic
from tests.waiting import eventually

PREDICT = "/forebay.v1.InferenceService/Predict"
STREAM = "/forebay.v1.InferenceService/StreamPredict"
CANARY = (("x-forebay-canary", "1"),)


def versions(caller, calls, metadata=None):
    """How many calls went to which version; the next one doubles its input."""
    answers = (caller.predict("model", row(1), metadata=metadata) for _ in range(calls))
    return Counter({1: "stable", 2: "canary"}[int(array_of(answer.outputs[0])[0, 0])] for answer in answers)


def weigh(routes, stable, canary):
    """Writes weights into a tree of routes."""
    for path in (PREDICT, STREAM):
        weights = route_of(routes, path)["route"]["weighted_clusters"]["clusters"]
        weights[0]["weight"], weights[1]["weight"] = stable, canary


def test_a_canary_grows_while_calls_run(replica, balancer, call):
    """All to stable, then a tenth, then all to the next version: on one connection and without an error."""
    stable, canary = replica(synthetic()), replica(synthetic(scale=2.0))
    envoy = balancer([stable.addresses["public"]], [canary.addresses["public"]])
    caller = call(envoy)
    assert versions(caller, 50) == {"stable": 50}
    assert versions(caller, 10, CANARY) == {"canary": 10}

    errors, over = [], threading.Event()

    def load():
        while not over.is_set():
            try:
                caller.predict("model", row(1))
            except grpc.RpcError as error:
                errors.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        weigh(envoy.routes, 90, 10)
        envoy.write("routes.yaml", envoy.routes)
        eventually(lambda: versions(caller, 20)["canary"], "the canary gets calls")
        counts = versions(caller, 400)
        assert 15 <= counts["canary"] <= 80
        weigh(envoy.routes, 0, 100)
        envoy.write("routes.yaml", envoy.routes)
        eventually(lambda: versions(caller, 20) == {"canary": 20}, "all go to the next version")
        assert versions(caller, 50) == {"canary": 50}
    finally:
        over.set()
        thread.join(10)
    assert errors == []
    assert envoy.stat("http.callers.downstream_cx_http2_total") == 1


def test_a_broken_file_changes_nothing(replica, balancer, call):
    """The last good routes hold, Envoy says so in a counter, and a mended file is taken."""
    stable, canary = replica(synthetic()), replica(synthetic(scale=2.0))
    envoy = balancer([stable.addresses["public"]], [canary.addresses["public"]])
    caller = call(envoy)
    rejected = "http.callers.rds.callers.update_rejected"
    assert envoy.stat(rejected) == 0
    weigh(envoy.routes, 0, 0)  # weights that come to nothing
    envoy.write("routes.yaml", envoy.routes)
    eventually(lambda: envoy.stat(rejected) + envoy.stat("http.callers.rds.callers.update_failure") > 0, "rejected")
    assert versions(caller, 20) == {"stable": 20}
    weigh(envoy.routes, 0, 1)
    envoy.write("routes.yaml", envoy.routes)
    eventually(lambda: versions(caller, 20) == {"canary": 20}, "the mended file")


def test_copies_of_calls_go_to_the_next_version(replica, balancer, call):
    """Mirrored calls reach it with their inputs, and callers see nothing of what comes of them."""
    stable = replica(synthetic())
    canary = replica(synthetic(reject=7.0))

    def mirror(_config, routes):
        policy = route_of(routes, PREDICT)["route"]["request_mirror_policies"][0]
        policy["runtime_fraction"]["default_value"]["numerator"] = 100

    envoy = balancer([stable.addresses["public"]], [canary.addresses["public"]], edit=mirror)
    caller = call(envoy)
    for number in range(20):
        array = row(number)
        assert np.array_equal(array_of(caller.predict("model", array).outputs[0]), array)

    def outcomes():
        request = model_service_pb2.GetStatisticsRequest(model="model")
        (statistics,) = call(canary).models.GetStatistics(request, timeout=5).statistics
        return {outcome.code: outcome.requests for outcome in statistics.outcomes}

    eventually(lambda: outcomes() == {"OK": 19, "INVALID_ARGUMENT": 1}, "the copies")
    assert caller.fails(request_of("nobody", row(1))).code() is grpc.StatusCode.NOT_FOUND
