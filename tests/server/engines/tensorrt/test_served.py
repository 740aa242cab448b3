"""A real server with real calls over make-believe TensorRT: batches of many callers, and bad plans beside good ones."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import structlog

from forebay_client import Client, ForebayError
from forebay_server.app.server import Server
from forebay_server.config.tree import (
    BatchingConfig,
    BucketsConfig,
    Config,
    EngineConfig,
    ExposureConfig,
    ModelConfig,
    ServerConfig,
)
from forebay_server.engines.base import ModelLoadError
from forebay_server.models.loader import load
from tests.server.engines.gpu.fake import FakeDevice, RealTime

CALLERS = 32


@pytest.fixture
def device():
    """The GPU; its work takes real time."""
    made = FakeDevice(clock=RealTime())
    yield made
    assert made.hazards == []
    assert made.lost or (made.open, made.used) == (0, 0)


@pytest.fixture
def serve(tmp_path):
    """Starts a server and gives a client."""
    started = []

    def start(*models):
        config = Config(
            server=ServerConfig(
                wire="grpc.aio",
                public=ExposureConfig(address="127.0.0.1:0"),
                cache_dir=str(tmp_path / "cache"),
                watchdog_s=60.0,
            ),
            models=list(models),
        )
        server = Server(config)
        started.append(server)
        server.start()
        assert server.wait_ready(60), server.start_failure
        client = Client(server.addresses["public"])
        started.append(client)
        return client

    yield start
    for each in reversed(started):
        each.close()


def test_many_callers_share_batches(machine, serve, onnx_models):
    """Requests of two lengths, put together, padded to buckets and to captured sizes: each gets its own rows."""
    machine.seconds = 2e-3
    path = onnx_models.make_sequence_model()
    client = serve(
        ModelConfig(
            path=str(path),
            name="plus",
            engine=EngineConfig(name="tensorrt", instances=2),
            batching=BatchingConfig(max_batch_size=8),
            buckets=BucketsConfig(shapes={"x": [[3], [6]]}, outputs={"y": [0]}),
        )
    )
    x = [np.full((1 + number % 3, 2 + number % 5), number, np.float32) for number in range(CALLERS * 4)]
    with ThreadPoolExecutor(CALLERS) as pool:
        answers = list(pool.map(lambda one: client.predict("plus", one).array, x))
    for one, y in zip(x, answers, strict=True):
        assert np.array_equal(y, one + 1)
    (statistics,) = client.statistics("plus")
    assert sum(statistics.batch_sizes.values()) < len(x)
    assert machine.builds == 1
    assert machine.device.kinds("graph") != []


def test_a_bad_plan_leaves_the_others_alone(machine, serve, plan, onnx_models, device, tmp_path):
    """A model that can't be loaded is a sentence; what is served, on the GPU and elsewhere, goes on."""
    good = plan()
    client = serve(
        ModelConfig(path=str(good), name="gpu"),
        ModelConfig(path=str(onnx_models.make_linear_model()), name="cpu", engine=EngineConfig(threads=1)),
    )
    x = np.ones((2, 64), np.float32)
    wanted = onnx_models.linear(x)
    bad = tmp_path / "bad.plan"
    bad.write_bytes(good.read_bytes()[:-10])
    bad.with_name("bad.plan.json").write_text(good.with_name("model.plan.json").read_text())
    for attempt in range(3):
        with pytest.raises(ModelLoadError, match="it is cut off"):
            load(ModelConfig(path=str(bad), version=2 + attempt, name="gpu"))
        for name in ("gpu", "cpu"):
            assert np.array_equal(client.predict(name, x).array, wanted)


def test_too_large_a_request_is_split_and_too_wide_a_one_refused(machine, serve, plan, onnx_models):
    """By rows it is split over batches; a shape that no profile holds is the caller's mistake."""
    client = serve(ModelConfig(path=str(plan(onnx_models.make_sequence_model(), [{"x": [[1, 1], [4, 4], [4, 4]]}]))))
    x = np.arange(22, dtype=np.float32).reshape(11, 2)
    assert np.array_equal(client.predict("model", x).array, x + 1)
    with pytest.raises(ForebayError) as caught:
        client.predict("model", np.ones((1, 5), np.float32))
    assert (caught.value.code.name, caught.value.reason) == ("INVALID_ARGUMENT", "INPUT_REJECTED")
    assert "the model is not built for x [" in str(caught.value)


def test_a_server_that_is_closed_ends_its_build(machine, tmp_path, onnx_models):
    """At TensorRT's next step, without a word: a process must not end in the middle of it."""
    building = threading.Event()
    server = Server(
        Config(
            server=ServerConfig(
                wire="grpc.aio", public=ExposureConfig(address="127.0.0.1:0"), cache_dir=str(tmp_path / "cache")
            ),
            models=[ModelConfig(path=str(onnx_models.make_linear_model()), engine=EngineConfig(name="tensorrt"))],
        )
    )

    def at_step(_step):
        building.set()
        assert server._hosting._stopping.wait(30)

    machine.at_step = at_step
    server.start()
    assert building.wait(30)
    with structlog.testing.capture_logs() as logs:
        server.close()
        for thread in threading.enumerate():
            if thread.name == "forebay-loader":
                thread.join(30)
    assert "model_failed" not in {log["event"] for log in logs}
    assert list((tmp_path / "cache" / "tensorrt").glob("*.plan")) == []
