"""The rules of health, without gRPC."""

import pytest

from forebay_server.services.vitals import HealthBoard, Serving, Vitals

UP, DOWN, GONE = Serving.SERVING, Serving.NOT_SERVING, Serving.SERVICE_UNKNOWN


@pytest.fixture
def board():
    return HealthBoard()


@pytest.fixture
def vitals(board):
    return Vitals(board, services=["models"], inference=["inference"], startup_models=["a", "b"])


def statuses(board):
    return {name: status == UP for name, status in board.all().items()}


def test_nothing_serves_before_the_models(board, vitals):
    """At start all names are there, and none serves."""
    assert statuses(board) == dict.fromkeys(["", "models", "inference", "model/a", "model/b"], False)


def test_server_serves_when_every_startup_model_is_ready(board, vitals):
    """One of two is not enough."""
    vitals.model("a", ready=True)
    assert statuses(board) == {"": False, "models": False, "inference": False, "model/a": True, "model/b": False}

    vitals.model("b", ready=True)

    assert all(statuses(board).values())


def test_later_failure_turns_the_model_only(board, vitals):
    """The server stays in the balancer while it can serve something."""
    vitals.model("a", ready=True)
    vitals.model("b", ready=True)

    vitals.model("a", ready=False)

    assert [name for name, serving in statuses(board).items() if not serving] == ["model/a"]


def test_no_model_left_turns_inference(board, vitals):
    """What depends on models does not serve without one."""
    vitals.model("a", ready=True)
    vitals.model("b", ready=True)
    vitals.model("a", ready=False)

    vitals.stuck("b", stuck=True)

    assert statuses(board) == {"": True, "models": True, "inference": False, "model/a": False, "model/b": False}


def test_stuck_engine_comes_back(board, vitals):
    """A model serves again when its engine moves."""
    vitals.model("a", ready=True)
    vitals.stuck("a", stuck=True)
    assert board.get("model/a") == DOWN

    vitals.stuck("a", stuck=False)

    assert board.get("model/a") == UP


def test_draining_turns_everything_for_good(board, vitals):
    """Nothing serves again after drain."""
    vitals.model("a", ready=True)
    vitals.drain()
    vitals.model("b", ready=True)

    assert set(board.all().values()) == {DOWN}


def test_model_that_is_gone(board, vitals):
    """An unloaded model leaves the board, and is no longer waited for."""
    vitals.model("a", ready=True)

    vitals.gone("b")

    assert board.get("model/b") == GONE
    assert board.get("") == UP


def test_server_without_models_serves(board):
    """Nothing to wait for."""
    Vitals(board, inference=["inference"])

    assert statuses(board) == {"": True, "inference": True}


def test_subscribers_hear_changes_only(board):
    """The same status again is no news; leaving the board is."""
    heard = []
    board.subscribe(lambda name, status: heard.append((name, status)))
    for status in (DOWN, DOWN, UP, GONE, GONE):
        board.set("x", status)

    assert heard == [("x", DOWN), ("x", UP), ("x", GONE)]


def test_service_that_lacks_something(board, vitals):
    """It alone turns, as often as it has to; draining is stronger."""
    vitals.model("a", ready=True)
    vitals.model("b", ready=True)
    heard = []
    board.subscribe(lambda name, status: heard.append((name, status)))

    for able in (True, False, False, True):
        vitals.able("models", able=able)

    assert heard == [("models", DOWN), ("models", UP)]
    vitals.able("models", able=False)
    vitals.drain()
    vitals.able("models", able=True)
    assert set(board.all().values()) == {DOWN}
