"""sidecar.yaml: one server behind a Unix socket."""

import queue

import grpc
import numpy as np

from forebay.v1 import inference_pb2, job_service_pb2, model_service_pb2
from forebay_server.config.tree import JobsConfig
from tests.serving import array_of, details_of, request_of, row, synthetic
from tests.waiting import eventually

Code = grpc.StatusCode


def test_calls_and_streams_over_a_unix_socket(replica, sidecar, call, tmp_path):
    """Unary calls, a stream whose answers come one by one, health, and an error with its details, as without Envoy."""
    server = replica(synthetic(scale=2.0), address=f"unix:{tmp_path / 's'}")
    caller = call(sidecar(server.addresses["public"]))
    assert caller.serving("model/model")
    assert np.array_equal(array_of(caller.predict("model", row(3)).outputs[0]), row(6))
    code, reason, _ = details_of(caller.fails(request_of("nobody", row(1))))
    assert (code, reason) == (Code.NOT_FOUND, "MODEL_NOT_FOUND")

    messages = queue.SimpleQueue()
    stream = caller.inference.StreamPredict(iter(messages.get, None), timeout=20)
    for ident in range(5):
        item = inference_pb2.StreamItem(id=ident, request=request_of("model", row(ident)))
        messages.put(inference_pb2.StreamPredictRequest(items=[item]))
        (result,) = next(stream).results  # the next item is sent when this one is answered
        assert result.id == ident
        assert np.array_equal(array_of(result.response.outputs[0]), row(2 * ident))
    messages.put(None)
    assert list(stream) == []


def test_a_server_that_goes_and_comes_back(replica, sidecar, call, tmp_path):
    """Without a server calls are UNAVAILABLE at once; when it is back, so are the answers."""
    address = f"unix:{tmp_path / 's'}"
    caller = call(sidecar(address))
    assert caller.fails(request_of("model", row(1))).code() is Code.UNAVAILABLE
    first = replica(synthetic(), address=address)
    assert caller.predict("model", row(1)).outputs
    first.close()
    assert caller.fails(request_of("model", row(1))).code() is Code.UNAVAILABLE
    replica(synthetic(), address=address)
    assert caller.predict("model", row(1)).outputs


def test_a_cancelled_call_leaves_the_queue(replica, sidecar, call, tmp_path):
    """A caller who gives up frees its place in the server behind Envoy."""
    server = replica(synthetic(hang=9.0), address=f"unix:{tmp_path / 's'}")
    caller = call(sidecar(server.addresses["public"]))

    def cancelled():
        statistics = caller.models.GetStatistics(
            model_service_pb2.GetStatisticsRequest(model="model"), timeout=5
        ).statistics[0]
        return {count.code: count.requests for count in statistics.outcomes}.get("CANCELLED", 0)

    caller.later("model", row(9))
    waiting = caller.later("model", row(2))
    assert cancelled() == 0
    waiting.cancel()
    eventually(lambda: cancelled() == 1, "cancelled in the server", 2)


def test_nobody_says_who_they_are(replica, sidecar, call):
    """A forged tenant is dropped before a server that believes it; without Envoy it would be believed (the control)."""
    server = replica(synthetic(), trusted=True, jobs=JobsConfig(store="memory:"))
    forged = (("x-forebay-tenant", "somebody"),)
    through, direct = call(sidecar(server.addresses["public"])), call(server)
    submitted = job_service_pb2.SubmitRequest(request=request_of("model", row(1)))

    def jobs(caller, metadata):
        return len(caller.jobs.ListJobs(job_service_pb2.ListJobsRequest(), timeout=5, metadata=metadata).jobs)

    through.jobs.Submit(submitted, timeout=5, metadata=forged)
    assert (jobs(direct, ()), jobs(direct, forged)) == (1, 0)
    direct.jobs.Submit(submitted, timeout=5, metadata=forged)
    assert (jobs(direct, ()), jobs(direct, forged), jobs(through, forged)) == (1, 1, 1)
