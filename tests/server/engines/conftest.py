"""What the tests of engines share."""

from dataclasses import dataclass, field

import pytest

from forebay_server.config.tree import BatchingConfig
from forebay_server.engines.base import EngineBatch


@dataclass
class Settings:
    """What a factory is told."""

    instances: int = 1
    threads: int = 1
    options: dict = field(default_factory=dict)
    device: str = ""
    memory: int = 0
    batching: BatchingConfig = field(default_factory=BatchingConfig)


@pytest.fixture
def opened():
    """Opens an engine with options and gives (spec, infer); closes it at the end."""
    engines = []

    def open_engine(factory, path, /, *, instances=1, **options):
        engine = factory(path, Settings(instances=instances, options=options))
        engines.append(engine)
        spec = engine.load()
        instance = engine.instance(0)

        def infer(*inputs, rows=None, **parameters):
            return instance.infer(EngineBatch(list(inputs), len(inputs[0]) if rows is None else rows, parameters))

        return spec, infer

    yield open_engine
    for engine in engines:
        engine.close()


@pytest.fixture
def settings():
    """Makes what a factory is told."""
    return Settings
