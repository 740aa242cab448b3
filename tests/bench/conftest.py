import os
import shutil
import subprocess

import pytest

from bench import generator, models, server


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
