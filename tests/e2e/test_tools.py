"""The commands against a real server, and buf as a client that knows only reflection."""

import base64
import contextlib
import csv
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from google.rpc import error_details_pb2

from forebay_server.config.tree import ExposureConfig, ModelConfig
from tests.serving import synthetic

BUF = Path(__file__).parents[2] / "build/gen-venv/bin/buf"
LOCAL = "127.0.0.1:0"


@pytest.mark.parametrize("command", ["predict", "stream"])
def test_files_in_and_exact_values_out(serve, forebay, tmp_path, onnx_models, command):
    """npy, npz, JSON and CSV in: the model's own values out, in the form of the file that was asked for."""
    server = serve(ModelConfig(path=str(onnx_models.make_linear_model(4, 3))))
    to = ["--address", server.addresses["public"]]
    rows = np.arange(40, dtype=np.float32).reshape(10, 4)
    expected = onnx_models.linear(rows, 3)
    np.save(tmp_path / "x.npy", rows)
    np.savez(tmp_path / "x.npz", x=rows)
    (tmp_path / "x.json").write_text(json.dumps(rows.tolist()))
    with (tmp_path / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows.tolist())
    for name in ("x.npy", "x.npz", "x.json", "x.csv"):
        out = tmp_path / f"{name}.npy"
        code, _, err = forebay(command, *to, "linear", tmp_path / name, "--output", out, "--rows", 3)
        assert code == 0, err
        assert np.array_equal(np.load(out), expected), name
    code, out, _ = forebay(command, *to, "linear", f"x={tmp_path / 'x.npy'}")
    assert code == 0
    assert json.loads(out)["outputs"]["y"] == expected.tolist()


def test_models_and_health(serve, forebay):
    """`models` lists and shows, `health` answers by its exit code."""
    server = serve(synthetic("one"), synthetic("two"))
    to = ["--address", server.addresses["public"]]
    code, out, _ = forebay("models", *to)
    assert code == 0
    assert "one" in out
    assert "two" in out
    code, out, _ = forebay("models", "two", *to)
    assert code == 0
    assert "two version 1" in out
    assert forebay("health", *to)[:2] == (0, "SERVING\n")
    assert forebay("health", "model/two", *to)[0] == 0
    assert forebay("health", "model/three", *to)[0] == 1
    code, out, err = forebay("models", "three", *to)
    assert (code, out) == (1, "")
    assert err.startswith("forebay: ")
    assert len(err.splitlines()) == 1


def test_commands_without_a_server(forebay, tmp_path):
    """Who is not there is one sentence and exit code 1."""
    np.save(tmp_path / "x.npy", np.zeros((1, 4), np.float32))
    for command in (["health"], ["models"], ["predict", "linear", tmp_path / "x.npy"]):
        code, out, err = forebay(*command, "--address", "127.0.0.1:1")
        assert (code, out) == (1, "")
        assert len(err.splitlines()) == 1


def test_check_a_good_and_a_bad_model(forebay, onnx_models, tmp_path, monkeypatch):
    """`check` explains a model before it serves, and says what is wrong with a bad one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = onnx_models.make_linear_model()
    code, out, err = forebay("check", path)
    assert code == 0, err
    assert "linear" in out
    path.write_bytes(b"nonsense")
    code, _, err = forebay("check", path)
    assert code == 1
    assert "Traceback" not in err


def test_over_a_unix_socket(serve, forebay, tmp_path):
    """The commands reach a server on a Unix socket."""
    address = f"unix:{tmp_path / 's'}"
    serve(synthetic(), server={"public": ExposureConfig(address=address)})
    assert forebay("health", "--address", address)[:2] == (0, "SERVING\n")


@pytest.fixture
def buf(tmp_path):
    """Runs `buf curl` over plain HTTP/2 and gives what it printed."""
    if not BUF.exists():
        pytest.skip("buf is not there: make build/gen-venv")

    def run(*arguments, fails=False):
        command = [BUF, "curl", "--http2-prior-knowledge", *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30, cwd=tmp_path)
        assert (done.returncode != 0) == fails, done.stderr
        return done.stderr if fails else done.stdout

    return run


@pytest.mark.parametrize("version", ["grpc-v1", "grpc-v1alpha"])
def test_buf_lists_and_calls_by_reflection(serve, buf, version):
    """Without a proto file: the services, their methods, a call with numbers in and out, and a refusal with details."""
    url = f"http://{serve(synthetic(scale=2.0)).addresses['public']}"
    base = ["--reflect-protocol", version, "--protocol", "grpc"]
    listed = buf(*base, "--list-services", url).split()
    assert {"forebay.v1.InferenceService", "forebay.v1.ModelService", "grpc.health.v1.Health"} <= set(listed)
    request = {
        "model": "model",
        "inputs": [{"name": "x", "dataType": "DATA_TYPE_FP32", "shape": [1, 4], "numbers": [1, 2.5, -3, 0]}],
        "readable": True,
        "requestId": "by hand",
    }
    call = f"{url}/forebay.v1.InferenceService/Predict"
    answer = json.loads(buf(*base, "--data", json.dumps(request), call))
    assert answer["outputs"][0]["numbers"] == [2, 5, -6, 0]
    assert (answer["requestId"], answer["version"]) == ("by hand", "1")
    request["model"] = "nobody"
    error = buf(*base, "--data", json.dumps(request), call, fails=True)
    assert "not_found" in error
    (detail,) = json.loads(error)["details"]
    assert detail["type"] == "google.rpc.ErrorInfo"
    info = error_details_pb2.ErrorInfo.FromString(base64.b64decode(detail["value"] + "=="))
    assert info.reason == "MODEL_NOT_FOUND"


def test_buf_streams(serve, buf):
    """A stream by hand: two items in, two results out."""
    url = f"http://{serve(synthetic()).addresses['public']}"
    tensor = {"name": "x", "dataType": "DATA_TYPE_FP32", "shape": [1, 4], "numbers": [1, 2, 3, 4]}
    items = [{"id": n, "request": {"model": "model", "inputs": [tensor], "readable": True}} for n in (1, 2)]
    out = buf(
        "--protocol", "grpc", "--data", json.dumps({"items": items}), f"{url}/forebay.v1.InferenceService/StreamPredict"
    )
    results = []
    decoder = json.JSONDecoder()
    with contextlib.suppress(ValueError):
        while out.strip():
            message, end = decoder.raw_decode(out.strip())
            results += message["results"]
            out = out.strip()[end:]
    assert {result["id"]: result["response"]["outputs"][0]["numbers"] for result in results} == {
        "1": [1, 2, 3, 4],
        "2": [1, 2, 3, 4],
    }
