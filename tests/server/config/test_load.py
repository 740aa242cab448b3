"""A configuration from its sources: their order, their errors, and where each value came from."""

import pytest

from forebay_server.config.load import Flag, explain, load
from forebay_server.config.tree import InputConfig
from forebay_server.errors import ConfigError

MANY = "9" * 5000  # digits: more than Python makes a number of


@pytest.fixture
def file(tmp_path):
    """Writes a TOML file and gives its path."""

    def write(text):
        path = tmp_path / "forebay.toml"
        path.write_text(text)
        return path

    return write


def test_without_sources_there_are_defaults():
    """Everything has one but what is served."""
    config, sources = load()

    assert (config.server.public.address, config.server.drain_grace_s, config.models) == ("127.0.0.1:8500", 30.0, [])
    assert sources == {}


def test_flags_are_stronger_than_variables_and_variables_than_the_file(file):
    """The order of strength, and where each one came from."""
    path = file("[server]\ndrain_grace_s = 1\ndrain_delay_s = 1\nwatchdog_s = 1")
    config, sources = load(
        file=path,
        environment={"FOREBAY_SERVER__DRAIN_DELAY_S": "2", "FOREBAY_SERVER__WATCHDOG_S": "2"},
        flags=[Flag("server.watchdog_s", "3", "--set")],
    )

    server = config.server
    assert (server.drain_grace_s, server.drain_delay_s, server.watchdog_s) == (1, 2, 3)
    assert sources == {
        "server.drain_grace_s": str(path),
        "server.drain_delay_s": "FOREBAY_SERVER__DRAIN_DELAY_S",
        "server.watchdog_s": "--set",
    }


def test_variables_without_two_underscores_are_no_settings():
    """Kubernetes adds such ones for a service called forebay."""
    environment = {"FOREBAY_PORT": "tcp://10.0.0.1:80", "FOREBAY_SERVICE_HOST": "10.0.0.1", "FOREBAY_DEBUG": "1"}

    assert load(environment=environment) == load()


def test_the_default_of_a_section_is_kept_when_a_part_of_it_is_set():
    """TLS for the public exposure needs no word about its address."""
    config, _ = load(
        environment={"FOREBAY_SERVER__PUBLIC__TLS__CERTIFICATE": "c", "FOREBAY_SERVER__PUBLIC__TLS__KEY": "k"}
    )

    assert config.server.public.address == "127.0.0.1:8500"
    assert config.server.public.tls.certificate == "c"


def test_paths_in_a_file_start_at_the_file(file, tmp_path):
    """And paths on the command line where the command runs; forms that are no path stay."""
    path = file(
        """
        server = { cache_dir = "cache", public = { address = "a:1", tls = { certificate = "c.pem", key = "/k.pem" } } }
        models = [{ path = "m.onnx" }, { path = "package.module:object" }, { path = "synthetic:" }, { path = "f.py:f" }]
        """
    )
    config, _ = load(file=path, models=["own.onnx"])

    assert [model.path for model in config.models] == [
        str(tmp_path / "m.onnx"),
        "package.module:object",
        "synthetic:",
        str(tmp_path / "f.py:f"),
        "own.onnx",
    ]
    assert config.server.cache_dir == str(tmp_path / "cache")
    for store in ("memory:", "postgresql://host/db"):
        assert load(file=file(f'jobs.store = "{store}"')).config.jobs.store == store
    assert load(file=file('jobs.store = "jobs.db"')).config.jobs.store == str(tmp_path / "jobs.db")
    assert (config.server.public.tls.certificate, config.server.public.tls.key) == (str(tmp_path / "c.pem"), "/k.pem")


def test_a_star_means_all_models(file):
    """Those of the file as well as those of the command line."""
    path = file("[[models]]\npath = 'a'\n[models.batching]\nmax_delay_ms = 1")
    config, sources = load(
        file=path, models=["b"], flags=[Flag("models.*.batching.max_delay_ms", "2.5", "--max-delay-ms")]
    )

    assert [model.batching.max_delay_ms for model in config.models] == [2.5, 2.5]
    assert sources["models.1.path"] == "command line"
    assert sources["models.0.batching.max_delay_ms"] == "--max-delay-ms"


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("models.0.labels", "stable, canary", ["stable", "canary"]),
        ("models.0.labels", '["a,b"]', ["a,b"]),
        ("models.0.labels", "1, 2", ["1", "2"]),
        ("models.0.inputs.x.mean", "0.5, 1", {"x": InputConfig(mean=[0.5, 1.0])}),
        ("models.0.buckets.shapes.x", "[[16], [32]]", {"x": [[16], [32]]}),
        ("models.0.buckets.shapes", "{x = [[16]]}", {"x": [[16]]}),
        ("models.0.engine.options.n", "3", {"n": 3}),
        ("models.0.engine.options.n", "0.5", {"n": 0.5}),
        ("models.0.engine.options.n", "true", {"n": True}),
        ("models.0.engine.options.n", "fast", {"n": "fast"}),
        ("models.0.name", "3", "3"),
        ("models.0.version", "3", 3),
        ("models.0.batching.check_rows", "false", False),
        ("models.0.batching.max_delay_ms", "3", 3.0),
    ],
)
def test_texts_are_read_as_what_the_setting_wants(path, text, expected):
    """Variables and flags are texts; their settings are not."""
    config, _ = load(models=["m"], flags=[Flag(path, text, "--set")])

    value = config.models[0]
    for name in path.split(".")[2:]:
        if isinstance(value, dict):
            break
        value = getattr(value, name)
    assert value == expected
    assert type(value) is type(expected)


def test_variables_number_models_and_name_tenants():
    """Names of the operator's choice are in lower case."""
    config, _ = load(
        environment={
            "FOREBAY_MODELS__0__PATH": "a.onnx",
            "FOREBAY_MODELS__1__PATH": "b.onnx",
            "FOREBAY_TENANTS__BLUE__WEIGHT": "2",
        }
    )

    assert [model.path for model in config.models] == ["a.onnx", "b.onnx"]
    assert config.tenants["blue"].weight == 2


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (
            "[server]\ndrain_grace = 1",
            "server.drain_grace is not a setting; did you mean server.drain_grace_s?",
        ),
        ("[sever]", "sever is not a setting; did you mean server?"),
        ("xyz = 1", "xyz is not a setting"),
        ("[server]\ndrain_grace_s = '1'", "server.drain_grace_s: expected a number, got a text"),
        ("[server]\ndrain_grace_s = -1", "server.drain_grace_s: expected a number >= 0.0"),
        ("[server]\ndrain_grace_s = inf", "server.drain_grace_s: expected a finite number, got inf"),
        ("[server]\nwire = 'http'", "server.wire: expected auto | grpc.aio | native, got 'http'"),
        ("[limits]\nmax_streams = 1.5", "limits.max_streams: expected an integer, got a number"),
        ("[limits]\nmax_streams = true", "limits.max_streams: expected an integer, got true or false"),
        ("server = 3", "server: expected a table, got 3"),
        ("models = 3", "models: expected a list of tables ([[models]])"),
        ("[[models]]\nname = 'a'", "models.0.path is missing"),
        ("[[models]]\npath = 'a'\nlabels = 'b'", "models.0.labels: expected a list, got a text"),
        ("[[models]]\npath = 'a'\n[models.engine.options]\nx = [1]", "models.0.engine.options.x: expected "),
        ("[server.public.tls]\ncertificate = 'a'", "server.public.tls.key is missing"),
        ("[server.operator]\ntrusted = true", "server.operator.address is missing"),
        ("a = ", "invalid value"),
    ],
)
def test_a_wrong_file_is_one_sentence_that_names_file_and_setting(file, toml, message):
    """Whoever has to mend it need not search."""
    path = file(toml)
    with pytest.raises(ConfigError) as caught:
        load(file=path)

    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("server.watchdog_s", "soon", "server.watchdog_s: expected a number, got 'soon'"),
        ("server.reflection", "yes", "server.reflection: expected true or false, got 'yes'"),
        ("server.public", "x", "server.public is a table; name one of its settings, such as server.public.address"),
        ("models", "x", "models is a table; name one of its settings, such as models.0.path"),
        ("models.2.name", "x", "models.2: there are only 0 models"),
        ("models.0.version", str(2**63), "models.0.version: expected an integer <= 9223372036854775807"),
        (f"models.{MANY}.name", "x", f"models.{MANY}: '{MANY}' is not the number of one of the models"),
        ("models.².name", "x", "models.²: '²' is not the number of one of the models"),
        ("models.first.name", "x", "models.first: 'first' is not the number of one of the models"),
        ("server.wire.x", "x", "server.wire.x is not a setting: server.wire is a value"),
        ("server.wires", "x", "server.wires is not a setting; did you mean server.wire?"),
        ("", "x", " is not a setting"),
    ],
)
def test_a_wrong_flag_is_one_sentence_that_names_it(path, value, message):
    """The same for variables, which go the same way."""
    with pytest.raises(ConfigError) as caught:
        load(flags=[Flag(path, value, "--set")])

    assert str(caught.value) == f"--set: {message}"


def test_a_wrong_variable_is_named():
    """By its own name, not only by that of the setting."""
    with pytest.raises(
        ConfigError, match=r"^FOREBAY_LIMITS__MAX_STREAMS: limits\.max_streams: expected an integer >= 1$"
    ):
        load(environment={"FOREBAY_LIMITS__MAX_STREAMS": "0"})


def test_a_file_that_is_not_there_is_a_configuration_error(tmp_path):
    """As is one that holds no text."""
    with pytest.raises(ConfigError, match=r"forebay\.toml: No such file or directory"):
        load(file=tmp_path / "forebay.toml")
    (tmp_path / "forebay.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"forebay\.toml: "):
        load(file=tmp_path / "forebay.toml")


def test_every_setting_is_explained():
    """With its value, unit, source and documentation; a table of options with all its sources."""
    explained = explain(
        *load(
            models=["m.onnx"],
            environment={"FOREBAY_MODELS__0__ENGINE__OPTIONS__A": "1"},
            flags=[
                Flag("models.0.engine.options.b", "2", "--set"),
                Flag("server.drain_grace_s", "5", "--drain-grace-s"),
            ],
        )
    )

    by_path = {found.path: found for found in explained}
    grace = by_path["server.drain_grace_s"]
    assert grace == (
        "server.drain_grace_s",
        5.0,
        "s",
        "--drain-grace-s",
        "Time for accepted requests to finish at shutdown.",
    )
    assert by_path["server.operator"].value is None
    assert by_path["server.wire"].source == "default"
    with pytest.raises(KeyError):
        by_path["models.0.engine"]
    assert all(found.documentation for found in explained)


def test_variables_can_speak_of_the_models_of_the_command_line(file):
    """They are counted after those of the file; the path itself is the command line's."""
    path = file("[[models]]\npath = '/a'")
    config, _ = load(
        file=path,
        models=["b"],
        environment={"FOREBAY_MODELS__1__VERSION": "7", "FOREBAY_MODELS__1__PATH": "c"},
    )

    assert [(model.path, model.version) for model in config.models] == [("/a", 1), ("b", 7)]
