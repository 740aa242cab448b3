"""A server as an object: start, close and drain in any order, from any state."""

import threading

import pytest

from forebay_server.app.hosting import Hosting, cache_directory
from forebay_server.app.server import Server
from forebay_server.config.tree import Config, EngineConfig, ExposureConfig, ModelConfig, ServerConfig
from forebay_server.errors import ConfigError


def config(tmp_path, *models, wire="grpc.aio"):
    """Settings for a server on any free port."""
    return Config(
        server=ServerConfig(wire=wire, public=ExposureConfig(address="127.0.0.1:0"), cache_dir=str(tmp_path)),
        models=list(models) or [ModelConfig(path="synthetic:")],
    )


def test_closing_twice_or_before_the_start_is_harmless(tmp_path):
    """`close` may come at any time, and more than once."""
    server = Server(config(tmp_path))
    server.close()
    server.start()
    assert server.wait_ready(20)
    server.close()
    server.close()


def test_closing_while_a_model_loads(tmp_path):
    """A loader in the middle of it is left alone and ends by itself, without a word."""
    (tmp_path / "app_slow.py").write_text(
        "import time\nfrom forebay_server.engines.python import model\n"
        "@model(inputs={'x': ('FP32', (-1, 4))}, outputs={'y': ('FP32', (-1, 4))})\n"
        "class Slow:\n"
        "    def load(self):\n        time.sleep(0.5)\n"
        "    def infer(self, x):\n        return x\n"
    )
    server = Server(config(tmp_path, ModelConfig(path=f"python:{tmp_path / 'app_slow.py'}:Slow")))
    server.start()
    server.close()
    (loader,) = [thread for thread in threading.enumerate() if thread.name == "forebay-loader"] or [None]
    if loader is not None:
        loader.join(5)
        assert not loader.is_alive()


def test_an_idle_server_drains_at_once(tmp_path):
    """Without requests nothing is left."""
    server = Server(config(tmp_path))
    server.start()
    assert server.wait_ready(20)
    assert server.drain() == 0


def test_a_model_that_can_not_be_loaded_is_told(tmp_path):
    """The failure is a sentence, and whoever asked to be told is."""
    told = []
    bad = ModelConfig(path="synthetic:nonsense=1")
    server = Server(config(tmp_path, bad), on_failed_start=told.append)
    server.start()
    assert not server.wait_ready(20)
    assert "nonsense" in server.start_failure
    server.close()
    assert told == [server.start_failure]


def test_names_of_models_must_differ():
    """Two models of one name and version are refused; two versions of one name are not."""
    one = ModelConfig(path="synthetic:", name="a")
    two = ModelConfig(path="synthetic:", name="a", version=2, engine=EngineConfig(instances=2))
    assert Hosting.names_of([one, two]) == ["a", "a"]
    with pytest.raises(ConfigError, match="two models are called 'a'"):
        Hosting.names_of([one, one])


def test_where_costs_are_kept(monkeypatch, tmp_path):
    """As set, else in the user's cache directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory("") == tmp_path / "forebay"
    assert cache_directory("/x") != cache_directory("")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory("") == tmp_path / ".cache" / "forebay"


def test_a_user_without_a_home_can_serve(monkeypatch):
    """As in a container that runs under a number that nobody knows: costs are not kept then. Who names one is told."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _uid: (_ for _ in ()).throw(KeyError("unknown")))
    monkeypatch.delenv("HOME")
    assert cache_directory("") is None
    with pytest.raises(ConfigError, match=r"server\.cache_dir: ~nobody-has-this-name/x: that user has no home here"):
        cache_directory("~nobody-has-this-name/x")
