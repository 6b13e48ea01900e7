"""The shared aiohttp session: every connection it opens passes the egress policy, redirects and changed names too.

An address is judged after it was resolved and right before it is connected to, with no second look-up between. There
is one session for public addresses and one for each origin that an operator opened to private ones, as a connection
that is kept is not judged again. Proxies of the environment are not used: behind one, no address could be judged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from penstock.net.loops import PerLoop
from penstock.net.secrets import origin_of

if TYPE_CHECKING:
    from aiohttp import ClientSession
    from aiohttp.abc import AbstractResolver

CONNECT_S = 10.0
"""A connection that is not accepted within so many seconds has failed; whoever calls sets the limit of the whole."""

PER_HOST = 100
"""Connections at once to one origin; further calls wait for one of them."""

Sessions: TypeAlias = "dict[str | None, ClientSession]"


async def session(allow: str | None = None) -> ClientSession:
    """The running loop's session, closed when the loop is.

    It reaches public addresses, and private ones too under the origin of the address `allow`; where it would connect
    to another, it raises `Denied`. It keeps no cookies, and has no limit of time but that for connecting.
    """
    kept = await _sessions.get()
    key = None if allow is None else origin_of(allow)
    found = kept.get(key)
    if found is None or found.closed:
        found = kept[key] = open_session(allow)
    return found


def open_session(allow: str | None = None, *, resolver: AbstractResolver | None = None) -> ClientSession:
    """A session under the same policy for the caller to close; `resolver` looks names up in place of the system."""
    import aiohttp

    from penstock.net.connector import EgressConnector, checked_socket

    connector = EgressConnector(
        resolver=resolver or aiohttp.ThreadedResolver(),
        limit=0,
        limit_per_host=PER_HOST,
        socket_factory=checked_socket,
    )
    connector.own = None if allow is None else origin_of(allow)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        trust_env=False,
    )


async def _open() -> Sessions:
    return {}


async def _close(kept: Sessions) -> None:
    for one in kept.values():
        await one.close()


_sessions = PerLoop(_open, _close)
