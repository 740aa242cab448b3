"""`forebay check` on models: what it finds out, and what it says of those that can't be served."""

import re

import pytest


@pytest.fixture
def facts(forebay):
    """Runs `forebay check` and gives what it says about the model, by name."""

    def run(*arguments):
        ended = forebay("check", *arguments)
        assert (ended.code, ended.err) == (0, "")
        lines = [line.strip().split(maxsplit=1) for line in ended.out.splitlines()]
        return {line[0]: line[1].strip() for line in lines if len(line) == 2}

    return run


def test_a_model_is_described(facts):
    """What it takes and gives, how it is batched, where it runs."""
    found = facts("synthetic:base_ms=2,shape=3x2", "--max-batch-size", "4", "--name", "syn", "--instances", "2")

    assert found["model"] == "syn version 1"
    assert found["engine"] == "synthetic 1 on cpu, 2 instances"
    assert (found["inputs"], found["outputs"]) == ("x FP32[?, 3, 2]", "y FP32[?, 3, 2]")
    assert re.fullmatch("at most 4 rows, best [124], delay 0 ms", found["batches"])
    assert found["rows"] == "compared alone and in a batch: they do not see each other"
    assert found["runs"] == "in a worker thread for each instance"
    assert found["3x2"].split()[0] in {"1", "2", "4"}


def test_rows_that_see_each_other_are_told(facts):
    """With the reason that the server would give."""
    found = facts("synthetic:coupled=true")

    assert found["rows"] == "not batched together"
    assert found["batches"].startswith("of one row: ")


def test_a_model_that_cannot_be_served_does_not_hide_the_others(forebay, tmp_path):
    """Each is looked at, and the exit code tells that one is bad."""
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    ended = forebay("check", tmp_path / "bad.onnx", "synthetic:")

    assert ended.code == 1
    assert ended.err.endswith("forebay: 1 of 2 models can't be served\n")
    assert f"can't be served: {tmp_path / 'bad.onnx'}" in ended.out
    assert "synthetic 1 on cpu" in ended.out


def test_two_models_of_one_name_and_version_cannot_be_served(forebay, tmp_path):
    """The server would not start with them, so a check must not pass; with two versions it does."""
    (tmp_path / "m.onnx").write_bytes(_identity())
    ended = forebay("check", tmp_path / "m.onnx", tmp_path / "m.onnx")
    assert (ended.code, ended.err) == (2, "forebay: two models are called 'm' and have the version 1\n")

    ended = forebay("check", tmp_path / "m.onnx", tmp_path / "m.onnx", "--set", "models.1.version=2")
    assert (ended.code, ended.err) == (0, "")


def test_settings_beside_the_model_are_told_apart(forebay, tmp_path):
    """They are weaker than the server's, and their source is their file."""
    (tmp_path / "m.onnx").write_bytes(_identity())
    (tmp_path / "m.toml").write_text("[batching]\nmax_delay_ms = 3\nmax_batch_size = 8\n")
    ended = forebay("check", tmp_path / "m.onnx", "--max-batch-size", "4")

    assert ended.code == 0
    lines = {line.split()[0]: line.split()[1:] for line in ended.out.splitlines() if line.startswith(" models.0.")}
    assert lines["models.0.batching.max_delay_ms"][:3] == ["3.0", "ms", str(tmp_path / "m.toml")]
    assert lines["models.0.batching.max_batch_size"][:2] == ["4", "--max-batch-size"]
    assert lines["models.0.engine.instances"][:2] == ["1", "default"]


def _identity():
    """A small ONNX model."""
    from onnx import TensorProto, helper  # noqa: PLC0415  # heavy, and one test's own

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()
