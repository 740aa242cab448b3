"""What the tests of engines share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from forebay_server.config.tree import BatchingConfig, BucketsConfig
from forebay_server.engines.base import EngineBatch


@dataclass
class Settings:
    """What a factory is told."""

    instances: int = 1
    threads: int = 1
    device: str = "cpu"
    memory: int = 0
    options: dict = field(default_factory=dict)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    buckets: BucketsConfig = field(default_factory=BucketsConfig)
    cache_dir: Path | None = None
    progress: Callable[[str], None] = lambda words: None


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
