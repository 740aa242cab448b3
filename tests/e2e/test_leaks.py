"""What callers leave behind when they go, politely or not: nothing. And what many requests leave: nothing either."""

import gc
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from forebay.v1 import inference_pb2
from forebay_server.config.tree import BatchingConfig
from tests.serving import array_of, request_of, row, synthetic
from tests.waiting import eventually

CALLER = """
    import sys, threading, time
    import grpc, numpy as np
    from forebay.v1 import inference_pb2
    from tests.serving import Caller, request_of, row

    caller = Caller(sys.argv[1])
    item = inference_pb2.StreamItem(id=1, request=request_of("synthetic", row(1)))
    def messages():
        for ident in range(10**6):
            item.id = ident
            yield inference_pb2.StreamPredictRequest(items=[item])
    streams = [caller.inference.StreamPredict(messages(), timeout=60) for _ in range(3)]
    calls = [caller.later("synthetic", row(n)) for n in range(50)]
    calls[0].result()
    print("busy", flush=True)
    time.sleep(60)
"""


class Vital:
    """Threads, descriptors and resident bytes of a process."""

    def __init__(self, pid):
        self.folder = Path(f"/proc/{pid}")

    def descriptors(self):
        return len(list((self.folder / "fd").iterdir()))

    def threads(self):
        return len(list((self.folder / "task").iterdir()))

    def memory(self):
        return int((self.folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_callers_that_are_killed(process, call, tmp_path):
    """kill -9 of callers in the middle of calls and streams leaves no call, row, thread or descriptor behind."""
    server = process("synthetic:base_ms=20", "--max-batch-size", "8").ready()
    caller = call(server)
    assert caller.predict("synthetic", row(1)).outputs
    vital = Vital(server.popen.pid)
    before = vital.descriptors(), vital.threads()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for _ in range(2):
        victim = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(CALLER), server.addresses["public"]],
            env=environment,
            stdout=subprocess.PIPE,
        )
        with victim:
            assert victim.stdout.readline() == b"busy\n"
            victim.send_signal(signal.SIGKILL)
    eventually(lambda: vital.descriptors() <= before[0] + 1, "descriptors are back", 20)
    eventually(lambda: vital.threads() <= before[1] + 1, "threads are back", 20)

    def waiting():
        (figures,) = caller.models.GetStatistics(_statistics(), timeout=5).statistics
        return figures.queued_rows, figures.held_bytes

    eventually(lambda: waiting() == (0, 0), "nothing waits")
    assert np.array_equal(array_of(caller.predict("synthetic", row(3)).outputs[0]), row(3))
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


def _statistics():
    from forebay.v1 import model_service_pb2  # noqa: PLC0415  # the subprocess does without

    return model_service_pb2.GetStatisticsRequest()


def test_streams_that_are_abandoned(serve, call):
    """Streams that are cancelled, or never read, or never closed, leave nothing in the server."""
    server = serve(synthetic(base_ms=5, batching=BatchingConfig(max_batch_size=4)))
    caller = call(server)
    gate = threading.Event()

    def endless():
        for ident in range(100):
            yield inference_pb2.StreamPredictRequest(
                items=[inference_pb2.StreamItem(id=ident, request=request_of("model", row(ident)))]
            )
        gate.wait(20)

    streams = [caller.inference.StreamPredict(endless(), timeout=30) for _ in range(20)]
    for stream in streams[:10]:
        next(stream)
    for stream in streams:
        stream.cancel()
    gate.set()
    eventually(lambda: server._inference.in_flight() == 0, "no item is in flight")
    eventually(lambda: server._inference.streams._streams == {}, "no stream is left")
    eventually(lambda: server._wire.figures().calls == 0, "no call is open")
    eventually(lambda: server._wire.figures().held_bytes == 0, "no byte is held")
    eventually(lambda: server._runner.core.held_bytes == 0, "no request holds bytes")
    assert caller.predict("model", row(1)).outputs


def test_a_caller_that_outruns_the_model_is_slowed_down(serve, call):
    """A stream of one small item a message, sent as fast as can be, is held back by flow control and never cut off."""
    server = serve(synthetic(base_ms=20, batching=BatchingConfig(max_batch_size=1, check_rows=False)))
    caller = call(server)
    stop = threading.Event()
    item_request = request_of("model", row(1))

    def endless():
        for ident in range(10**7):
            if stop.is_set():
                return
            item = inference_pb2.StreamItem(id=ident, request=item_request)
            yield inference_pb2.StreamPredictRequest(items=[item])

    stream = caller.inference.StreamPredict(endless(), timeout=30)
    end = time.monotonic() + 3
    try:
        while time.monotonic() < end:
            next(stream)
    finally:
        stop.set()
        stream.cancel()


def requests(caller, count, seed):
    """So many requests by streams; returns when all are answered."""
    array = np.random.default_rng(seed).random((1, 4), np.float32)
    request = request_of("synthetic", array, request_id=f"r{seed}")
    size = 100
    message = inference_pb2.StreamPredictRequest(
        items=[inference_pb2.StreamItem(id=n, request=request) for n in range(size)]
    )
    room = threading.Semaphore(2)

    def messages():
        for number in range(count // size):
            room.acquire()
            for n, item in enumerate(message.items):
                item.id = number * size + n
            yield message

    done = 0
    for answer in caller.inference.StreamPredict(messages(), timeout=3000):
        for result in answer.results:
            assert result.response.outputs[0].data == array.tobytes()
            done += 1
            if done % size == 0:
                room.release()
    assert done == count


def flat(process, call, *, warm, count, bound):
    """Memory, threads and descriptors after many requests are those of after few."""
    server = process("synthetic:").ready()
    caller = call(server)
    vital = Vital(server.popen.pid)
    requests(caller, warm, 0)
    before = vital.memory(), vital.threads(), vital.descriptors()
    for seed in range(4):
        requests(caller, count // 4, seed)
    assert vital.memory() - before[0] < bound
    assert vital.threads() <= before[1] + 1
    assert vital.descriptors() <= before[2] + 1


def test_memory_is_flat_over_requests(process, call):
    """50,000 requests leave at most 6 MiB, most of which is the allocator's."""
    flat(process, call, warm=10_000, count=50_000, bound=6 << 20)


@pytest.mark.long
def test_memory_is_flat_over_a_million_requests(process, call):
    """A million requests leave at most 16 MiB."""
    flat(process, call, warm=50_000, count=1_000_000, bound=16 << 20)


def soak(serve, call, seconds):  # noqa: C901  # one mix of many things
    """A mix of everything; every outcome is right, or one that its caller asked for."""
    server = serve(
        synthetic(base_ms=0.5, poison=-1.0, batching=BatchingConfig(max_batch_size=16)),
        synthetic("two", row_ms=0.2, engine={"instances": 2, "run": "worker"}),
    )
    wrong = []
    counts = {}
    end = time.monotonic() + seconds
    codes = {
        "deadline": {grpc.StatusCode.DEADLINE_EXCEEDED},
        "bad": {grpc.StatusCode.INVALID_ARGUMENT},
        "poison": {grpc.StatusCode.INTERNAL},
    }

    def unary(caller, random_, value):
        kind = random_.choices(["good", "cancel", "deadline", "bad", "poison"], [86, 5, 5, 2, 2])[0]
        model = random_.choice(["model", "two"]) if kind != "poison" else "model"
        array = row(-1 if kind == "poison" else value, random_.choice([1, 1, 2, 20]), 5 if kind == "bad" else 4)
        future = caller.inference.Predict.future(request_of(model, array), timeout=0.002 if kind == "deadline" else 20)
        if kind == "cancel":
            future.cancel()
        try:
            right = np.array_equal(array_of(future.result().outputs[0]), array)
        except grpc.FutureCancelledError:
            right = kind == "cancel"
        except grpc.RpcError as error:
            right = error.code() in codes.get(kind, ())
            if not right:
                wrong.append(error)
        if not right:
            wrong.append((kind, array))
        counts[kind] = counts.get(kind, 0) + 1

    def stream(caller, random_, value):
        sent = {n: row(value + n, random_.choice([1, 3])) for n in range(random_.choice([1, 10, 60]))}
        items = [inference_pb2.StreamItem(id=n, request=request_of("two", array)) for n, array in sent.items()]
        message = inference_pb2.StreamPredictRequest(items=items)
        for answer in caller.inference.StreamPredict(iter([message]), timeout=20):
            wrong.extend(
                result
                for result in answer.results
                if not np.array_equal(array_of(result.response.outputs[0]), sent.pop(result.id))
            )
        if sent:
            wrong.append(sent)
        counts["stream"] = counts.get("stream", 0) + 1

    def run(index):
        caller = call(server)
        random_ = random.Random(index)
        value = index * 1_000_000
        while time.monotonic() < end and not wrong:
            value += 100
            try:
                (unary if random_.random() < 0.78 else stream)(caller, random_, value % 16_000_000)
            except Exception as error:  # noqa: BLE001  # told below
                wrong.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 60)
        assert not thread.is_alive()
    assert wrong == []
    assert set(counts) == {"good", "cancel", "deadline", "bad", "poison", "stream"}
    eventually(lambda: server._inference.in_flight() == 0, "nothing is in flight")
    eventually(lambda: server._wire.figures().held_bytes == 0, "no byte is held")
    eventually(lambda: server._runner.core.held_bytes == 0, "no request holds bytes")
    gc.collect()


def test_a_mix_of_everything(serve, call):
    """Unary calls, streams, cancellations, deadlines, bad and poisonous input, for 8 seconds."""
    soak(serve, call, 8)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_long_mix_of_everything(serve, call):
    """The same for ten minutes."""
    soak(serve, call, 600)
