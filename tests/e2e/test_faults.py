"""A fault stays where it is: poisonous rows, engines that hang or die, and what health says of them."""

import threading
import time

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from forebay.v1 import inference_pb2
from forebay_client import Client, Health
from forebay_server.config.tree import BatchingConfig
from tests.serving import array_of, details_of, request_of, row, synthetic
from tests.waiting import eventually

Status = health_pb2.HealthCheckResponse
GATHER = BatchingConfig(max_batch_size=64, max_delay_ms=30, check_rows=False)


@pytest.mark.parametrize("culprits", [1, 2, 3, 4])
@pytest.mark.parametrize("engine", ["inline", "worker"])
def test_poison_hurts_nobody_else(serve, call, culprits, engine):
    """Of 32 requests that share a batch exactly the poisonous ones fail, however many there are."""
    caller = call(serve(synthetic(poison=-1.0, batching=GATHER, engine={"run": engine})))
    guilty = {index * 7 % 32 for index in range(culprits)}
    items = [
        inference_pb2.StreamItem(id=index, request=request_of("model", row(-1 if index in guilty else index)))
        for index in range(32)
    ]
    message = inference_pb2.StreamPredictRequest(items=items)
    results = [r for m in caller.inference.StreamPredict(iter([message]), timeout=20) for r in m.results]
    assert len(results) == 32
    for result in results:
        if result.id in guilty:
            assert result.error.code == grpc.StatusCode.INTERNAL.value[0]
        else:
            assert np.array_equal(array_of(result.response.outputs[0]), row(result.id))


def test_rejected_rows_hurt_nobody_else(serve, call):
    """The requests whose rows the engine names are refused with its text, the others answered."""
    caller = call(serve(synthetic(reject=-1.0, batching=GATHER)))
    futures = [caller.later("model", row(-1 if index % 8 == 3 else index)) for index in range(32)]
    for index, future in enumerate(futures):
        if index % 8 == 3:
            code, reason, _ = details_of(future.exception())
            assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INPUT_REJECTED")
        else:
            assert np.array_equal(array_of(future.result().outputs[0]), row(index))


def test_bad_items_hurt_no_other_of_their_message(serve, call):
    """Of messages of 32 items, which are taken up together, those that the engine can't run fail alone."""
    caller = call(serve(synthetic(poison=-1.0, batching=BatchingConfig(max_batch_size=24))))

    def messages():
        for begin in range(0, 640, 32):
            items = [
                inference_pb2.StreamItem(id=1000 + n, request=request_of("model", row(-1.0 if n % 150 == 77 else n)))
                for n in range(begin, begin + 32)
            ]
            yield inference_pb2.StreamPredictRequest(items=items)

    results = {
        result.id - 1000: result
        for message in caller.inference.StreamPredict(messages(), timeout=30)
        for result in message.results
    }
    assert sorted(results) == list(range(640))
    for n, result in results.items():
        if n % 150 == 77:
            assert result.error.code == grpc.StatusCode.INTERNAL.value[0]
        else:
            assert np.array_equal(array_of(result.response.outputs[0]), row(n))


def test_chance_failures_are_told_from_poison(serve, call, together):
    """When batches fail by chance most requests still succeed, because halves are tried again."""
    caller = call(serve(synthetic(failure_rate=0.1, seed=3, batching=BatchingConfig(max_batch_size=16))))

    def one(index):
        try:
            return np.array_equal(array_of(caller.predict("model", row(index)).outputs[0]), row(index))
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.INTERNAL  # noqa: PT017  # one of many calls
            return None

    outcomes = together(one, range(40))
    assert False not in outcomes
    assert outcomes.count(True) > 20


def watch(caller, service):
    """Collects the statuses of a health watch in a thread."""
    statuses = []
    stream = caller.health.Watch(health_pb2.HealthCheckRequest(service=service))

    def follow():
        try:
            for message in stream:
                statuses.append(message.status)  # noqa: PERF401  # others read it meanwhile
        except grpc.RpcError:
            return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    return statuses, stream


def test_a_hang_turns_health_and_recovers(serve, call):
    """A hung engine turns the health of its model, not of the server; others are served; health returns with it."""
    server = serve(
        synthetic(hang=9.0, engine={"max_execution_s": 0.3}, batching=BatchingConfig(max_batch_size=4)),
        synthetic("other"),
    )
    caller = call(server)
    statuses, stream = watch(caller, "model/model")
    eventually(lambda: statuses == [Status.SERVING], "the first status")
    with Client(server.addresses["public"]) as client:
        assert client.health("model/model") is Health.SERVING
        hung = caller.later("model", row(9))
        eventually(lambda: statuses == [Status.SERVING, Status.NOT_SERVING], "health turns")
        assert client.health("model/model") is Health.NOT_SERVING
        assert client.health("model/other") is Health.SERVING
        assert client.health("") is Health.SERVING
        assert client.health("model/nobody") is Health.SERVICE_UNKNOWN
        assert details_of(hung.exception())[1] == "ENGINE_UNAVAILABLE"
        assert caller.predict("other", row(1)).outputs
        (loaded,) = [each for each in server._hosting._loaded if each.name == "model"]
        loaded.engine.release()
        eventually(lambda: statuses == [Status.SERVING, Status.NOT_SERVING, Status.SERVING], "health recovers")
        assert client.health("model/model") is Health.SERVING
        assert np.array_equal(array_of(caller.predict("model", row(5)).outputs[0]), row(5))
    stream.cancel()


def test_one_of_two_instances_hangs(serve, call):
    """While one instance hangs the other serves, and health stays."""
    caller = call(serve(synthetic(hang=9.0, engine={"instances": 2, "run": "worker", "max_execution_s": 0.2})))
    hung = caller.later("model", row(9))
    assert details_of(hung.exception())[1] == "ENGINE_UNAVAILABLE"
    assert all(caller.predict("model", row(index)).outputs for index in range(5))
    assert caller.serving("model/model")


def test_two_versions_have_one_health(serve, call):
    """A model is unhealthy while the engine of one of its versions is, and that of another does not hide it."""
    stuck = {"max_execution_s": 0.2}
    server = serve(
        synthetic(hang=9.0, engine=stuck, model={"version": 1}), synthetic(hang=9.0, engine=stuck, model={"version": 2})
    )
    caller = call(server)
    for version in ("1", "2"):
        assert caller.later("model", row(9), version=version).exception().code() is grpc.StatusCode.UNAVAILABLE
    assert not caller.serving("model/model")
    first, second = server._hosting._loaded
    first.engine.release()
    eventually(
        lambda: caller.predict("model", row(1), version="1").outputs if _serves(caller, "1") else False, "v1 is back"
    )
    assert not caller.serving("model/model")
    second.engine.release()
    eventually(lambda: caller.serving("model/model"), "both are back")


def _serves(caller, version):
    try:
        return caller.predict("model", row(1), version=version)
    except grpc.RpcError:
        return None


def test_a_dead_engine_shows_in_health(serve, call):
    """A model whose engine died is unhealthy for good, the server is not."""
    server = serve(synthetic(dies=9.0), synthetic("other"))
    caller = call(server)
    assert caller.fails(request_of("model", row(9))).code() is grpc.StatusCode.UNAVAILABLE
    eventually(lambda: not caller.serving("model/model"), "health turns")
    assert caller.serving("")
    assert caller.serving("model/other")
    assert caller.serving("forebay.v1.InferenceService")


def test_inference_is_unhealthy_without_a_model(serve, call):
    """The inference service does not serve while none of its models does."""
    caller = call(serve(synthetic(dies=9.0)))
    caller.fails(request_of("model", row(9)))
    eventually(lambda: not caller.serving("forebay.v1.InferenceService"), "health turns")
    assert caller.serving("forebay.v1.ModelService")


def test_health_from_loading_to_draining(serve, call, tmp_path):
    """Check, List and Watch agree on every name, from loading to ready to draining."""
    (tmp_path / "e2e_health_model.py").write_text(
        "import os, time\nfrom forebay_server.engines.python import model\n"
        "@model(inputs={'x': ('FP32', (-1, 4))}, outputs={'y': ('FP32', (-1, 4))})\n"
        "class Slow:\n"
        "    def load(self):\n"
        f"        while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\n"
        "    def infer(self, x):\n        time.sleep(0.3)\n        return x\n"
    )
    model = synthetic()
    slow = type(model)(
        name="slow", path=f"python:{tmp_path / 'e2e_health_model.py'}:Slow", batching=BatchingConfig(max_batch_size=1)
    )
    server = serve(model, slow, ready=False)
    caller = call(server)
    watched = [watch(caller, name)[0] for name in ("", "model/slow", "model/never")]
    eventually(lambda: caller.serving("model/model"), "the first model is ready")
    assert not caller.serving("")
    assert not caller.serving("model/slow")

    def listed():
        return {name: one.status for name, one in caller.health.List(health_pb2.HealthListRequest()).statuses.items()}

    services = {"forebay.v1.InferenceService", "forebay.v1.ModelService", "grpc.health.v1.Health"}
    assert {"", "model/model", "model/slow"} | services <= set(listed())
    assert listed()["model/slow"] == Status.NOT_SERVING
    (tmp_path / "go").touch()
    assert server.wait_ready(20)
    assert set(listed().values()) == {Status.SERVING}
    with pytest.raises(grpc.RpcError) as caught:
        caller.health.Check(health_pb2.HealthCheckRequest(service="model/never"), timeout=5)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    caller.later("slow", row(1))
    time.sleep(0.05)
    drain = threading.Thread(target=server.drain)
    drain.start()
    eventually(lambda: watched[0][-1:] == [Status.NOT_SERVING], "draining shows")
    drain.join(20)
    changes = [Status.NOT_SERVING, Status.SERVING, Status.NOT_SERVING]
    assert watched == [changes, changes, [Status.SERVICE_UNKNOWN]]
