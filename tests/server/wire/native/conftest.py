"""Servers and clients for the tests of the native front end."""

import contextlib

import grpc
import pytest

from forebay_server.wire.port import Limits, WireConfig
from tests.server.wire.native.rig import METHODS, REFUSALS, Raw, exposure


@pytest.fixture
def start():
    """Starts servers, and closes them at the end."""
    from forebay_server.wire.native import NativeWire  # noqa: PLC0415  # it may not be built, and then its tests are skipped

    with contextlib.ExitStack() as stack:

        def run(*exposures, **limits):
            config = WireConfig(
                methods=METHODS, exposures=exposures or (exposure(),), refusals=REFUSALS, limits=Limits(**limits)
            )
            wire = NativeWire(config)
            addresses = wire.start()
            stack.callback(wire.close, 0.0)
            return (wire, *addresses)

        yield run


@pytest.fixture
def dial():
    """Opens grpcio channels, and closes them at the end."""
    with contextlib.ExitStack() as stack:

        def run(address, credentials=None, **options):
            made = {"grpc.enable_retries": 0, "grpc.max_receive_message_length": -1, **options}
            pairs = tuple(made.items())
            if credentials is None:
                channel = grpc.insecure_channel(address, options=pairs)
            else:
                channel = grpc.secure_channel(address, credentials, options=pairs)
            return stack.enter_context(channel)

        yield run


@pytest.fixture
def raw():
    """Opens raw clients, and closes them at the end."""
    with contextlib.ExitStack() as stack:

        def run(address):
            client = Raw(address)
            stack.callback(client.close)
            return client

        yield run
