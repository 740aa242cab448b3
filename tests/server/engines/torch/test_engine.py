"""The torch engine as far as it goes without torch; `tests/torch` has the rest."""

import pytest

from forebay_server.engines.base import ModelLoadError
from forebay_server.engines.torch import TorchEngine
from tests.server.engines.torch.absent import hide_torch
from tests.server.engines.torch.packages import metadata_like, write_package


@pytest.fixture
def without_torch(monkeypatch):
    """There is no torch, whether it is installed or not."""
    hide_torch(monkeypatch)


def refusal(path, settings):
    engine = TorchEngine(path, settings)
    with pytest.raises(ModelLoadError) as caught:
        engine.load()
    engine.close()
    return str(caught.value)


def test_without_torch(tmp_path, settings, without_torch):
    """A good package can't be served, and the sentence says what to install."""
    path = write_package(tmp_path / "model.pt2", metadata_like())
    assert refusal(path, settings()) == (
        "torch can't be imported (pip install 'forebay[torch]'): No module named 'torch'"
    )


def test_a_bad_package_is_refused_before_torch_is_imported(tmp_path, settings, without_torch):
    """What is wrong with the file is said, not what else is missing."""
    path = tmp_path / "model.pt2"
    path.write_bytes(b"nothing")
    assert refusal(path, settings()) == f"{path}: not a torch package, or not all of one"


def test_options_of_a_package(tmp_path, settings):
    """Only those that there are."""
    path = write_package(tmp_path / "model.pt2", metadata_like())
    assert refusal(path, settings(options={"colour": 1})) == ("the engine 'torch' has no option colour; it has graphs")
    assert refusal(path, settings(options={"graphs": 1})) == "engine option 'graphs' must be a bool, not 1"


def test_a_factory_without_torch(tmp_path, settings, without_torch):
    """The operator's own file imports it first."""
    (tmp_path / "net_without.py").write_text("import torch\n")
    path = f"{tmp_path}/net_without.py:make"
    assert refusal(path, settings()) == f"{path}: no module 'torch' in {tmp_path}"
