"""The torch engine with the real torch: `make test-torch` has an environment for it. Elsewhere nothing is collected."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import call, front_end, serve  # noqa: F401  # fixtures

collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["test_*.py"]

ROWS = 8  # the largest batch of the packages here


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Where the packages of all tests lie, and what torch keeps while it compiles."""
    return tmp_path_factory.mktemp("packages")


class Compiled:
    """What `forebay compile` has made of a program, and what it said."""

    def __init__(self, path: Path, said: str, program: Path) -> None:
        self.path = path
        self.said = said
        self.program = program


def compile_with(program: Path, output: Path, *options: str) -> subprocess.CompletedProcess:
    """Runs `forebay compile` in a process of its own."""
    command = [sys.executable, "-m", "forebay_server", "compile", str(program), "-o", str(output), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)


@pytest.fixture(scope="session")
def mixed(folder) -> Compiled:
    """A package of every kind of tensor, with a batch of 1 to 8 rows and sequences of 2 to 16 tokens."""
    import torch  # noqa: PLC0415  # only where it is installed

    from tests.torch.models import Mixed  # noqa: PLC0415  # see above

    rows, tokens = torch.export.Dim("rows", min=1, max=ROWS), torch.export.Dim("tokens", min=2, max=16)
    shapes = {name: {0: rows} for name in Mixed.INPUTS} | {"ids": {0: rows, 1: tokens}, "mask": {0: rows, 1: tokens}}
    exported = torch.export.export(Mixed().eval(), (), Mixed.example(4, 5), dynamic_shapes=shapes)
    program = folder / "mixed-exported.pt2"
    torch.export.save(exported, program)
    ended = compile_with(program, folder / "mixed.pt2")
    assert ended.returncode == 0, ended.stderr
    return Compiled(folder / "mixed.pt2", ended.stdout, program)
