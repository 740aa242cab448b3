"""Names of models and labels, and paths that stay inside their root."""

import pytest

from forebay_server.errors import ConfigError
from forebay_server.models import names


@pytest.mark.parametrize("text", ["a", "_x", "Model-1.2_b", "7", "a" * 128])
def test_names(text):
    """Letters, digits, '_', '.' and '-' make a name."""
    assert names.check_name(text) == text


@pytest.mark.parametrize("text", ["", ".", "..", "-a", ".a", "a/b", "a b", "a\n", "ä", "a" * 129, "a\0", "a:b"])
def test_no_names(text):
    """Anything that could be a path, an option or two words is refused."""
    with pytest.raises(ConfigError, match="can't be called"):
        names.check_name(text)


def test_labels_are_not_numbers():
    """A number as a label would be read as a version."""
    assert names.check_label("stable") == "stable"
    with pytest.raises(ConfigError, match="can't be the number 3"):
        names.check_label("3")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("folder/digits.onnx", "digits"),
        ("my.module:predict", "predict"),
        ("folder/file.py:Model.predict", "predict"),
        ("synthetic:base_ms=5", "synthetic"),
        ("synthetic:", "synthetic"),
    ],
)
def test_a_model_without_a_name_gets_that_of_its_path(path, name):
    """The file's stem, the object's name, or the engine's."""
    assert names.name_of(path) == name


def test_a_path_that_makes_no_name_asks_for_one():
    """A file with an odd name needs a name of its own."""
    with pytest.raises(ConfigError, match="give it a name"):
        names.name_of("my model.onnx")


def test_paths_stay_inside(tmp_path):
    """Neither '..', nor an absolute path, nor a link leads out of the root."""
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "good").symlink_to(root / "sub")
    (root / "bad").symlink_to(tmp_path)
    assert names.inside(root, "sub/m.onnx") == root.resolve() / "sub/m.onnx"
    assert names.inside(root, "sub/../m.onnx") == root.resolve() / "m.onnx"
    assert names.inside(root, "good/m.onnx") == root.resolve() / "sub/m.onnx"
    for path in ("../m.onnx", "sub/../../m.onnx", "/etc/passwd", "bad/m.onnx", "", ".", "a\0b"):
        with pytest.raises(ConfigError):
            names.inside(root, path)
