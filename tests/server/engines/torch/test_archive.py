"""Reading packages without torch: what is none, what is damaged, what is of something else."""

import json
import zipfile

import pytest

from forebay_server.engines.base import ModelLoadError
from forebay_server.engines.torch import archive, profile
from tests.server.engines.torch.packages import metadata_like, profile_like, write_package


def test_a_package_is_read(tmp_path):
    """The positive control: its metadata and its profile."""
    metadata = metadata_like(profile_like())
    package = archive.read(write_package(tmp_path / "model.pt2", metadata))
    assert (package.metadata, package.profile) == (metadata, profile_like())


def test_a_package_without_an_outer_folder(tmp_path):
    """Older archives have no folder of the package's name around all."""
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as written:
        written.writestr("data/aotinductor/model/abc_metadata.json", json.dumps(metadata_like(profile_like())))
    assert archive.read(path).profile == profile_like()


def refusal(path):
    with pytest.raises(ModelLoadError) as caught:
        archive.read(path)
    return str(caught.value)


def test_something_else(tmp_path):
    """Bytes that are no archive."""
    path = tmp_path / "model.pt2"
    path.write_bytes(b"not a package" * 100)
    assert refusal(path) == f"{path}: not a torch package, or not all of one"


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_the_beginning_of_a_package(tmp_path, part):
    """A package that was cut off."""
    path = write_package(tmp_path / "model.pt2", metadata_like())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    assert refusal(path) == f"{path}: not a torch package, or not all of one"


def test_a_damaged_package(tmp_path):
    """A byte of the code is another: torch would load it all the same."""
    path = write_package(tmp_path / "model.pt2", metadata_like())
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"\x7fELF") + 100] ^= 1
    path.write_bytes(whole)
    damaged = "model/data/aotinductor/model/abc.wrapper.so"
    assert refusal(path) == f"{path}: damaged: {damaged} is not what was written"


def test_an_exported_program(tmp_path):
    """The same suffix, but nothing compiled in it."""
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as written:
        written.writestr("model/models/model.json", "{}")
    assert refusal(path) == f"{path}: an exported program, which is not compiled yet; `forebay compile` does that"


def test_another_archive(tmp_path):
    """An archive of something else."""
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as written:
        written.writestr("README", "hello")
    assert refusal(path) == f"{path}: not a torch package: nothing compiled is in it"


def test_several_models(tmp_path):
    """Which of them is meant is not guessed."""
    more = ["data/aotinductor/second/abc_metadata.json"]
    path = write_package(tmp_path / "model.pt2", metadata_like(), more=more)
    assert refusal(path) == f"{path}: it holds model, second, but one model called 'model' is served"


@pytest.mark.parametrize("text", ["nothing", "[]", '{"AOTI_DEVICE_KEY": 3}', b"\xff\xfe"])
def test_metadata_that_are_none(tmp_path, text):
    """Metadata are a JSON object of texts."""
    path = write_package(tmp_path / "model.pt2", text)
    assert refusal(path).startswith(f"{path}: its metadata can't be read: ")


def test_a_package_without_a_profile(tmp_path):
    """One that was made without `forebay compile` doesn't say what its batches may be."""
    path = write_package(tmp_path / "model.pt2", metadata_like(**{profile.KEY: None}))
    assert refusal(path) == (
        f"{path}: it doesn't say what it takes, and would take batches of any size; make it with `forebay compile`"
    )


def test_a_profile_of_another_format(tmp_path):
    """One of a later Forebay."""
    text = profile.encode(profile_like()).replace('"format":1', '"format":7')
    path = write_package(tmp_path / "model.pt2", metadata_like(**{profile.KEY: text}))
    assert refusal(path) == f"{path}: its profile has the format 7, not 1; make it again with `forebay compile`"
