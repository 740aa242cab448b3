"""Which version a caller means."""

import pytest

from forebay_server.config.tree import ModelConfig
from forebay_server.errors import ModelFailed, ModelLoading, ModelNotFound, VersionNotFound
from forebay_server.models.catalogue import Catalogue
from forebay_server.models.served import ModelState, Served


@pytest.fixture
def catalogue():
    return Catalogue()


def add(catalogue, version, state=ModelState.READY, labels=(), name="m"):
    served = Served(name, version, ModelConfig(), labels)
    catalogue.add(served)
    catalogue.set_state(served, state)
    return served


def test_versions_by_number_and_label(catalogue):
    """A number means that version, a label the one that it is on."""
    one, two = add(catalogue, 1, labels=["old"]), add(catalogue, 2)
    assert catalogue.resolve("m", "1") is one
    assert catalogue.resolve("m", "2") is two
    assert catalogue.resolve("m", "old") is one
    assert catalogue.versions("m") == [two, one]
    assert catalogue.labels("m") == {"old": 1}


def test_no_version_is_the_newest_ready_one(catalogue):
    """Without the label `stable`, the highest ready number is meant."""
    one = add(catalogue, 1)
    two = add(catalogue, 2, ModelState.WARMING)
    assert catalogue.resolve("m", "") is one
    catalogue.set_state(two, ModelState.READY, ready_time=5.0)
    assert catalogue.resolve("m", "") is two
    assert (catalogue.default_version("m"), two.ready_time) == (2, 5.0)


def test_no_version_is_stable_if_that_is_set(catalogue):
    """The label `stable` wins, also when its version is not ready."""
    one = add(catalogue, 1, labels=["stable"])
    add(catalogue, 2)
    assert catalogue.resolve("m", "") is one
    catalogue.set_state(one, ModelState.FAILED)
    with pytest.raises(ModelFailed, match="version 1 of the model 'm' has failed"):
        catalogue.resolve("m", "")
    assert catalogue.default_version("m") == 0


@pytest.mark.parametrize("version", ["3", "01", "-1", "new", "1.0", "9" * 5000, "²"])
def test_unknown_versions(catalogue, version):
    """Neither a version nor a label: said so."""
    add(catalogue, 1)
    with pytest.raises(VersionNotFound):
        catalogue.resolve("m", version)


@pytest.mark.parametrize(
    ("state", "error"),
    [
        (ModelState.LOADING, ModelLoading),
        (ModelState.WARMING, ModelLoading),
        (ModelState.FAILED, ModelFailed),
        (ModelState.UNLOADING, ModelFailed),
        (ModelState.UNLOADED, ModelFailed),
    ],
)
def test_versions_that_are_not_ready(catalogue, state, error):
    """Each state has its refusal, by number and without one."""
    add(catalogue, 1, state)
    for version in ("1", ""):
        with pytest.raises(error):
            catalogue.resolve("m", version)
    with pytest.raises(ModelNotFound):
        catalogue.resolve("n", "")


def test_labels_move_and_versions_go(catalogue):
    """A label moves at once; a removed version takes its labels with it, the last one the model."""
    one, two = add(catalogue, 1, labels=["stable"]), add(catalogue, 2)
    catalogue.set_label("m", "stable", 2)
    assert catalogue.resolve("m", "stable") is catalogue.resolve("m", "") is two
    assert (one.labels, two.labels) == ((), ("stable",))
    with pytest.raises(VersionNotFound):
        catalogue.set_label("m", "stable", 3)
    catalogue.remove(two)
    assert catalogue.labels("m") == {}
    assert catalogue.resolve("m", "") is one
    catalogue.remove(one)
    assert catalogue.names() == []
    with pytest.raises(ModelNotFound):
        catalogue.set_label("m", "stable", 1)


def test_models_do_not_touch_each_other(catalogue):
    """A change of one model leaves the routes of the others alone."""
    a, b = add(catalogue, 1, name="a"), add(catalogue, 1, name="b")
    catalogue.set_state(a, ModelState.UNLOADED)
    assert catalogue.resolve("b", "") is b
    assert catalogue.all() == [a, b]


def test_listeners_hear_every_change(catalogue):
    """Whoever subscribes is called with the version that changed, in its new state."""
    heard = []
    catalogue.subscribe(lambda served: heard.append((served.version, served.state, served.state_message)))
    served = add(catalogue, 1, ModelState.LOADING)
    catalogue.set_state(served, ModelState.FAILED, "no file")
    assert heard == [(1, ModelState.LOADING, "")] * 2 + [(1, ModelState.FAILED, "no file")]
