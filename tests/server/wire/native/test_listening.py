"""Where the native front end listens, and what it says where it can't."""

import socket
import stat
import time

import pytest

pytest.importorskip("forebay_native", reason="the native front end is not built")

from forebay_server.errors import ConfigError
from forebay_server.wire.port import RESPOND
from tests.server.wire.native.rig import exposure, take, unary

pytestmark = pytest.mark.native


def test_taken_port(start):
    """A taken port is one clear sentence."""
    _, address = start()
    with pytest.raises(ConfigError, match="is taken"):
        start(exposure(address))


def test_reuse_port(start, dial):
    """With SO_REUSEPORT two servers share a port."""
    first, address = start(exposure(reuse_port=True))
    second, again = start(exposure(address, reuse_port=True))
    assert again == address
    first.drain()
    time.sleep(0.05)
    call = unary(dial(address), b"")
    second.answer([(RESPOND, take(second)[0][1], b"second")])
    assert call.result() == b"second"


@pytest.mark.parametrize("address", ["256.0.0.1:0", "127.0.0.1", "192.0.2.1:1", "unix:/no/such/directory/x"])
def test_bad_address(start, address):
    """An address that can't be bound is one clear sentence."""
    with pytest.raises(ConfigError, match=r"^exposure public: can't listen on "):
        start(exposure(address))


def test_start_twice(start):
    """A server starts once."""
    wire, _ = start()
    with pytest.raises(ConfigError, match="already"):
        wire.start()


def test_unix_socket(start, dial, tmp_path):
    """A Unix socket is private, replaces a dead one, is never stolen, and goes at the end."""
    path = tmp_path / "forebay.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    wire, address = start(exposure(f"unix:{path}"))
    assert address == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    # grpcio's own authority for a Unix socket, `%2Fpath`, is no authority by the RFC: h2 resets such calls.
    call = unary(dial(address, **{"grpc.default_authority": "localhost"}), b"")
    event = take(wire)[0]
    assert event[5].address == "unix:"
    wire.answer([(RESPOND, event[1], b"here")])
    assert call.result() == b"here"
    with pytest.raises(ConfigError, match="is taken"):
        start(exposure(f"unix:{path}"))
    wire.close(1.0)
    assert not path.exists()
    path.write_text("mine")
    with pytest.raises(ConfigError, match="not a socket"):
        start(exposure(f"unix:{path}"))
    assert path.read_text() == "mine"
