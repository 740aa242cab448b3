"""No pickle anywhere: a file or a message must never become code."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}
FILES = sorted(path for folder in ("server", "clients") for path in (ROOT / folder).rglob("*.py"))


def named(node):
    """The modules and names that a node imports, or that it calls an importer with."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    if isinstance(node, ast.Call):
        function = ast.unparse(node.func)
        if function.endswith(("import_module", "__import__")):
            return [str(argument.value) for argument in node.args if isinstance(argument, ast.Constant)]
        return [function]
    return []


def offences(source):
    """What in a module could unpickle, as (line, text)."""
    for node in ast.walk(ast.parse(source)):
        for name in named(node):
            if name.split(".")[0] in MODULES or name == "torch.load":
                yield node.lineno, name
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            yield node.lineno, "allow_pickle"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_can_unpickle(path):
    """No module of server or clients imports a pickling module or allows pickles."""
    assert list(offences(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.numpy_pickle as x",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "import numpy\nnumpy.load('x', allow_pickle=True)",
        "import numpy\nnumpy.load('x', allow_pickle=flag)",
        "import importlib\nimportlib.import_module('dill')",
        "__import__('marshal')",
    ],
)
def test_the_check_sees(source):
    """Each way to unpickle is found."""
    assert list(offences(source)) != []


def test_the_check_lets_the_rest_pass():
    """Refusing pickles and loading torch programs is fine."""
    assert list(offences("import numpy, torch\nnumpy.load('x', allow_pickle=False)\ntorch.export.load('x')")) == []
