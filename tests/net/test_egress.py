"""Which addresses an outgoing connection may go to, with every way there is to write a private one."""

from __future__ import annotations

import socket

import pytest

from penstock.errors import Denied
from penstock.net import check_address, kind_of

REFUSED = {
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "0.0.0.0": "unspecified",
    "0.1.2.3": "unspecified",
    "10.0.0.1": "private",
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.168.1.1": "private",
    "100.64.0.1": "shared (carrier-grade NAT)",
    "100.127.255.255": "shared (carrier-grade NAT)",
    "169.254.1.1": "link-local",
    "192.0.0.8": "reserved",
    "192.0.2.1": "documentation",
    "192.88.99.1": "reserved",
    "198.18.0.1": "benchmarking",
    "198.51.100.7": "documentation",
    "203.0.113.9": "documentation",
    "224.0.0.1": "multicast",
    "239.255.255.250": "multicast",
    "240.0.0.1": "reserved",
    "255.255.255.255": "reserved",
    "169.254.169.254": "cloud metadata",
    "169.254.170.2": "cloud metadata",
    "100.100.100.200": "cloud metadata",
    "168.63.129.16": "cloud metadata",
    "192.0.0.192": "cloud metadata",
    "fd00:ec2::254": "cloud metadata",
    "fd20:ce::254": "cloud metadata",
    "::ffff:169.254.169.254": "cloud metadata",
    "::": "unspecified",
    "::1": "loopback",
    "::127.0.0.1": "IPv4-compatible",
    "::8.8.8.8": "IPv4-compatible",
    "::ffff:127.0.0.1": "loopback",
    "::ffff:7f00:1": "loopback",
    "::ffff:10.1.2.3": "private",
    "::ffff:0:10.1.2.3": "reserved",
    "64:ff9b::127.0.0.1": "tunnel to a loopback address",
    "64:ff9b::a9fe:a9fe": "tunnel to a cloud metadata address",
    "64:ff9b:1::1": "reserved",
    "2002:7f00:1::": "tunnel to a loopback address",
    "2002:c0a8:101::1": "tunnel to a private address",
    "2001:0:c0a8:101::f7f7:f7f7": "tunnel to a private address",
    "2001:0:808:808::80ff:fffe": "tunnel to a loopback address",
    "2001:2::1": "reserved",
    "2001:db8::1": "documentation",
    "3fff::1": "documentation",
    "100::1": "reserved",
    "4000::1": "reserved",
    "fc00::1": "unique local",
    "fdff::1": "unique local",
    "fe80::1": "link-local",
    "fe80::1%lo": "link-local",
    "fec0::1": "site-local",
    "ff02::1": "multicast",
}
PUBLIC = (
    "8.8.8.8",
    "1.1.1.1",
    "11.0.0.1",
    "100.63.255.255",
    "100.128.0.1",
    "126.255.255.255",
    "128.0.0.1",
    "169.253.1.1",
    "172.15.255.255",
    "172.32.0.1",
    "192.0.1.1",
    "192.167.1.1",
    "198.17.0.1",
    "198.20.0.1",
    "223.255.255.255",
    "2606:4700::1111",
    "2a00:1450:4001::200e",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2002:808:808::1",
    "2001:0:808:808::f7f7:f7f7",
)


@pytest.mark.parametrize("address", REFUSED)
def test_case_22_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert kind_of(address) == REFUSED[address]
    with pytest.raises(Denied) as refused:
        check_address(address, host="tool.example")
    assert refused.value.code == "address_denied"
    assert not refused.value.retryable
    assert refused.value.details == {"address": address, "kind": REFUSED[address]}
    assert "'tool.example'" in refused.value.message
    assert repr(address) in refused.value.message


@pytest.mark.parametrize("address", REFUSED)
def test_case_22_an_operator_opens_private_addresses_and_nothing_else(address: str) -> None:
    if REFUSED[address] in {"loopback", "private", "shared (carrier-grade NAT)", "unique local"}:
        check_address(address, allow_private=True)
        return
    with pytest.raises(Denied):
        check_address(address, allow_private=True)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_pass(address: str) -> None:
    assert kind_of(address) == "public"
    check_address(address)


@pytest.mark.parametrize("written", ["127.1", "0x7f.1", "2130706433", "0177.0.0.1", "0x7f000001", "017700000001"])
def test_case_22_old_forms_of_an_address_are_judged_by_what_they_resolve_to(written: str) -> None:
    resolved = socket.getaddrinfo(written, 80, type=socket.SOCK_STREAM)[0][4][0]
    assert kind_of(str(resolved)) == "loopback"
    with pytest.raises(Denied, match="unreadable"):
        check_address(written)


def test_the_message_says_who_can_allow_it() -> None:
    with pytest.raises(Denied, match="allow_private"):
        check_address("10.0.0.1")
    with pytest.raises(Denied) as refused:
        check_address("169.254.169.254")
    assert "allow_private" not in refused.value.message
