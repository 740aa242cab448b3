"""From the command line to the configuration that is served."""

import click
import pytest

from forebay_server import app
from forebay_server.cli.settings import SHORTCUTS
from forebay_server.config import documentation
from forebay_server.config.load import load


@pytest.fixture
def served(forebay, monkeypatch, tmp_path):
    """Runs `forebay serve` and gives the configuration that the application would get."""
    (tmp_path / "model.onnx").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        given = []
        monkeypatch.setattr(app, "serve", lambda config: given.append(config) or 7, raising=False)
        ended = forebay("serve", *arguments)
        assert ended == (7, "", "")
        return given[0]

    return run


def test_a_model_file_is_all_it_takes(served):
    """Everything else has a default, and the application's exit code is the command's."""
    config = served("model.onnx")

    assert [model.path for model in config.models] == ["model.onnx"]
    assert config == load(models=["model.onnx"]).config


def test_several_models_of_several_kinds(served):
    """Forms with a colon are not files."""
    config = served("model.onnx", "python:package.module:object", "synthetic:base_ms=5,row_ms=0.1")

    assert [model.path for model in config.models] == [
        "model.onnx",
        "python:package.module:object",
        "synthetic:base_ms=5,row_ms=0.1",
    ]


def test_options_set_what_they_stand_for(served):
    """Those of models set it for every model."""
    config = served(
        "model.onnx", "synthetic:", "--listen", "0.0.0.0:0", "--probe", "unix:/p.sock", "--wire", "grpc.aio",
        "--max-batch-size", "8", "--max-delay-ms", "2.5", "--instances", "2", "--set", "limits.max_streams=100",
        "--tls-cert", "c.pem", "--tls-key", "k.pem", "--log-level", "debug",
    )  # fmt: skip

    assert (config.server.public.address, config.server.probe.address) == ("0.0.0.0:0", "unix:/p.sock")
    assert (config.server.wire, config.limits.max_streams, config.log.level) == ("grpc.aio", 100, "debug")
    assert config.server.public.tls.certificate == "c.pem"
    for model in config.models:
        assert (model.batching.max_batch_size, model.batching.max_delay_ms, model.engine.instances) == (8, 2.5, 2)


def test_the_file_and_the_variables_are_read(served, tmp_path, monkeypatch):
    """The file may be named by a variable."""
    (tmp_path / "f.toml").write_text("[server]\ndrain_grace_s = 1\nwatchdog_s = 1")
    monkeypatch.setenv("FOREBAY_CONFIG", "f.toml")
    monkeypatch.setenv("FOREBAY_SERVER__WATCHDOG_S", "2")
    config = served("model.onnx")

    assert (config.server.drain_grace_s, config.server.watchdog_s) == (1, 2)


def test_a_name_is_for_one_model(served, forebay):
    """With several it would be given to all."""
    assert served("model.onnx", "--name", "digits").models[0].name == "digits"
    assert forebay("serve", "model.onnx", "synthetic:", "--name", "digits") == (
        2,
        "",
        "forebay: --name can't name 2 models; use models.N.name in the configuration\n",
    )


def test_a_setting_needs_a_value(forebay):
    """And the error shows how it is written."""
    assert forebay("serve", "synthetic:", "--set", "server.drain_grace_s").err == (
        "forebay: --set server.drain_grace_s: write it as SETTING=VALUE, such as server.drain_grace_s=60\n"
    )


@pytest.mark.parametrize("shortcut", SHORTCUTS, ids=lambda shortcut: shortcut.option)
def test_every_option_stands_for_a_setting_that_there_is(shortcut):
    """None is left behind when a setting gets another name."""
    known = {setting.path for setting in documentation.settings()}
    path = shortcut.setting.replace("models.*", "models.N").replace("models.0", "models.N")

    assert path in known
    assert click.Option([shortcut.option]).name == shortcut.option.removeprefix("--").replace("-", "_")


def test_settings_are_listed(forebay):
    """All, or those that begin with something."""
    everything, part = forebay("config"), forebay("config", "models.N.batching")

    assert "server.drain_grace_s = 30.0 s\n    Time for accepted requests to finish at shutdown.\n" in everything.out
    assert part.out.count("FOREBAY_MODELS__N__BATCHING__") == part.out.count(" = ") == 6
    assert forebay("config", "xyz").code == 2


def test_a_configuration_is_explained_without_loading(forebay, tmp_path):
    """Every setting, its value and where it comes from."""
    ended = forebay("check", "synthetic:", "--no-load", "--set", "server.drain_grace_s=5")

    assert ended.code == 0
    lines = {line.split()[0]: line.split()[1:] for line in ended.out.splitlines() if "." in line}
    assert lines["server.drain_grace_s"][:3] == ["5.0", "s", "--set"]
    assert lines["server.drain_delay_s"][:3] == ["0.0", "s", "default"]
    assert lines["models.0.path"][:3] == ['"synthetic:"', "command", "line"]
    assert "jobs are kept" not in ended.out


@pytest.mark.parametrize(
    ("store", "sentence"),
    [
        ("a/jobs.db", "in the SQLite file a/jobs.db, and large ones beside it in a/jobs.db.payloads; one server at"),
        ("memory:", "in memory: lost when the server ends"),
        ("postgresql://u:hush@host/db", "in PostgreSQL, shared with all servers that use the same database"),
    ],
)
def test_where_jobs_are_kept_is_explained(forebay, store, sentence):
    """In a sentence, without opening it, and without a password."""
    ended = forebay("check", "synthetic:", "--no-load", "--jobs", store)

    assert ended.code == 0
    assert f"jobs are kept {sentence}" in " ".join(ended.out.split())
    assert "hush" not in ended.out


def test_webhooks_are_explained(forebay, monkeypatch):
    """Where they may go; what is wrong about their settings, in one sentence."""
    arguments = ("check", "synthetic:", "--no-load", "--jobs", "memory:", "--set")
    allow = "jobs.webhooks.allow=https://hooks.example.com/a"

    assert "no webhooks are sent" in forebay(*arguments, "jobs.webhooks.timeout_s=5").out
    assert "webhooks may go to https://hooks.example.com/a" in forebay(*arguments, allow).out
    monkeypatch.setenv("HOOK_SECRET", "short")
    ended = forebay(*arguments, "jobs.webhooks.secrets.main=env:HOOK_SECRET")
    assert ended.code == 2
    assert "HOOK_SECRET" in ended.err
    assert "short" not in ended.err.replace("too short", "")


def test_a_store_that_there_is_not_is_explained(forebay):
    """One sentence."""
    ended = forebay("check", "synthetic:", "--no-load", "--jobs", "ftp://host/x")

    assert ended.code == 2
    assert "jobs.store" in ended.err
