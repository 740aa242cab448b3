"""A server for the commands that call one."""

import pytest

from tests.clients.service import Running


@pytest.fixture
def server():
    """A small real server; tests/clients/service.py tells what its models do."""
    running = Running()
    yield running
    running.stop()
