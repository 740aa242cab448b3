"""What the clients' tests use: a small real server (`service`) and the surfaces of both clients (`surfaces`)."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from forebay_client import ForebayError
from tests.clients.service import Running
from tests.clients.surfaces import AsyncSurface, SyncSurface


@pytest.fixture
def server() -> Iterator[Running]:
    running = Running()
    yield running
    running.stop()


@pytest.fixture(params=[SyncSurface, AsyncSurface], ids=["sync", "async"])
def surface(request: pytest.FixtureRequest) -> type[SyncSurface | AsyncSurface]:
    """The class of a surface; for tests that make clients themselves."""
    return request.param


@pytest.fixture
def client(surface: Any, server: Running) -> Iterator[Any]:
    made = surface(server.address)
    yield made
    made.close()


@pytest.fixture
def outcomes() -> Any:
    """Reads a stream to its end: all outcomes, and the error that was raised at the end, if any."""

    def read(stream: Any) -> tuple[list[Any], BaseException | None]:
        found: list[Any] = []
        iterator = iter(stream)
        while True:
            try:
                found.append(next(iterator))
            except StopIteration:
                return found, None
            except ForebayError as error:
                if error.index is None:
                    return found, error
                found.append(error)
            except Exception as error:  # noqa: BLE001  # the source's own
                return found, error

    return read


@pytest.fixture
def make_server() -> Iterator[Any]:
    """Makes further servers, with TLS if wanted."""
    made: list[Running] = []

    def make(credentials: grpc.ServerCredentials | None = None, **options: Any) -> Running:
        made.append(Running(credentials, **options))
        return made[-1]

    yield make
    for running in made:
        running.stop()
