"""The proxy that the usual environment variables name: https goes through it in a tunnel (RFC 9110, 9.3.6)."""

from __future__ import annotations

import asyncio
import base64
import ssl
import urllib.request
from collections.abc import Callable
from typing import TypeVar, cast
from urllib.parse import SplitResult, unquote, urlsplit

Peer = TypeVar("Peer", bound=asyncio.Protocol)
MOST_HEAD = 16 * 1024


def proxy_for(host: str, port: int) -> SplitResult | None:
    """Where `HTTPS_PROXY` sends a connection to this host; None when there is no proxy, or `NO_PROXY` excepts it."""
    named = urllib.request.getproxies().get("https")
    if not named or urllib.request.proxy_bypass(f"{host}:{port}"):
        return None
    return urlsplit(named if "://" in named else f"http://{named}")


async def open_tunnel(
    proxy: SplitResult, host: str, port: int, *, tls: ssl.SSLContext, make: Callable[[], Peer]
) -> Peer:
    """Connect to host and port through a proxy and speak TLS inside; raises `OSError` when the proxy refuses."""
    if proxy.scheme != "http" or not proxy.hostname:
        raise OSError(f"the proxy {proxy.scheme}://{proxy.hostname} is not an http address: only those are supported")
    loop = asyncio.get_running_loop()
    transport, greeting = await loop.create_connection(_Greeting, proxy.hostname, proxy.port or 80)
    secured: asyncio.Transport | None = None
    try:
        lines = [f"CONNECT {host}:{port} HTTP/1.1", f"host: {host}:{port}"]
        if proxy.username:
            user = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
            lines.append(f"proxy-authorization: Basic {base64.b64encode(user.encode()).decode()}")
        transport.write("\r\n".join([*lines, "\r\n"]).encode("latin-1"))
        await greeting.welcome
        peer = make()
        secured = await loop.start_tls(transport, peer, tls, server_hostname=host)
    finally:
        if secured is None:
            transport.abort()
    peer.connection_made(cast("asyncio.Transport", secured))
    return peer


class _Greeting(asyncio.Protocol):
    """Reads the head of a proxy's answer; `welcome` is done when it is a good one, else fails with `OSError`."""

    def __init__(self) -> None:
        self.welcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._head = b""

    def data_received(self, data: bytes) -> None:
        self._head += data
        head, end, _ = self._head.partition(b"\r\n\r\n")
        if self.welcome.done() or not (end or len(head) > MOST_HEAD):
            return
        words = head.split(b" ", 2)
        if end and len(words) > 1 and words[0].startswith(b"HTTP/1.") and words[1][:1] == b"2":
            self.welcome.set_result(None)
        else:
            line = head.splitlines()[0][:80].decode("latin-1") if head else ""
            self.welcome.set_exception(OSError(f"the proxy answered {line!r} to CONNECT"))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.welcome.done():
            self.welcome.set_exception(exc or OSError("the proxy closed the connection"))
