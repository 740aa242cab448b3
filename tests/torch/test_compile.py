"""`forebay compile`: what it refuses, and that it leaves alone what was there."""

import pytest
import torch

from forebay_server.cli import main
from tests.torch.models import Scale


@pytest.fixture
def exported(tmp_path):
    """Exports `y = 2 x` for a batch from 1 to 16 rows, or for just two."""

    def export(*, dynamic=True, model=None):
        rows = torch.export.Dim("rows", min=1, max=16)
        shapes = {"x": {0: rows}} if dynamic else None
        program = torch.export.export(model or Scale(2).eval(), (torch.ones(2, 4),), dynamic_shapes=shapes)
        path = tmp_path / "program.pt2"
        torch.export.save(program, path)
        return path

    return export


def refused(capsys, *arguments):
    """What the command says when it can't."""
    code = main(["compile", *(str(argument) for argument in arguments)])
    said = capsys.readouterr().err.splitlines()[-1]
    assert code == 2, said
    return said


def test_what_it_refuses(exported, tmp_path, capsys, mixed):
    """One clear sentence each, and the package that was there stays."""
    output = tmp_path / "model.pt2"
    output.write_bytes(b"the package before")
    program = exported()
    assert "--max-batch-size: 17 is above 16, which the program" in refused(
        capsys, program, "-o", output, "--max-batch-size", 17
    )
    assert "--outputs: 1 different names are needed" in refused(capsys, program, "-o", output, "--outputs", "a,b")
    assert "it is compiled already" in refused(capsys, mixed.path, "-o", output)
    assert "no such folder" in refused(capsys, program, "-o", tmp_path / "nowhere" / "model.pt2")
    assert "the name of a package ends with .pt2" in refused(capsys, program, "-o", tmp_path / "model.onnx")
    assert "has no cuda here" in refused(capsys, program, "-o", output, "--device", "cuda")
    fixed = exported(dynamic=False)
    assert "the program has no batch dimension" in refused(capsys, fixed, "-o", output, "--max-batch-size", 4)
    program.write_bytes(program.read_bytes()[:500])
    assert "not an exported program" in refused(capsys, program, "-o", output)
    assert output.read_bytes() == b"the package before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt2", "program.pt2"]


def test_a_program_that_keeps_state(exported, tmp_path, capsys):
    """Callers would see each other through it."""

    class Counter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen.add_(1)
            return x + self.seen

    said = refused(capsys, exported(model=Counter()), "-o", tmp_path / "model.pt2")
    assert "the program changes its own state (seen), so callers would see each other" in said
