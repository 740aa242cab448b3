"""Rows from files, in the types and shapes that a model wants."""

import json

import ml_dtypes
import numpy as np
import pytest

from forebay_client import ModelVersion, TensorSpec
from forebay_server.cli.rows import read_rows
from forebay_server.errors import ConfigError

TYPES = {
    "FP32": np.dtype(np.float32),
    "FP16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "INT64": np.dtype(np.int64),
    "UINT8": np.dtype(np.uint8),
    "UINT64": np.dtype(np.uint64),
    "BOOL": np.dtype(bool),
    "BYTES": np.dtype(object),
}


def version(*specs, batched=True):
    """A model with inputs `(name, type, shape)`."""
    return ModelVersion(
        version=1,
        state="ready",
        state_message="",
        engine="e",
        inputs=tuple(
            TensorSpec(name=name, dtype=TYPES[kind], data_type=kind, shape=shape, batched=batched)
            for name, kind, shape in specs
        ),
        outputs=(),
        max_batch_size=8,
        best_batch_size=0,
        max_delay=0,
        unbatched_because="",
        instances=1,
        run_mode="worker",
        ready_time=None,
    )


VECTOR = version(("x", "FP32", (-1, 2)))
TWO = version(("age", "INT64", (-1,)), ("x", "FP32", (-1, 2)))


@pytest.fixture
def file(tmp_path):
    """Writes a file of any kind and gives its path."""

    def write(name, content):
        path = tmp_path / name
        if name.endswith(".npy"):
            np.save(path, content)
        elif name.endswith(".npz"):
            np.savez(path, **content)
        elif name.endswith(".json"):
            path.write_text(json.dumps(content))
        else:
            path.write_text(content)
        return str(path)

    return write


def read(model, *given):
    rows = read_rows(model, given)
    return {name: array.tolist() for name, array in rows.request(0, rows.total).items()}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.npy", np.array([[1, 2], [3, 4]], np.float32)),
        ("x.npy", np.array([[1, 2], [3, 4]])),
        ("x.npz", {"x": np.array([[1.0, 2], [3, 4]])}),
        ("x.npz", {"arr_0": np.array([[1.0, 2], [3, 4]])}),
        ("x.json", [[1, 2], [3, 4]]),
        ("x.json", {"x": [[1, 2], [3, 4]]}),
        ("x.json", [{"x": [1, 2]}, {"x": [3, 4]}]),
        ("x.jsonl", '{"x": [1, 2]}\n\n{"x": [3, 4]}\n'),
        ("x.jsonl", "[1, 2]\n[3, 4]\n"),
        ("x.csv", "1,2\n3,4\n"),
        ("x.csv", "x.0,x.1\n1,2\n3,4.0\n"),
        ("x.csv", "sepal width,sepal length\n1,2\n3,4\n"),
        ("x.csv", '"x[0]","x[1]"\n1,2\n3,4\n'),
    ],
)
def test_one_input_from_any_kind_of_file(file, name, content):
    """The same rows in the model's type."""
    rows = read_rows(VECTOR, [file(name, content)])

    assert rows.arrays["x"].tolist() == [[1, 2], [3, 4]]
    assert rows.arrays["x"].dtype == np.float32
    assert (rows.total, rows.batched) == (2, True)
    assert rows.request(1, 2)["x"].tolist() == [[3, 4]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "age,x.0,x.1\n30,1,2\n40,3,4\n"),
        ("t.json", {"age": [30, 40], "x": [[1, 2], [3, 4]]}),
        ("t.json", [{"age": 30, "x": [1, 2]}, {"age": 40, "x": [3, 4]}]),
        ("t.npz", {"age": np.array([30, 40], np.int32), "x": np.array([[1, 2], [3, 4]])}),
    ],
)
def test_several_inputs_by_their_names(file, name, content):
    """Each in its own type."""
    assert read(TWO, file(name, content)) == {"age": [30, 40], "x": [[1, 2], [3, 4]]}


def test_a_file_for_each_input(file):
    """`name=file`."""
    age, x = file("a.npy", np.array([30, 40])), file("b.csv", "1,2\n3,4\n")

    assert read(TWO, f"age={age}", f"x={x}") == {"age": [30, 40], "x": [[1, 2], [3, 4]]}


@pytest.mark.parametrize(
    ("kind", "shape", "name", "content", "expected"),
    [
        ("BYTES", (-1,), "x.csv", "x\nhello\nworld\n", ["hello", "world"]),
        ("BYTES", (-1,), "x.json", ["a", "b"], ["a", "b"]),
        ("BYTES", (-1, 1), "x.csv", "a\nb\n", [["a"], ["b"]]),
        ("BYTES", (-1,), "x.csv", "a\nb\n", ["a", "b"]),
        ("BYTES", (-1,), "x.csv", "a" * 200_000 + "\n", ["a" * 200_000]),
        ("BYTES", (-1,), "x.json", ["a\0"], ["a\0"]),
        ("FP32", (-1,), "x.csv", "1\n2\n", [1, 2]),
        ("BOOL", (-1, 2), "x.csv", "true,0\nFALSE,1\n", [[True, False], [False, True]]),
        ("INT64", (-1, 1), "x.csv", "9007199254740993\n", [[9007199254740993]]),
        ("UINT8", (-1, 2), "x.json", [[0, 255]], [[0, 255]]),
        ("UINT64", (-1, 2), "x.json", [[2**64 - 1, 1]], [[2**64 - 1, 1]]),
        ("BF16", (-1, 1), "x.json", [[0.5]], [[0.5]]),
        ("BF16", (-1, 1), "x.npy", np.array([[0.5]], ml_dtypes.bfloat16).view("V2"), [[0.5]]),
        ("FP32", (-1, 1), "x.json", [[float("nan")], [None]], None),
        ("FP32", (-1, 2, 2), "x.csv", "1,2,3,4\n", [[[1, 2], [3, 4]]]),
        ("FP32", (-1, -1, 2), "x.csv", "1,2,3,4\n", [[[1, 2], [3, 4]]]),
        ("FP32", (-1, 3), "x.npy", np.array([1.0, 2, 3]), [[1, 2, 3]]),
        ("FP32", (-1, 1), "x.npy", np.array([1.0, 2, 3]), [[1], [2], [3]]),
    ],
)
def test_types_and_shapes_are_those_of_the_model(file, kind, shape, name, content, expected):
    """Flat rows are folded, a row alone is a batch of one, and whole numbers stay exact."""
    rows = read_rows(version(("x", kind, shape)), [file(name, content)])

    assert rows.arrays["x"].dtype == TYPES[kind]
    if expected is not None:
        assert rows.arrays["x"].tolist() == expected


def test_a_model_without_batches_gets_a_request_for_each_row(file):
    """If there is a dimension more than it takes; else the file is one request."""
    model = version(("x", "FP32", (2, 2)), batched=False)
    several = read_rows(model, [file("a.npy", np.arange(12.0).reshape(3, 2, 2))])
    one = read_rows(model, [file("b.npy", np.arange(4.0).reshape(2, 2))])

    assert (several.total, several.request(2, 3)["x"].tolist()) == (3, [[8, 9], [10, 11]])
    assert (one.total, one.request(0, 1)["x"].tolist()) == (1, [[0, 1], [2, 3]])


@pytest.mark.parametrize(
    ("model", "name", "content", "message"),
    [
        (VECTOR, "x.txt", "1", r"rows are read from \.npy, \.npz, \.json, \.jsonl, \.csv files"),
        (VECTOR, "x.csv", "", "there are no rows"),
        (VECTOR, "x.csv", "1,2\n3\n", "row 1 has 1 columns, and row 0 has 2"),
        (VECTOR, "x.csv", "1,2\n3,four\n", "row 1: 'four' is not a FP32 value"),
        (TWO, "x.npz", {"y": np.ones(1)}, "the model has no input 'y'; it takes age, x"),
        (VECTOR, "x.csv", "1,2,3\n", r"has the shape \[1, 3\], and the model takes \[-1, 2\]"),
        (VECTOR, "x.json", "text", "expected an object by input name, or a list of rows"),
        (VECTOR, "x.json", [[1, 2], [3]], "the rows of 'x' differ in their shapes"),
        (VECTOR, "x.json", [[[[1, 2]]]], r"the shape \[1, 1, 1, 2\]"),
        (VECTOR, "x.json", [["a", "b"]], "'a' is not a FP32 value"),
        (version(("x", "INT64", (-1,))), "x.json", [None], "row 0: None is not a INT64 value"),
        (VECTOR, "x.json", [{"x": [1, 2]}, {"y": [1, 2]}], "row 1 has other names than row 0"),
        (VECTOR, "x.jsonl", "{", "Expecting property name"),
        (VECTOR, "x.npy", np.array([[1j, 2]]), "takes FP32, not complex128"),
        (VECTOR, "x.npy", np.array([[1e300, 2]]), r"takes FP32, which can't hold 1e\+300"),
        (TWO, "x.csv", "1,2\n", "the model takes age, x, and the file does not say which one it is for"),
        (TWO, "x.json", {"age": [1]}, "nothing is given for the input 'x'; give it x=FILE"),
        (TWO, "x.json", {"age": [1], "x": [[1, 2], [3, 4]]}, "differ in their number of rows: age has 1, x has 2"),
        (version(("x", "UINT64", (-1,))), "x.json", [2**64 - 1, -1], "row 1: -1 is not a UINT64 value"),
        (version(("x", "UINT8", (-1,))), "x.json", [256], "takes UINT8, which can't hold 256"),
        (version(("x", "UINT8", (-1,))), "x.csv", "x\n1\n256\n", "row 1: '256' is not a UINT8 value|can't hold 256"),
        (version(("x", "INT64", (-1,))), "x.json", [1.5], r"takes INT64, which can't hold 1\.5"),
        (version(("x", "INT64", (-1,))), "x.csv", "x\n1\n1.5\n", r"row 1: '1\.5' is not a INT64 value"),
        (version(("x", "BOOL", (-1,))), "x.csv", "x\nyes\n", "row 0: 'yes' is not a BOOL value"),
        (version(("x", "BYTES", (-1,))), "x.json", [1], "takes texts, not 1"),
        (version(("x", "BYTES", (-1,))), "x.json", ["a", None], "takes texts, not null"),
        (version(("x", "BYTES", (-1, 2))), "x.json", [["a", "b"], ["a"]], r'takes texts, not \["a", "b"\]'),
        (version(("x", "BOOL", (-1,))), "x.csv", "true\nFALSE\n1\nyes\n", "row 3: 'yes' is not a BOOL value"),
        (VECTOR, "x.jsonl", "[" * 100_000, "maximum recursion depth"),
    ],
)
def test_what_does_not_fit_is_one_sentence(file, model, name, content, message):
    """It names the file, and the row where one is to blame."""
    path = file(name, content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_rows(model, [path])

    assert "\n" not in str(caught.value)


def test_damaged_archives_are_one_sentence(tmp_path):
    """A `.npz` file that was cut off, or whose bytes have changed."""
    whole = tmp_path / "x.npz"
    np.savez(whole, x=np.ones((5, 2), np.float32))
    data = whole.read_bytes()
    for damaged in (data[: len(data) // 2], data[:200] + bytes(20) + data[220:]):
        (tmp_path / "y.npz").write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"y\.npz: (File is not a zip file|Bad CRC-32)"):
            read_rows(VECTOR, [str(tmp_path / "y.npz")])


def test_pickles_are_not_read(tmp_path):
    """Not even inside numpy's files: they are code."""
    for name in ("x.npy", "x.npz"):
        path = tmp_path / name
        save = np.save if name.endswith("y") else np.savez
        save(path, np.array([{"a": 1}], dtype=object))
        with pytest.raises(ConfigError, match=r"allow_pickle=False|Python objects in dtype"):
            read_rows(VECTOR, [str(path)])


def test_a_file_that_is_not_there_or_of_another_kind_is_said(tmp_path):
    """Suffixes may lie."""
    with pytest.raises(ConfigError, match=r"x\.csv: No such file"):
        read_rows(VECTOR, [str(tmp_path / "x.csv")])
    (tmp_path / "x.npy").write_bytes(b"hello")
    with pytest.raises(ConfigError, match=r"x\.npy: "):
        read_rows(VECTOR, [str(tmp_path / "x.npy")])
    with pytest.raises(ConfigError, match="the model has no input 'y'; it takes x"):
        read_rows(VECTOR, ["y=" + str(tmp_path / "x.npy")])
