"""No message reaches what it must not: the canary on this machine's own addresses.

Each protection has a positive control: without it, the canary is reached.
"""

import socket
import ssl
import urllib.request
from ipaddress import ip_address

import httpcore
import pytest

from forebay_server.errors import ConfigError
from forebay_server.jobs.webhooks.targets import Target, Targets
from forebay_server.jobs.webhooks.transport import Transport, Undeliverable
from tests.waiting import eventually

HOOKS = "http://hooks.example.com"
PUBLIC = "93.184.216.34"

URLS = [
    # IPv4 loopback and what means it
    *("http://127.0.0.1:PORT/", "http://127.0.0.2:PORT/", "http://127.255.255.254:PORT/", "http://0.0.0.0:PORT/"),
    *("http://0:PORT/", "http://127.1:PORT/", "http://127.0.1:PORT/", "http://2130706433:PORT/"),
    *("http://0x7f000001:PORT/", "http://0x7f.0x0.0x0.0x1:PORT/", "http://0X7F.1:PORT/", "http://017700000001:PORT/"),
    *("http://0177.0.0.1:PORT/", "http://0177.0.0.01:PORT/", "http://127.0.0.1.:PORT/", "http://127.00.00.01:PORT/"),
    *("http://4294967295:PORT/", "http://127.0.0.1.nip.io:PORT/", "http://%31%32%37.0.0.1:PORT/"),
    # IPv6
    *("http://[::1]:PORT/", "http://[::]:PORT/", "http://[0:0:0:0:0:0:0:1]:PORT/", "http://[::ffff:127.0.0.1]:PORT/"),
    *("http://[::ffff:7f00:1]:PORT/", "http://[::127.0.0.1]:PORT/", "http://[64:ff9b::127.0.0.1]:PORT/"),
    *("http://[64:ff9b::7f00:1]:PORT/", "http://[2002:7f00:1::]:PORT/", "http://[::1%25lo]:PORT/"),
    *(
        "http://[fe80::1%25lo]:PORT/",
        "http://[fd00:ec2::254]:PORT/",
        "http://[2001:0:7f00:1::]:PORT/",
        "http://::1:PORT/",
    ),
    # private networks, metadata services, shared addresses
    *("http://10.0.0.1:PORT/", "http://172.16.0.1:PORT/", "http://192.168.0.1:PORT/", "http://100.64.0.1:PORT/"),
    *("http://169.254.169.254:PORT/latest/meta-data/", "http://100.100.100.200:PORT/", "http://168.63.129.16:PORT/"),
    *("http://192.0.0.192:PORT/", "http://224.0.0.1:PORT/", "http://255.255.255.255:PORT/", "http://198.18.0.1:PORT/"),
    # names
    *("http://localhost:PORT/", "http://LOCALHOST:PORT/", "http://localhost.:PORT/", "http://ip6-localhost:PORT/"),
    *("http://private.example.com:PORT/", "http://mixed.example.com:PORT/", "http://mapped.example.com:PORT/"),
    *("http://six.example.com:PORT/", "http://nowhere.example.com:PORT/"),
    # Unicode
    *(
        "http://\uff11\uff12\uff17.0.0.1:PORT/",
        "http://127。0。0。1:PORT/",
        "http://①②⑦.⓪.⓪.①:PORT/",
        "http://\uff4c\uff4f\uff43\uff41\uff4c\uff48\uff4f\uff53\uff54:PORT/",
    ),
    # user information, backslashes, white space, fragments
    *("http://hooks.example.com@127.0.0.1:PORT/", "http://hooks.example.com:80@127.0.0.1:PORT/"),
    *("http://hooks.example.com%40127.0.0.1:PORT/", "http://127.0.0.1:PORT#@hooks.example.com/"),
    *("http://127.0.0.1:PORT\\@hooks.example.com/", "http:\\\\127.0.0.1:PORT\\", "http://127.0.0.1\t:PORT/"),
    *("http://127.0.0.1:PORT/\r\nHost: hooks.example.com", " http://127.0.0.1:PORT/", "http://127.0.0.1:PORT\n"),
    *("http://127.0.0.1:PORT?@hooks.example.com/", "http://127.0.0.1:PORT/http://hooks.example.com/"),
    # other schemes
    *("unix:///run/docker.sock", "gopher://127.0.0.1:PORT/_x", "file:///etc/passwd", "dict://127.0.0.1:PORT/x"),
    *("ftp://127.0.0.1:PORT/", "data:text/plain,x", "javascript:alert(1)", "//127.0.0.1:PORT/", "http:127.0.0.1:PORT/"),
    *("https://127.0.0.1:PORT/", "HTTP://127.0.0.1:PORT/", "hTTp://[::1]:PORT/"),
]

ADDRESSES = {
    "private.example.com": ["127.0.0.1"],
    "mixed.example.com": [PUBLIC, "127.0.0.1"],
    "mapped.example.com": ["::ffff:127.0.0.1"],
    "six.example.com": ["::1"],
    "nowhere.example.com": [],
    "hooks.example.com": ["127.0.0.1"],
}


def lookup(host, _timeout):
    """The names of this page by the table, all others by the system."""
    if host.endswith((".example.com", ".nip.io")):
        return [ip_address(text) for text in ADDRESSES.get(host, ["127.0.0.1"])]
    return list(dict.fromkeys(ip_address(found[4][0]) for found in socket.getaddrinfo(host, None)))


class NoRoute(httpcore.SyncBackend):
    """Connects to this machine only, and notes what was asked for."""

    def __init__(self):
        self.asked = []

    def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        self.asked.append(host)
        address = ip_address(host)
        if not (getattr(address, "ipv4_mapped", None) or address).is_loopback:
            raise httpcore.ConnectError("no route")
        return super().connect_tcp(host, port, timeout, local_address, socket_options)


class Astray(httpcore.SyncBackend):
    """Connects to this machine, whatever it is asked for."""

    def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        return super().connect_tcp("127.0.0.1", port, timeout, local_address, socket_options)


CONTEXT = ssl.create_default_context()  # one for all, because it takes long to make


def make_transport(*, allow_private=False, **options):
    """A transport; by default one that is guarded."""
    return Transport(timeout=5.0, allow_private=allow_private, **({"resolve": lookup, "context": CONTEXT} | options))


def attempt(url, allow, **options):
    """Sends as the sender does; what refused it, or None."""
    private = options.get("allow_private", False)
    try:
        target = Targets(allow, allow_private=private).target(url)
    except (ValueError, ConfigError) as exc:
        return exc
    try:
        make_transport(**options).post(target, {}, b"{}")
    except Undeliverable as exc:
        return exc
    return None


def test_there_are_enough_forms():
    """The plan asks for 45."""
    assert len(set(URLS)) >= 45


@pytest.mark.parametrize("url", URLS)
def test_no_form_reaches_the_canary(canary, url):
    """With a list of one public name, and with a list of that very URL: no connection, to nowhere."""
    url = url.replace("PORT", str(canary.port))
    backend = NoRoute()
    assert attempt(url, [HOOKS], backend=backend) is not None
    assert attempt(url, [url], backend=backend) is not None
    assert backend.asked == []
    assert canary.connections == 0


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.2", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"),
        *(
            "localhost",
            "LOCALHOST",
            "private.example.com",
            "six.example.com",
            "mapped.example.com",
            "mixed.example.com",
        ),
    ],
)
def test_control_private_addresses(canary, host):
    """Control: where private addresses are allowed, those forms that are URLs reach the canary."""
    url = f"http://{host}:{canary.port}/"
    if host in {"0.0.0.0", "[::]"}:  # they are connected to loopback, and the peer says so
        assert "another address" in str(attempt(url, [url], allow_private=True))
    else:
        assert attempt(url, [url], allow_private=True, backend=NoRoute()) is None
    eventually(lambda: canary.connections == 1)


@pytest.mark.parametrize("host", ["127.1", "0x7f000001", "2130706433", "017700000001", "0177.0.0.1", "①②⑦.⓪.⓪.①"])
def test_control_the_grammar(canary, host):
    """Control: past the grammar the system's resolver takes these for loopback; the address check still stops them."""
    target = Target("http", host, canary.port, "/", "")
    host_as_seen_by_the_client = host.encode("idna").decode() if not host.isascii() else host
    target = target._replace(host=host_as_seen_by_the_client)

    with pytest.raises(Undeliverable, match="which is not public"):
        make_transport().post(target, {}, b"{}")
    assert canary.connections == 0
    make_transport(allow_private=True).post(target, {}, b"{}")
    assert canary.connections == 1


def test_control_the_list(canary):
    """Control: without its list, a host that pretends to be another is reached."""
    ADDRESSES["hooks.example.com.evil.com"] = ["127.0.0.1"]
    url = f"http://hooks.example.com.evil.com:{canary.port}/"
    resolve = lambda _host, _timeout: [ip_address("127.0.0.1")]  # noqa: E731  # any name is loopback

    assert attempt(url, [HOOKS], allow_private=True, resolve=resolve) is not None
    assert canary.connections == 0
    assert attempt(url, [url], allow_private=True, resolve=resolve) is None
    assert canary.connections == 1


class Rebinding:
    """A name that is public when it is looked up first, and this machine from then on."""

    def __init__(self):
        self.answers = [PUBLIC]

    def __call__(self, _host, _timeout):
        return [ip_address(self.answers.pop() if self.answers else "127.0.0.1")]


def test_a_name_that_changes_its_meaning(canary):
    """The address that was checked is the one that is connected to."""
    backend = NoRoute()
    url = f"{HOOKS}:{canary.port}/"
    assert "no route" in str(attempt(url, [url], resolve=Rebinding(), backend=backend))
    assert backend.asked == [PUBLIC]
    assert canary.connections == 0


def test_control_a_name_that_changes_its_meaning(canary):
    """Control: a client that checks a name and then connects to it by name reaches the canary."""

    class ByName(httpcore.SyncBackend):
        def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
            assert ip_address(resolve(host, 1.0)[0]).is_global
            return super().connect_tcp(str(resolve(host, 1.0)[0]), port, timeout)

    resolve = Rebinding()
    with httpcore.ConnectionPool(network_backend=ByName()) as pool:
        pool.request("POST", f"{HOOKS}:{canary.port}/")
    assert canary.connections == 1


def test_the_peer_is_the_address_that_was_checked(canary):
    """A connection that ends up elsewhere is dropped before a byte is sent."""
    url = f"{HOOKS}:{canary.port}/"
    resolve = lambda _host, _timeout: [ip_address(PUBLIC)]  # noqa: E731  # see above
    assert "another address" in str(attempt(url, [url], resolve=resolve, backend=Astray()))
    assert canary.bytes == 0

    # Control: if that is where it was to go, it is sent.
    assert attempt(url, [url], allow_private=True, backend=Astray()) is None
    assert canary.bytes > 0


def test_every_address_is_checked(canary):
    """One private address among public ones is enough, wherever it stands."""
    url = f"{HOOKS}:{canary.port}/"
    for texts in ([PUBLIC, "127.0.0.1"], ["127.0.0.1", PUBLIC], [PUBLIC, PUBLIC, PUBLIC, PUBLIC, PUBLIC, "::1"]):
        backend = NoRoute()
        found = [ip_address(text) for text in texts]
        refused = attempt(url, [url], resolve=lambda _host, _timeout: found, backend=backend)  # noqa: B023  # used at once
        assert "which is not public" in str(refused)
        assert backend.asked == []
    assert canary.connections == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(receiver, canary, status):
    """A redirect is an answer like any other; what it points to is not visited."""
    answer = (status, {"Location": f"http://127.0.0.1:{canary.port}/"})
    receiver.answers.append(answer)
    target = Targets([receiver.origin], allow_private=True).target(receiver.origin)
    assert make_transport(allow_private=True).post(target, {}, b"{}").status == status
    assert canary.connections == 0

    # Control: a client that follows redirects reaches it.
    receiver.answers.append(answer)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(receiver.origin, timeout=5).close()
    assert canary.connections == 1


def test_proxies_of_the_environment_are_not_used(receiver, canary, monkeypatch):
    """Whatever the environment says, the connection goes to the target."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{canary.port}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    target = Targets([receiver.origin], allow_private=True).target(receiver.origin)
    assert make_transport(allow_private=True).post(target, {}, b"{}").status == 204
    assert canary.connections == 0

    # Control: a client that asks the environment goes to the proxy. (`urlopen` would keep what it has found there for
    # the rest of the process, if this were its first call.)
    urllib.request.build_opener().open(receiver.origin, timeout=5).close()
    assert canary.connections == 1
