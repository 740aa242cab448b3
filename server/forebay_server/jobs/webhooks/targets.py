"""Which URLs a message may go to: one spelling of each, and the operator's list.

URLs that parsers disagree about are how such lists are walked around. So there is one strict grammar, a part of RFC
3986, for targets and for the list, and what is outside of it is refused, never mended: no user information, no
fragment, no address in octal or hexadecimal, no backslash, no dots that climb. Nothing is looked up here; what a name
resolves to is `transport`'s to check.
"""

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

from forebay_server.errors import ConfigError
from forebay_server.jobs.webhooks.addresses import Address, public

MAX_LENGTH: Final = 2048
"""Characters of a URL."""

_PORTS: Final = {"http": 80, "https": 443}
_PARTS: Final = re.compile(
    r"(?P<scheme>[A-Za-z]+)://"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)"
    r"(?::(?P<port>[1-9][0-9]{0,4}))?"
    r"(?P<path>/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*)?"
    r"(?P<query>\?(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?"
)
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
# A name whose last label is a number is read as an address by many: 127.1, 0x7f000001, 2130706433.
_NUMERIC: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
# What a server may take for a dot, a slash or a percent sign after the list was asked.
_HIDDEN: Final = re.compile(r"%(?:2e|2f|5c|25|00)", re.IGNORECASE)


class Target(NamedTuple):
    """A URL in its parts."""

    scheme: str
    """`https` or `http`."""
    host: str
    """A name in lower case, or an address without brackets."""
    port: int
    path: str
    """At least `/`."""
    query: str
    """With its question mark, or empty."""

    @property
    def address(self) -> Address | None:
        """The address, if the host is one."""
        return _address(self.host)

    @property
    def origin(self) -> str:
        """Scheme, host and port: what may be logged of a target."""
        return f"{self.scheme}://{self.authority}"

    @property
    def authority(self) -> str:
        """Host and port as in the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def parse(url: str) -> Target:
    """The parts of a URL.

    Raises:
        ValueError: It can't be a target. The text is a sentence without its subject.
    """
    if len(url) > MAX_LENGTH:
        raise ValueError(f"must have at most {MAX_LENGTH} characters")
    if not url.isascii():
        raise ValueError("must be ASCII; write the host in its xn-- form")
    if "#" in url:
        raise ValueError("must not have a fragment")
    parts = _PARTS.fullmatch(url)
    if parts is None:
        raise ValueError("must have the form https://host[:port][/path][?query], without user name")
    scheme = parts["scheme"].lower()
    if scheme not in _PORTS:
        raise ValueError("must begin with https:// or http://")
    port = int(parts["port"] or _PORTS[scheme])
    if port > 65535:
        raise ValueError("has a port over 65535")
    path = parts["path"] or "/"
    climbs = any(segment.partition(";")[0] in {".", ".."} for segment in path.split("/"))
    if climbs or _HIDDEN.search(path):
        raise ValueError("must not have dots, slashes or percent signs in disguise, or . or .. as part of its path")
    return Target(scheme, _host(parts["host"].lower()), port, path, parts["query"] or "")


class Targets:
    """The operator's list.

    Args:
        allow: Each `https://host[:port][/path]`, or with `http://`. A host that begins with `*.` stands for all below
            it.
        allow_private: Whether a host may be an address that is not public.

    Raises:
        ConfigError: An entry is none.
    """

    def __init__(self, allow: Sequence[str], *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._entries = [_entry(text) for text in allow]

    def __bool__(self) -> bool:
        """Whether there is any target at all."""
        return bool(self._entries)

    def target(self, url: str) -> Target:
        """The parts of a URL that a message may go to.

        Raises:
            ValueError: It may not. The text is a sentence without its subject.
        """
        if not self._entries:
            raise ValueError("is not allowed: this server sends no webhooks")
        target = parse(url)
        if not any(entry.covers(target) for entry in self._entries):
            raise ValueError("is not among the targets that the operator allows")
        address = target.address
        if address is not None and not (self._allow_private or public(address)):
            raise ValueError("is an address that is not public")
        return target


class _Entry(NamedTuple):
    """An entry of the list."""

    target: Target
    below: bool
    """Stands for all names below its host, and not for itself."""

    def covers(self, target: Target) -> bool:
        ours = self.target
        if (target.scheme, target.port) != (ours.scheme, ours.port):
            return False
        if self.below:
            if not target.host.endswith(f".{ours.host}"):
                return False
        elif target.host != ours.host:
            return False
        return target.path == ours.path or target.path.startswith(f"{ours.path.removesuffix('/')}/")


def _entry(text: str) -> _Entry:
    below = "://*." in text
    try:
        target = parse(text.replace("://*.", "://", 1))
    except ValueError as exc:
        raise ConfigError(f"jobs.webhooks.allow: {text!r} {exc}") from exc
    if target.query:
        raise ConfigError(f"jobs.webhooks.allow: {text!r} must not have a query")
    if below and target.address is not None:
        raise ConfigError(f"jobs.webhooks.allow: {text!r} has a star before an address")
    return _Entry(target, below)


def _host(text: str) -> str:
    """A host in its one spelling.

    Raises:
        ValueError: It is none.
    """
    if text.startswith("["):
        try:
            return str(IPv6Address(text[1:-1]))
        except ValueError:
            raise ValueError("has a host that is no IPv6 address") from None
    labels = text.split(".")
    if _NUMERIC.fullmatch(labels[-1]):
        try:
            return str(IPv4Address(text))
        except ValueError:
            raise ValueError("has a host that is no IPv4 address in its usual form") from None
    if len(text) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("has a host that is no name")
    return text


def _address(host: str) -> Address | None:
    if ":" in host:
        return IPv6Address(host)
    return IPv4Address(host) if host.rpartition(".")[2].isdecimal() else None
