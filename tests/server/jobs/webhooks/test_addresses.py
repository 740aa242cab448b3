"""Which addresses are public."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay_server.jobs.webhooks.addresses import public

PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "100.63.255.255", "100.128.0.0", "172.15.255.255", "172.32.0.0"]
PUBLIC += ["192.0.1.0", "223.255.255.255", "2606:4700:4700::1111", "2a00:1450:4001::1", "2001:4860:4860::8888"]
NOT_PUBLIC = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.255"),
    *("168.63.129.16", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1"),
    *("192.168.1.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255"),
    *("240.0.0.1", "255.255.255.255"),
    *("::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1"),
    *("100::1", "2001::1", "2001:0:7f00:1::", "2001:db8::1", "2002:7f00:1::", "3fff::1", "4000::1", "fc00::1"),
    *("fd00:ec2::254", "fe80::1", "fe80::1%eth0", "2606:4700::1%eth0", "fec0::1", "ff02::1"),
]


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses(text):
    """What anybody can connect to is public, up to the borders of the blocks that are not."""
    assert public(ip_address(text))


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_other_addresses(text):
    """Private, shared, local, reserved, and whatever has an IPv4 address inside, is not public."""
    assert not public(ip_address(text))


@given(st.integers(0, 2**32 - 1).map(IPv4Address) | st.integers(0, 2**128 - 1).map(IPv6Address))
def test_never_wider_than_the_standard_library(address):
    """What the standard library does not call global, is not public here."""
    assert not public(address) or (address.is_global and not address.is_multicast)


@given(st.integers(0, 2**125 - 1))
def test_never_wider_in_the_block_where_addresses_are_public(low):
    """The same inside 2000::/3, which random addresses seldom meet."""
    address = IPv6Address((1 << 125) | low)
    assert not public(address) or address.is_global
