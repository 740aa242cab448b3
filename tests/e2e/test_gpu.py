"""Engines on a GPU, as callers see them: overlap, and every fault of a device that isn't there, over real sockets.

The device's time is real here; what overlaps is shown by holding what computes, not by measuring.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from forebay_server.config.tree import BatchingConfig, EngineConfig, ModelConfig
from tests.server.engines.gpu import fake_engine
from tests.server.engines.gpu.computations import ENDLESS, ILLEGAL
from tests.server.engines.gpu.fake_engine import COMPUTATIONS, DEVICES
from tests.serving import array_of, details_of, request_of, row, synthetic
from tests.waiting import eventually

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 60.0


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """The engine is installed; its devices by number."""
    folder = tmp_path / "site"
    fake_engine.install(folder)
    monkeypatch.syspath_prepend(str(folder))
    DEVICES.clear()
    COMPUTATIONS.clear()
    return DEVICES


@pytest.fixture
def serve(gpu, serve):
    """What hangs is let go before the servers are closed."""
    yield serve
    for device in gpu.values():
        device.release()


def model(name="model", *, batch=1, instances=1, max_execution=0.0, **options):
    """A model on the make-believe GPU; each request is a full batch unless `batch` says otherwise."""
    return ModelConfig(
        name=name,
        path="fakegpu:",
        batching=BatchingConfig(max_batch_size=batch, best_batch_size=batch, check_rows=False),
        engine=EngineConfig(name="fakegpu", instances=instances, max_execution_s=max_execution, options=options),
    )


def unavailable(error):
    """Reason and text of an UNAVAILABLE."""
    code, reason, _ = details_of(error)
    assert code.name == "UNAVAILABLE"
    return reason, error.details()


def test_everybody_gets_the_own_answer(gpu, serve, call):
    """Through batches of all sizes, padded up to those that were captured, two in flight."""
    server = serve(model(batch=8, sizes="1x2x4x8"))
    caller = call(server)
    futures = [caller.later("model", row(value, rows=1 + value % 3)) for value in range(200)]
    for value, future in enumerate(futures):
        assert np.array_equal(array_of(future.result().outputs[0]), row(2 * value, rows=1 + value % 3))

    assert gpu[0].hazards == []
    assert gpu[0].kinds("graph")
    assert set(COMPUTATIONS[0].enqueued) <= {1, 2, 4, 8}


@pytest.mark.parametrize("depth", [1, 2])
def test_the_next_batch_is_uploaded_while_one_computes(gpu, serve, call, depth):
    """With two in flight the second is on the device before the first is done; with one only after it is back."""
    caller = call(serve(model(depth=depth)))
    device = gpu[0]
    uploads = len(device.kinds("upload"))
    device.hold()
    first = caller.later("model", row(1))
    eventually(lambda: device.running("compute"), "the first computes", PATIENCE)
    second = caller.later("model", row(2))
    third = caller.later("model", row(3))
    if depth == 2:
        eventually(lambda: len(device.kinds("upload")) == uploads + 2, "the second is uploaded", PATIENCE)
        assert not first.done()
    device.release()
    for value, future in enumerate((first, second, third), 1):
        assert np.array_equal(array_of(future.result().outputs[0]), row(2 * value))

    upload = device.kinds("upload")[uploads + 1]
    download = device.kinds("download")[uploads]
    assert (upload[1] < download[1]) == (depth == 2)


def test_a_batch_that_fails_is_cut_up_beside_another(gpu, serve, call):
    """Poisonous rows fail alone, though another batch is in flight all the time."""
    caller = call(serve(model(batch=8, poison=-1.0)))
    futures = [caller.later("model", row(-1 if value % 10 == 3 else value)) for value in range(80)]
    for value, future in enumerate(futures):
        if value % 10 == 3:
            assert details_of(future.exception())[1] == "INTERNAL"
        else:
            assert np.array_equal(array_of(future.result().outputs[0]), row(2 * value))


def test_rows_of_nan_do_not_touch_their_neighbours(gpu, serve, call):
    """In their batch and in those beside it."""
    caller = call(serve(model(batch=8, sizes="1x2x4x8")))
    futures = [caller.later("model", row(np.nan if value % 3 == 1 else value)) for value in range(60)]
    for value, future in enumerate(futures):
        answer = array_of(future.result().outputs[0])
        assert np.isnan(answer).all() if value % 3 == 1 else np.array_equal(answer, row(2 * value))


def test_too_little_memory_makes_batches_smaller(gpu, serve, call):
    """Nobody notices: what does not fit is halved, and from then on batches are formed so that they fit."""
    caller = call(serve(model(batch=8)))
    device, computation = gpu[0], COMPUTATIONS[0]
    computation.memory_rows = 2
    device.hold()
    futures = [caller.later("model", row(value)) for value in range(40)]
    eventually(lambda: device.running("compute"), "one computes", PATIENCE)
    device.release()
    for value, future in enumerate(futures):
        assert np.array_equal(array_of(future.result().outputs[0]), row(2 * value))
    refused = [rows for rows in computation.enqueued if rows > 2]
    assert refused
    computation.enqueued.clear()
    futures = [caller.later("model", row(value)) for value in range(40)]
    for future in futures:
        future.result()

    assert max(computation.enqueued) <= 2


def test_a_lost_device_is_told_to_everybody(gpu, serve, call):
    """The callers whose batch it was, those who come later, and health: of every model on it, and no other."""
    caller = call(serve(model("a"), model("b"), synthetic("c")))
    for name in "abc":
        assert caller.serving(f"model/{name}")
    reason, text = unavailable(caller.fails(request_of("a", row(ILLEGAL))))
    assert (reason, text) == ("ENGINE_UNAVAILABLE", "the device cuda:0 of the model's engine has failed")
    for name in "ab":
        assert unavailable(caller.fails(request_of(name, row(1)))) == (reason, text)
    assert [caller.serving(f"model/{name}") for name in "abc"] == [False, False, True]

    assert np.array_equal(array_of(caller.predict("c", row(1)).outputs[0]), row(1))


def test_of_several_devices_only_the_lost_one_goes_down(gpu, serve, call):
    """What ran there may be sent again; the model goes on elsewhere and stays healthy."""
    caller = call(serve(model(instances=2, devices=2)))
    reason, _ = unavailable(caller.fails(request_of("model", row(ILLEGAL))))
    assert reason == "ENGINE_RESTARTED"
    assert caller.serving("model/model")
    for value in range(20):
        assert np.array_equal(array_of(caller.predict("model", row(value)).outputs[0]), row(2 * value))

    assert [bool(gpu[number].lost) for number in (0, 1)].count(True) == 1


def test_a_kernel_that_hangs_is_found(gpu, serve, call):
    """Its callers and those behind it are told, health turns; when it ends after all, the instance serves again."""
    caller = call(serve(model(max_execution=2.0)))
    hung = caller.later("model", row(ENDLESS))
    eventually(lambda: gpu[0].running("compute"), "it hangs", PATIENCE)
    behind = caller.later("model", row(1))
    for future in (hung, behind):
        assert unavailable(future.exception())[0] == "ENGINE_UNAVAILABLE"
    eventually(lambda: not caller.serving("model/model"), "health has turned", PATIENCE)
    gpu[0].release()
    eventually(lambda: caller.serving("model/model"), "it serves again", PATIENCE)

    assert np.array_equal(array_of(caller.predict("model", row(4)).outputs[0]), row(8))


def test_a_drain_answers_both_batches_in_flight(gpu, serve, call):
    """The one that computes, the one behind it, and what waits."""
    server = serve(model())
    caller = call(server)
    gpu[0].hold()
    futures = [caller.later("model", row(value)) for value in range(4)]
    figures = server._runner.core.figures
    eventually(lambda: figures(("model", 1)).queued_rows == 2, "two are in flight, two wait", PATIENCE)
    assert figures(("model", 1)).running_batches == 2
    gpu[0].release()

    assert server.drain() == 0
    assert [array_of(future.result().outputs[0])[0, 0] for future in futures] == [0, 2, 4, 6]
    assert gpu[0].open == 0


def test_a_process_without_a_device_leaves_with_its_own_exit_code(gpu, process, call, tmp_path):
    """So that its supervisor starts another one, which can use the device again."""
    path = os.pathsep.join([str(tmp_path / "site"), str(REPOSITORY)])
    begun = process(
        "fakegpu:", "--name", "model", environment={"PYTHONPATH": path}
    ).ready()  # fmt: skip
    caller = call(begun)
    assert np.array_equal(array_of(caller.predict("model", row(1)).outputs[0]), row(2))
    reason, text = unavailable(caller.fails(request_of("model", row(ILLEGAL))))

    assert (reason, text) == ("ENGINE_UNAVAILABLE", "the device cuda:0 of the model's engine has failed")
    assert begun.wait() == 72
    assert "forebay: the device cuda:0 has failed; only a new process can use it again" in begun.stderr
    assert begun.events("device lost")[0]["device"] == "cuda:0"
