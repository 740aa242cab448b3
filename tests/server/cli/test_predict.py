"""`forebay predict` and `forebay stream` against a real server: complete, in order, and honest about failures."""

import csv
import json

import numpy as np
import pytest

COMMANDS = pytest.mark.parametrize("command", ["predict", "stream"])


@pytest.fixture
def sent(forebay, server, tmp_path):
    """Sends rows to the model `double` and gives how it ended."""

    def send(command, rows, *options, output="-", model="double"):
        np.save(tmp_path / "x.npy", np.asarray(rows, np.float32))
        return forebay(command, model, tmp_path / "x.npy", "--address", server.address, "--output", output, *options)

    return send


@COMMANDS
@pytest.mark.parametrize("size", ["1", "7"])
def test_all_rows_come_back_in_order(sent, tmp_path, command, size):
    """Whatever the number of rows in a request."""
    rows = np.arange(200, dtype=np.float32).reshape(100, 2)
    ended = sent(command, rows, "--rows", size, output=tmp_path / "y.npz")

    assert (ended.code, ended.out) == (0, "")
    assert ended.err.startswith("100 rows in ")
    assert ended.err.endswith(" rows/s, 0 failed\n")
    with np.load(tmp_path / "y.npz") as written:
        assert list(written) == ["y"]
        np.testing.assert_array_equal(written["y"], rows * 2)


@COMMANDS
def test_failed_rows_are_counted_and_the_others_kept(sent, tmp_path, command):
    """Code, reason and count on stderr; NaN and `failed_rows` in the file; exit code 1."""
    ended = sent(command, [[1, 0], [-1, 0], [2, 0], [-2, 0], [-1, 0]], "--rows", "1", output=tmp_path / "y.npz")

    assert ended.code == 1
    assert ended.err.splitlines()[1:] == [
        "  2 rows: RESOURCE_EXHAUSTED (QUEUE_FULL): the queue is full",
        "  1 rows: INVALID_ARGUMENT (INVALID_TENSOR): bad tensor",
        "forebay: 3 of 5 rows have no result",
    ]
    with np.load(tmp_path / "y.npz") as written:
        np.testing.assert_array_equal(written["y"][:, 0], [2, np.nan, 4, np.nan, np.nan])
        assert written["failed_rows"].tolist() == [1, 3, 4]


@COMMANDS
def test_json_goes_to_stdout(sent, command):
    """Nulls for rows without a result, and why."""
    ended = sent(command, [[1, 0], [-1, 0]], "--rows", "1")

    assert json.loads(ended.out) == {
        "model": "double",
        "version": 3,
        "rows": 2,
        "outputs": {"y": [[2, 0], None]},
        "errors": [
            {"rows": [1, 2], "code": "RESOURCE_EXHAUSTED", "reason": "QUEUE_FULL", "message": "the queue is full"}
        ],
    }


@COMMANDS
def test_csv_has_a_line_for_each_row(sent, tmp_path, command):
    """A failed one is empty."""
    sent(command, [[1, 2], [-1, 0], [3, 4]], "--rows", "1", output=tmp_path / "y.csv")

    with (tmp_path / "y.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["y.0", "y.1"], ["2.0", "4.0"], ["", ""], ["6.0", "8.0"]]


def test_one_output_may_be_a_plain_array(sent, tmp_path):
    """`.npy`, as the input was."""
    assert sent("predict", [[1, 2]], output=tmp_path / "y.npy").code == 0

    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), [[2, 4]])


def test_nothing_at_all_succeeded(sent, tmp_path):
    """There are no outputs to write, only the failed rows."""
    ended = sent("predict", [[-1, 2]], output=tmp_path / "y.npz")

    assert ended.code == 1
    with np.load(tmp_path / "y.npz") as written:
        assert {name: array.tolist() for name, array in written.items()} == {"failed_rows": [0]}


def test_a_drained_stream_goes_on(sent, server, tmp_path):
    """It is opened again, and sends what has no answer."""
    server.log.script = "drain"
    rows = np.ones((500, 2), np.float32)
    ended = sent("stream", rows, "--in-flight", "4", output=tmp_path / "y.npz")

    assert ended.code == 0
    assert ended.err.endswith("0 failed\n")
    with np.load(tmp_path / "y.npz") as written:
        assert np.array_equal(written["y"], rows * 2)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["nobody", "x.npy"], 1, "NOT_FOUND: no such model"),
        (["double", "x.npy", "--version", "9"], 1, "the model 'double' has no version '9'"),
        (["double"], 2, "Missing argument '[NAME=]FILE...'"),
        (
            ["double", "x.npy", "--deadline", "0"],
            2,
            "Invalid value for '--deadline': 0 is not a positive number of seconds",
        ),
        (["double", "x.npy", "--output", "y.txt"], 2, "y.txt: results are written as .npz, .npy, .json, .csv"),
        (["double", "x.npy", "--output", "nowhere/y.npz"], 2, "nowhere/y.npz: there is no folder nowhere"),
        (["many", "x.npy"], 2, "x.npy: the model takes a, b, and the file does not say which one it is for"),
    ],
)
def test_what_cannot_be_sent_is_one_sentence(forebay, server, tmp_path, monkeypatch, arguments, code, sentence):
    """Before anything is sent."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.ones((1, 2), np.float32))
    ended = forebay("predict", "--address", server.address, *arguments)

    assert (ended.code, ended.out) == (code, "")
    assert ended.err.startswith(f"forebay: {sentence}")
    assert ended.err.count("\n") == 1
    assert not any(type(request).__name__ == "PredictRequest" for request in server.log.requests)


def test_models_are_listed(forebay, server):
    """With what they take and give."""
    ended = forebay("models", "--address", server.address)

    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[0].split() == ["MODEL", "VERSION", "STATE", "ENGINE", "INPUTS", "OUTPUTS", "BATCH"]
    assert lines[1].split() == (
        ["double", "3", "(default)", "ready", "synthetic", "x", "FP32[?,", "2]", "y", "FP32[?,", "2]", "8"]
    )
    assert [line.split()[0] for line in lines[1:]] == ["double", "echo", "many", "slow"]


def test_a_model_is_shown_with_its_statistics(forebay, server):
    """In the units of people."""
    ended = forebay("models", "double", "--address", server.address)

    facts = dict(line[2:].split(maxsplit=1) for line in ended.out.splitlines()[1:] if len(line.split()[0]) > 1)
    assert ended.out.splitlines()[0] == "double version 3"
    assert facts["labels"] == "stable"
    assert facts["requests"] == "10 OK"
    assert facts["predicted"] == "4: 2 ms"
    assert "  request time p50 100 ms, p90 200 ms, p99 1e+03 ms" in ended.out


@pytest.mark.parametrize(
    ("service", "code", "word"),
    [("", 0, "SERVING"), ("model/slow", 1, "NOT_SERVING"), ("model/nobody", 1, "SERVICE_UNKNOWN")],
)
def test_health_is_an_exit_code(forebay, server, service, code, word):
    """For probes: 0 only if it serves."""
    assert forebay("health", service, "--address", server.address) == (code, f"{word}\n", "")
