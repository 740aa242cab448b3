"""The log of a real server: what it says of refusals, what it never says, and that nobody waits for it."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

from forebay.v1 import inference_pb2, tensor_pb2
from forebay_client import Client, ForebayError
from tests.serving import request_of, row
from tests.waiting import eventually, free_port

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
SECRET = "hunter2-canary-1"  # 16 bytes, a row of the model

FAILING = """
from forebay_server.engines.python import model

@model(inputs={"x": ("FP32", (-1, 4))}, outputs={"y": ("FP32", (-1, 4))})
def predict(x):
    if (x == 13).any():
        held = x.tobytes()
        raise ValueError("the model's own words")
    return x * 1
"""


WEBHOOKS = """
[jobs.webhooks]
allow = ["https://hooks.example.com/"]

[jobs.webhooks.secrets]
first = "env:HOOK_SECRET"
"""


def lines_of(server, *events):
    found = [json.loads(line) for line in list(server.lines) if line.startswith("{")]
    return [line for line in found if line["event"] in events]


def infos(error):
    """The ErrorInfo of an error."""
    details = dict(error.trailing_metadata()).get("grpc-status-details-bin", b"")
    for packed in status_pb2.Status.FromString(details).details:
        info = error_details_pb2.ErrorInfo()
        if packed.Unpack(info):
            return info
    return None


def test_a_line_for_a_refusal_has_the_ids_of_the_caller(process, call):
    """Method, model, code, reason, request and trace: each refused request has one line, and an answered one none."""
    server = process("synthetic:base_ms=50", "--name", "slow").ready()
    caller = call(server)
    metadata = [("traceparent", TRACEPARENT)]
    caller.predict("slow", row(1), request_id="fine")
    caller.fails(request_of("slow", row(1), request_id="too-soon"), timeout=0.01, metadata=metadata)
    caller.fails(request_of("slow", row(1, width=3), request_id="wrong"), metadata=metadata)
    caller.fails(request_of("nobody", row(1), request_id="unknown"))
    eventually(lambda: len(lines_of(server, "request_refused", "request_failed")) >= 3, "three lines")
    lines = lines_of(server, "request_refused", "request_failed")

    told = [{key: value for key, value in line.items() if key != "timestamp"} for line in lines]
    assert told == [
        {
            "event": "request_refused",
            "level": "warning",
            "method": "Predict",
            "code": "DEADLINE_EXCEEDED",
            "reason": "DEADLINE_UNREACHABLE",
            "model": "slow",
            "version": 1,
            "request_id": "too-soon",
            "trace_id": TRACE,
        },
        {
            "event": "request_refused",
            "level": "info",
            "method": "Predict",
            "code": "INVALID_ARGUMENT",
            "reason": "INVALID_TENSOR",
            "request_id": "wrong",
            "trace_id": TRACE,
        },
        {
            "event": "request_refused",
            "level": "info",
            "method": "Predict",
            "code": "NOT_FOUND",
            "reason": "MODEL_NOT_FOUND",
            "request_id": "unknown",
        },
    ]


def test_an_item_of_a_stream_that_is_refused_has_a_line(process, call):
    """As a call has: with its request's id and the stream's trace."""
    server = process("synthetic:base_ms=1", "--name", "quick").ready()
    items = [
        inference_pb2.StreamItem(id=1, request=request_of("quick", row(1), request_id="fine")),
        inference_pb2.StreamItem(id=2, request=request_of("quick", row(1, width=3), request_id="wrong")),
    ]
    stream = call(server).inference.StreamPredict(
        iter([inference_pb2.StreamPredictRequest(items=items)]), timeout=10, metadata=[("traceparent", TRACEPARENT)]
    )
    assert sum(len(message.results) for message in stream) == 2
    eventually(lambda: lines_of(server, "request_refused"), "a line")

    (line,) = lines_of(server, "request_refused")
    assert (line["method"], line["request_id"], line["trace_id"]) == ("StreamPredict", "wrong", TRACE)


def test_an_internal_error_is_found_by_its_id(process, call, tmp_path):
    """The caller has a fixed text and an id; the log has, under that id, what was raised, and one line only."""
    (tmp_path / "failing.py").write_text(FAILING)
    server = process(f"python:{tmp_path / 'failing.py'}:predict", "--name", "failing").ready()
    error = call(server).fails(request_of("failing", row(13), request_id="culprit"))
    ident = infos(error).metadata["error_id"]
    eventually(lambda: any(line.get("error_id") == ident for line in lines_of(server, "batch failed")), "its line")

    assert error.code() is grpc.StatusCode.INTERNAL
    assert "own words" not in error.details()
    (line,) = [line for line in lines_of(server, "batch failed") if line.get("error_id") == ident]
    assert "ValueError: the model's own words" in line["exception"]
    assert not lines_of(server, "request_failed", "request_refused")


@pytest.mark.parametrize("style", ["json", "text"])
def test_secrets_are_in_no_line_and_no_error(process, call, tmp_path, style):
    """Not from metadata, payloads, parameters or settings; what is told on purpose is found in the same lines."""
    (tmp_path / "settings.toml").write_text(WEBHOOKS)
    (tmp_path / "failing.py").write_text(FAILING)
    server = process(
        *(f"python:{tmp_path / 'failing.py'}:predict", "--name", "failing", "--jobs", "memory"),
        *("--config", str(tmp_path / "settings.toml"), "--set", "log.level=debug", "--set", f"log.format={style}"),
        environment={"HOOK_SECRET": f"{SECRET}{SECRET}"},
    )
    eventually(lambda: "model_ready" in server.stderr or server.popen.poll() is not None, "ready", 30)
    address = re.search(r"127\.0\.0\.1:\d+", server.stderr)[0]
    metadata = [("authorization", f"Bearer {SECRET}"), ("x-secret-bin", SECRET.encode()), ("traceparent", TRACEPARENT)]
    payload = np.frombuffer(SECRET.encode(), "<f4").copy()
    texts = []
    with grpc.insecure_channel(address) as channel:
        predict = channel.unary_unary("/forebay.v1.InferenceService/Predict")
        for number, request in enumerate(
            [
                request_of("failing", np.array([payload, np.full(4, 13, np.float32)]), request_id="told-on-purpose"),
                request_of("failing", payload.reshape(2, 2), request_id="told-on-purpose"),
                inference_pb2.PredictRequest(
                    model="failing",
                    request_id="told-on-purpose",
                    inputs=[
                        tensor_pb2.Tensor(
                            name="x", data_type=tensor_pb2.DATA_TYPE_BYTES, shape=[1], data=SECRET.encode()
                        )
                    ],
                ),
            ]
        ):
            request.parameters["token"].string_value = SECRET
            with pytest.raises(grpc.RpcError) as caught:
                predict(request.SerializeToString(), timeout=10, metadata=metadata)
            texts.append(f"{number} {caught.value.details()} {caught.value.trailing_metadata()}")
        with pytest.raises(grpc.RpcError) as caught:
            predict(SECRET.encode(), timeout=10, metadata=metadata)
        texts.append(f"{caught.value.details()} {caught.value.trailing_metadata()}")
    eventually(lambda: "told-on-purpose" in server.stderr and "batch failed" in server.stderr, "the lines")
    server.signal(signal.SIGTERM)
    assert server.wait() == 0

    everything = server.stderr + "\n".join(texts)
    assert "told-on-purpose" in server.stderr
    assert TRACE in server.stderr
    assert "own words" in server.stderr
    assert SECRET not in everything
    assert SECRET.encode().hex() not in everything
    assert repr(float(payload[0]))[:6] not in everything


def test_a_storm_of_refusals_writes_few_lines(process):
    """10,000 refusals: the burst and a line a second, and together they say that there were 10,000."""
    server = process("synthetic:base_ms=50", "--name", "slow").ready()
    began = time.monotonic()
    with grpc.insecure_channel(server.addresses["public"]) as channel:
        predict = channel.unary_unary("/forebay.v1.InferenceService/Predict")
        body = request_of("nobody", row(1)).SerializeToString()
        for _ in range(20):
            calls = [predict.future(body, timeout=30) for _ in range(500)]
            assert all(call.code() is grpc.StatusCode.NOT_FOUND for call in calls)
    took = time.monotonic() - began
    server.signal(signal.SIGTERM)
    assert server.wait() == 0

    lines = lines_of(server, "request_refused")
    (rest,) = lines_of(server, "requests_not_logged") or [{"suppressed": 0}]
    assert len(lines) <= 10 + took + 2
    assert len(lines) + sum(line.get("suppressed", 0) for line in lines) + rest["suppressed"] == 10_000


@pytest.mark.parametrize("front_end", ["grpc.aio"], indirect=True)
@pytest.mark.parametrize("terminal", [True, False])
def test_people_get_text_and_others_json(front_end, tmp_path, terminal):
    """By what stderr is, if nobody says otherwise."""
    reading, writing = os.openpty() if terminal else os.pipe()
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "forebay_server", "serve", "synthetic:", "--wire", front_end),
            *("--listen", "127.0.0.1:0"),
        ],
        stderr=writing,
        cwd=tmp_path,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
    )
    os.close(writing)
    told = b""
    try:
        while b"model_ready" not in told:
            told += os.read(reading, 65536)  # ends with the server
        server.send_signal(signal.SIGTERM)
        with suppress(OSError):  # how a terminal tells that nobody holds its other end
            while more := os.read(reading, 65536):
                told += more
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.wait()
        os.close(reading)

    (line,) = [line for line in told.decode().splitlines() if "model_ready" in line]
    if terminal:
        plain = re.sub(r"\x1b\[[\d;]*m", "", line)
        assert re.match(r"\d{4}-\d\d-\d\dT\S+ \[info +\] model_ready ", plain)
        assert "name=synthetic" in plain
    else:
        assert (json.loads(line)["event"], json.loads(line)["name"]) == ("model_ready", "synthetic")


@pytest.fixture
def stuck_pipe():
    """The end of a full pipe that nobody reads."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"x")
    os.set_blocking(writing, True)
    yield writing
    os.close(reading)
    os.close(writing)


def test_a_log_that_nobody_reads_holds_nobody_up(front_end, stuck_pipe, tmp_path):
    """The server starts, answers, refuses and drains, with a stderr on which no byte can be written."""
    control = subprocess.Popen([sys.executable, "-c", "import os; os.write(2, b'x')"], stderr=stuck_pipe)
    address = f"127.0.0.1:{free_port()}"
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "forebay_server", "serve", "synthetic:base_ms=1", "--name", "model"),
            *("--wire", front_end, "--listen", address, "--set", "log.level=debug"),
        ],
        stderr=stuck_pipe,
        cwd=tmp_path,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
    )
    try:
        with Client(address) as client:
            eventually(lambda: _serving(client), "serving", 30)
            slowest = 0.0
            for number in range(200):
                began = time.monotonic()
                assert client.predict("model", {"x": row(number)})["y"].shape == (1, 4)
                slowest = max(slowest, time.monotonic() - began)
                with pytest.raises(ForebayError):
                    client.predict("nobody", {"x": row(number)})
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
        assert slowest < 2.0
        assert control.poll() is None  # what writes there itself is stuck
    finally:
        for child in (server, control):
            child.kill()
            child.wait()


def _serving(client):
    try:
        return client.health(deadline=1.0) == "SERVING"
    except ForebayError:
        return False
