"""What the second adapter demands of its surroundings, and its reading of grpcio's peers."""

import grpc
import pytest

from forebay_server.errors import ConfigError
from forebay_server.wire.aio import AioWire
from forebay_server.wire.aio_calls import _address
from forebay_server.wire.port import Failure, Refusals, WireConfig


@pytest.mark.parametrize("version", ["1.83.1", "1.9.0"])
def test_an_old_grpcio_is_refused(monkeypatch, version):
    """Below 1.84 grpcio buffers over-limit messages whole, so the adapter does not start."""
    monkeypatch.setattr(grpc, "__version__", version)
    none = Failure(13, "")
    names = Refusals.__dataclass_fields__
    with pytest.raises(ConfigError, match=version):
        AioWire(WireConfig(methods=[], exposures=[], refusals=Refusals(**dict.fromkeys(names, none)))).start()


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.7:4711", "192.0.2.7:4711"),
        ("ipv6:%5B2001:db8::7%5D:4711", "[2001:db8::7]:4711"),
        ("unix:/run/forebay.sock", "unix:"),
        ("unix:", "unix:"),
    ],
)
def test_addresses_of_peers(peer, address):
    """grpcio's names of peers are translated into the port's."""
    assert _address(peer) == address
