"""`forebay compile` as far as it goes without torch; `tests/torch` has the rest."""

import shutil

import pytest

from tests.server.engines.torch.absent import hide_torch


@pytest.fixture
def program(tmp_path):
    """Something to compile."""
    path = tmp_path / "program.pt2"
    path.write_bytes(b"not looked at")
    return path


def test_what_is_wrong_with_the_arguments(forebay, program, tmp_path):
    """Said before anything is imported."""
    output = tmp_path / "model.onnx"
    assert forebay("compile", program, "-o", output).err == f"forebay: {output}: the name of a package ends with .pt2\n"
    nowhere = tmp_path / "nowhere"
    assert forebay("compile", program, "-o", nowhere / "model.pt2").err == f"forebay: {nowhere}: no such folder\n"
    code, _, said = forebay("compile", tmp_path / "missing.pt2", "-o", tmp_path / "model.pt2")
    assert (code, "does not exist" in said) == (2, True)


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler here")
def test_without_torch(forebay, program, tmp_path, monkeypatch):
    """The step that failed, and what to install."""
    hide_torch(monkeypatch)
    code, out, said = forebay("compile", program, "-o", tmp_path / "model.pt2")
    assert (code, out) == (2, "")
    assert said.splitlines() == [
        "importing torch ...",
        "forebay: torch can't be imported (pip install 'forebay[torch]'): No module named 'torch'",
    ]


def test_without_a_compiler(forebay, program, tmp_path, monkeypatch):
    """Said at once, not after minutes."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    code, _, said = forebay("compile", program, "-o", tmp_path / "model.pt2")
    assert code == 2
    assert said == "forebay: compiling takes a C++ compiler, and there is no no-such-compiler here (CXX names it)\n"
