"""The commands run in this process, with what they print and the code they end with."""

import os
from typing import NamedTuple

import pytest

from forebay_server.cli import main
from tests.clients.service import Running


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def forebay(capsys, monkeypatch):
    """Runs a command. No variable of the machine's own is seen."""
    for variable in list(os.environ):
        if variable.startswith("FOREBAY_"):
            monkeypatch.delenv(variable)

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Ended(code, out, err)

    return run


@pytest.fixture
def server():
    """A small real server; tests/clients/service.py tells what its models do."""
    running = Running()
    yield running
    running.stop()
