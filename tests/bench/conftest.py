import os
import shutil
import subprocess

import pytest

from bench import generator, ghz_runs, models, server
from bench.case import Bench


@pytest.fixture(scope="session")
def model_files(tmp_path_factory):
    """The files of the small model."""
    return models.make("small", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def loadgen():
    """The built load generator."""
    if shutil.which("cargo") is None:
        pytest.skip("the load generator needs cargo")
    subprocess.run(["make", "--silent", "loadgen"], check=True, cwd=server.ROOT)
    return generator.LOADGEN


@pytest.fixture(scope="session")
def core():
    """A core for everything: these tests look at counts, not at speed."""
    return min(os.sched_getaffinity(0))


@pytest.fixture(scope="session")
def ghz():
    """The built ghz."""
    if shutil.which("go") is None:
        pytest.skip("ghz needs Go")
    subprocess.run(["make", "--silent", "ghz"], check=True, cwd=server.ROOT)
    assert ghz_runs.built()
    return ghz_runs.GHZ


@pytest.fixture
def bench_of(model_files, core, tmp_path):
    """Makes what cases are given, for measurements that are short: `bench_of(seconds=0.1)`."""

    def make(*, seconds):
        return Bench(
            directory=model_files.model.parent,
            server_core=core,
            load_core=core,
            seconds=seconds,
            warm_up=0.0,
            columns=[],
            memory_requests=0,
            jobs=0,
            finished_jobs=0,
            kept=tmp_path / "kept",
            say=lambda line: None,
            step=lambda: None,
        )

    return make
