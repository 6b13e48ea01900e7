"""Where an outgoing connection may go: which IP addresses are public, and which an operator may open one origin to.

The tables follow IANA's registries of special-purpose addresses. Names are nobody's business here: what a name, a
decimal or an octal form resolves to is what is judged, and what is connected to.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from penstock.errors import Denied

OWN = frozenset({"loopback", "private", "shared (carrier-grade NAT)", "unique local"})
"""The kinds of address that an operator may open a tool's origin to; nothing opens the others."""

METADATA = {
    ip_address(address)
    for address in (
        "169.254.169.254",
        "169.254.170.2",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "fd00:ec2::254",
        "fd20:ce::254",
    )
}
"""Where clouds hand their credentials to who asks from inside; one is in a public range."""

SPECIAL_4 = tuple(
    (IPv4Network(network), kind)
    for network, kind in (
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared (carrier-grade NAT)"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "documentation"),
        ("192.88.99.0/24", "reserved"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
)
SPECIAL_6 = tuple(
    (IPv6Network(network), kind)
    for network, kind in (
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::/96", "IPv4-compatible"),
        ("fc00::/7", "unique local"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
        ("2001::/23", "reserved"),
        ("2001:db8::/32", "documentation"),
        ("3fff::/20", "documentation"),
    )
)
GLOBAL_6 = IPv6Network("2000::/3")
MAPPED, NAT64 = IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96")
TEREDO, SIX_TO_FOUR = IPv6Network("2001::/32"), IPv6Network("2002::/16")


def kind_of(address: str) -> str:
    """What an IP address in text is for: "public", or the reason why it is not; raises `ValueError` for other text."""
    parsed = ip_address(address)
    return _kind_4(parsed) if isinstance(parsed, IPv4Address) else _kind_6(IPv6Address(int(parsed)))


def check_address(address: str, *, host: str = "", allow_private: bool = False) -> None:
    """Refuse an address that is not public, with `Denied`; `host` is the name that led to it.

    `allow_private` lets loopback, private, carrier-grade NAT and unique local addresses pass, never the others.
    """
    try:
        kind = kind_of(address)
    except ValueError:
        kind = "unreadable"
    if kind == "public" or (allow_private and kind in OWN):
        return
    shown = f"{host!r} leads to {address!r}, which" if host and host != address else repr(address)
    advice = "; who configures the tool can allow its own origin with allow_private" if kind in OWN else ""
    raise Denied(
        f"{shown} is not a public address ({kind}): no connection was opened{advice}",
        code="address_denied",
        details={"address": address, "kind": kind},
    )


def _kind_4(address: IPv4Address) -> str:
    if address in METADATA:
        return "cloud metadata"
    return next((kind for network, kind in SPECIAL_4 if address in network), "public")


def _kind_6(address: IPv6Address) -> str:
    if address in METADATA:
        return "cloud metadata"
    if address in MAPPED:  # the system opens an IPv4 connection
        return _kind_4(_low_4(address))
    inner = _inside(address)
    if inner:
        worst = next((kind for kind in map(_kind_4, inner) if kind != "public"), "public")
        return worst if worst == "public" else f"tunnel to a {worst} address"
    known = next((kind for network, kind in SPECIAL_6 if address in network), None)
    return known or ("public" if address in GLOBAL_6 else "reserved")


def _inside(address: IPv6Address) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that a translator or a tunnel on the way would take out of it."""
    if address in NAT64:
        return (_low_4(address),)
    if address in SIX_TO_FOUR:
        return (IPv4Address(int(address) >> 80 & 0xFFFF_FFFF),)
    if address in TEREDO:
        return IPv4Address(int(address) >> 64 & 0xFFFF_FFFF), IPv4Address(~int(address) & 0xFFFF_FFFF)
    return ()


def _low_4(address: IPv6Address) -> IPv4Address:
    return IPv4Address(int(address) & 0xFFFF_FFFF)
