"""The TOML beside a model."""

import pytest

from forebay_server.config.tree import BatchingConfig, EngineConfig, ModelConfig
from forebay_server.errors import ConfigError
from forebay_server.models import settings


def test_the_server_is_stronger_field_by_field(tmp_path):
    """What the server leaves at its default is taken from beside the model, even inside one table."""
    (tmp_path / "m.toml").write_text(
        'name = "beside"\nlabels = ["stable"]\n[batching]\nmax_batch_size = 8\nmax_delay_ms = 2\n'
        '[engine.options]\na = 1\nb = "x"\n[buckets]\nshapes = { x = [[4], [8]] }\n'
    )
    server = ModelConfig(
        path=str(tmp_path / "m.onnx"),
        batching=BatchingConfig(max_batch_size=16),
        engine=EngineConfig(options={"a": 2}),
    )
    merged = settings.complete(server)
    assert (merged.path, merged.name, merged.labels) == (server.path, "beside", ["stable"])
    assert (merged.batching.max_batch_size, merged.batching.max_delay_ms) == (16, 2.0)
    assert merged.engine.options == {"a": 2, "b": "x"}
    assert merged.buckets.shapes == {"x": [[4], [8]]}


def test_without_a_toml_nothing_changes(tmp_path):
    """The file is optional, and models without a file have none."""
    for path in (str(tmp_path / "m.onnx"), "module:object"):
        config = ModelConfig(path=path)
        assert settings.complete(config) is config


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[batching]\nmax_batch_size = 'x'", "m.toml: batching.max_batch_size: expected `int`, got `str`"),
        ("[batching]\nsize = 3", "m.toml: batching: object contains unknown field `size`"),
        ("version = 0", "m.toml: version: expected `int` >= 1"),
        ("[engine]\nrun = 'fast'", "m.toml: engine.run: invalid enum value 'fast'"),
        ("name = ", "m.toml: not valid TOML"),
        ("path = 'other.onnx'", "m.toml: path: it lies beside its model"),
        ("colour = 1", "m.toml: object contains unknown field `colour`"),
    ],
)
def test_mistakes_name_file_and_field(tmp_path, text, sentence):
    """A mistake is one sentence that says where it is."""
    (tmp_path / "m.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        settings.complete(ModelConfig(path=str(tmp_path / "m.onnx")))
    assert sentence in str(caught.value)
