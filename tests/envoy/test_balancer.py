"""balancer.yaml: several replicas, who gets what, and who gets nothing any more."""

import signal
import threading
import time
from collections import Counter

import grpc
import numpy as np
import pytest

from forebay.v1 import inference_pb2, job_service_pb2
from tests.serving import array_of, request_of, row, synthetic
from tests.waiting import eventually

Code = grpc.StatusCode


def answered_by(caller, calls, **arguments):
    """How many calls each replica answered; replica N multiplies by N."""
    answers = (caller.predict("model", row(1), **arguments) for _ in range(calls))
    return Counter(int(array_of(answer.outputs[0])[0, 0]) for answer in answers)


def test_one_connection_is_balanced_call_by_call(replica, balancer, call):
    """Calls and streams of a single connection go to all replicas."""
    servers = [replica(synthetic(scale=float(n))) for n in (1, 2, 3)]
    envoy = balancer([server.addresses["public"] for server in servers])
    caller = call(envoy)
    counts = answered_by(caller, 150)
    assert sum(counts.values()) == 150
    assert min(counts[n] for n in (1, 2, 3)) >= 20

    def stream(number):
        item = inference_pb2.StreamItem(id=number, request=request_of("model", row(1)))
        messages = iter([inference_pb2.StreamPredictRequest(items=[item])])
        (message,) = caller.inference.StreamPredict(messages, timeout=10)
        return int(array_of(message.results[0].response.outputs[0])[0, 0])

    assert {stream(number) for number in range(40)} == {1, 2, 3}
    assert envoy.stat("http.callers.downstream_cx_http2_total") == 1


def test_a_replica_whose_models_fail_gets_no_more_calls(replica, balancer, call):
    """Health is asked per service: without a model that serves, a replica takes no inference, but jobs still."""
    healthy, failing = replica(synthetic(scale=1.0)), replica(synthetic(scale=2.0, dies=666.0))
    envoy = balancer([healthy.addresses["public"], failing.addresses["public"]])
    caller = call(envoy)
    assert set(answered_by(caller, 40)) == {1, 2}
    assert call(failing).fails(request_of("model", row(666))).code() is Code.UNAVAILABLE
    eventually(lambda: not call(failing).serving("forebay.v1.InferenceService"), "it says so")
    envoy.healthy("forebay", 1)
    assert set(answered_by(caller, 40)) == {1}


def test_without_a_healthy_replica_calls_fail_at_once(process, balancer, call):
    """No call is tried on replicas that are known not to serve."""
    server = process("synthetic:,shape=4").ready()
    envoy = balancer([server.addresses["public"]])
    caller = call(envoy)
    assert caller.predict("synthetic", row(1)).outputs
    assert envoy.http("GET", "/healthz").status == 200
    server.kill()
    envoy.healthy("forebay", 0)
    begin = time.monotonic()
    error = caller.fails(request_of("synthetic", row(1)))
    assert (error.code(), error.details()) == (Code.UNAVAILABLE, "no healthy upstream")
    assert time.monotonic() - begin < 5  # of the 20 that the caller has
    assert envoy.http("GET", "/healthz").status == 503


class Load:
    """Unary callers, streams and submitted jobs that never stop, on a few connections."""

    def __init__(self, callers, model):
        self.callers, self.model = callers, model
        self.answered, self.errors = Counter(), []
        self._over = threading.Event()
        kinds = [self._unary] * 10 + [self._stream] * 4 + [self._submit] * 2
        self._threads = [threading.Thread(target=self._repeat, args=(kind, n)) for n, kind in enumerate(kinds)]
        for thread in self._threads:
            thread.start()

    def _repeat(self, kind, number):
        caller = self.callers[number % len(self.callers)]
        while not self._over.is_set():
            try:
                kind(caller, number)
            except Exception as error:  # noqa: BLE001  # judged by the test
                self.errors.append(error)
            time.sleep(0.003)

    def _unary(self, caller, number):
        answer = caller.predict(self.model, row(number))
        assert np.array_equal(array_of(answer.outputs[0]), row(number))
        self.answered["unary"] += 1

    def _stream(self, caller, _number):
        """Ten items, a tenth of a second in all."""

        def messages():
            for ident in range(10):
                item = inference_pb2.StreamItem(id=ident, request=request_of(self.model, row(ident)))
                yield inference_pb2.StreamPredictRequest(items=[item])
                time.sleep(0.01)

        for message in caller.inference.StreamPredict(messages(), timeout=20):
            for result in message.results:
                assert result.HasField("response"), result
                self.answered["items"] += 1

    def _submit(self, caller, number):
        request = job_service_pb2.SubmitRequest(request=request_of(self.model, row(number)))
        assert caller.jobs.Submit(request, timeout=20).job.id
        self.answered["jobs"] += 1

    def end(self):
        """Stops, and gives what went wrong."""
        self._over.set()
        for thread in self._threads:
            thread.join(30)
        return self.errors


class Fleet:
    """Replicas in processes of their own behind a balancer, under load."""

    def __init__(self, process, balancer, call, *, replicas, delay):
        self._process = process
        self._arguments = [
            "synthetic:base_ms=3",
            "--set",
            f"server.drain_delay_s={delay}",
            "--set",
            "jobs.store=memory:",
        ]
        self.replicas = [process(*self._arguments) for _ in range(replicas)]
        self.addresses = [replica.ready().addresses["public"] for replica in self.replicas]
        self.envoy = balancer(self.addresses)
        self.load = Load([call(self.envoy) for _ in range(2)], "synthetic")
        eventually(lambda: all(self.load.answered[kind] > 30 for kind in ("unary", "items", "jobs")), "load")

    def stop(self, number):
        """Ends a replica as a platform does."""
        self.replicas[number].signal(signal.SIGTERM)
        assert self.replicas[number].wait() == 0, self.replicas[number].stderr

    def replace(self, number):
        """Ends a replica, and starts another in its place."""
        self.stop(number)
        self.replicas[number] = self._process(*self._arguments, "--listen", self.addresses[number]).ready()
        self.envoy.healthy("forebay", len(self.replicas))
        self.envoy.healthy("forebay-jobs", len(self.replicas))


@pytest.mark.parametrize("rounds", [1, pytest.param(50, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
def test_replacing_all_replicas_fails_no_call(process, balancer, call, rounds):
    """A rolling restart: each replica says NOT_SERVING first, is left alone, and ends; no call, item or job is lost."""
    fleet = Fleet(process, balancer, call, replicas=3, delay=2.5)
    try:
        for _ in range(rounds):
            for number in range(3):
                fleet.replace(number)
    finally:
        errors = fleet.load.end()
    assert errors == []
    assert min(fleet.load.answered.values()) > 100


def test_calls_are_lost_if_replicas_are_not_left_time(process, balancer, call):
    """The control: a replica that refuses work at once loses what Envoy still sends there, if not each time."""
    lost = []
    for _ in range(5):
        fleet = Fleet(process, balancer, call, replicas=2, delay=0)
        fleet.stop(0)
        lost += fleet.load.end()
        if lost:
            break
    assert lost


def test_a_killed_replica_costs_no_call(process, balancer, call, onnx_models):
    """kill -9 under load: Predict is sent again to another replica, bodies of 1 MiB included."""
    path = str(onnx_models.make_linear_model(1 << 18, 1))
    replicas = [process(path, "--max-batch-size", "4") for _ in range(2)]
    caller = call(balancer([replica.ready().addresses["public"] for replica in replicas]))
    body = np.ones((1, 1 << 18), np.float32)
    expected = onnx_models.linear(body, 1)
    errors, done = [], []

    def send():
        while len(done) < 300 and not errors:
            try:
                assert np.allclose(array_of(caller.predict("linear", body).outputs[0]), expected)
                done.append(1)
            except Exception as error:  # noqa: BLE001  # judged below
                errors.append(error)

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(done) > 50, "load", 60)
    replicas[0].kill()
    for thread in threads:
        thread.join(30)
    assert errors == []


def test_draining_replicas_get_nothing_even_if_they_are_many(process, balancer, call):
    """Two of three replicas drain: the third gets everything. Envoy's default would spread calls to all again."""
    delay = ["--set", "server.drain_delay_s=20"]
    replicas = [process(f"synthetic:scale={n}", "--name", "model", *delay) for n in (1, 2, 3)]
    envoy = balancer([replica.ready().addresses["public"] for replica in replicas])
    for replica in replicas[:2]:
        replica.signal(signal.SIGTERM)
    envoy.healthy("forebay", 1)
    assert set(answered_by(call(envoy), 60)) == {3}
