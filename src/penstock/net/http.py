"""A small HTTP/1.1 client for long answers: kept connections, blocks as they are read, a close that tells the service.

It exists because it costs half of what a general client costs for a streamed chunk (benchmarks/README.md); parsing is
httptools', TLS is asyncio's.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import zlib
from collections import deque
from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol, TypeAlias, cast
from urllib.parse import urlsplit

import httptools

from penstock.net.loops import PerLoop
from penstock.net.proxy import open_tunnel, proxy_for

Origin: TypeAlias = tuple[str, str, int]
"""Scheme, host and port."""

HIGH_WATER = 128 * 1024
FRESH_S = 0.05
"""So shortly after an answer a connection is not looked at: to ask the system costs as much as parsing an answer."""

IDLE_S = 60.0
MAX_IDLE = 512


class Inflate(Protocol):
    """What undoes a content coding."""

    def decompress(self, data: bytes, /) -> bytes:
        """The bytes that these stand for."""
        ...


class HttpError(Exception):
    """A connection failed; `started` tells whether the answer had begun."""

    def __init__(self, message: str, *, started: bool) -> None:
        super().__init__(message)
        self.started = started


class Connection(asyncio.Protocol):
    """One connection, used for one exchange at a time: `send`, then `head`, then `block` until it is empty."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._parser: httptools.HttpResponseParser
        self._blocks: list[bytes] = []
        self._new: list[bytes] = []
        self._size = 0
        self._paused = self._framed = self._keeps = self._heard = False
        self._waiter: asyncio.Future[None] | None = None
        self._inflate: Inflate | None = None
        self.idle_since = 0.0
        self.stale = False
        """Whether it was kept, and closed before a byte of the answer to what was sent on it then."""
        self.status = 0
        self.headers: dict[str, str] = {}
        self.complete = True
        self.failure: HttpError | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, and bound what the system takes in for a reader that is slow."""
        self._transport = cast("asyncio.Transport", transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, HIGH_WATER)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the exchange: well, when the answer ends with its connection, else with a failure."""
        if exc is None and self.status and not self._framed and not self.complete:
            self.complete = True
        self.stale = self.idle_since > 0 and not self._heard
        self._fail(f"the connection was closed{f': {exc}' if exc else ''}")

    def data_received(self, data: bytes) -> None:
        """Parse what was read, and wake who waits for it."""
        if self.complete:  # nobody asked: not to be used again
            self._fail("the service sent more than its answer")
            self._transport.abort()
            return
        self._heard = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, zlib.error) as error:
            self._fail(f"the answer is not HTTP: {error}")
            self._transport.abort()
            return
        if self._new:
            block = self._new[0] if len(self._new) == 1 else b"".join(self._new)
            self._new.clear()
            self._blocks.append(block)
            self._size += len(block)
            if self._size > HIGH_WATER and not self._paused:
                self._paused = True
                self._transport.pause_reading()
        self._wake()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep one header."""
        if not self.complete:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Take status and framing; interim answers (1xx) are passed over."""
        status = self._parser.get_status_code()
        if self.complete:  # of another answer in the same read, which nobody asked for
            self._keeps = False
            return
        if status < 200:
            self.headers = {}
            return
        self.status = status
        self._keeps = self._parser.should_keep_alive()
        self._framed = "content-length" in self.headers or "chunked" in self.headers.get("transfer-encoding", "")
        coding = self.headers.get("content-encoding", "identity").lower()
        if coding in {"gzip", "deflate"}:
            self._inflate = zlib.decompressobj(47)

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        if self.complete:
            return
        if self._inflate is None:
            self._new.append(body)
        elif inflated := self._inflate.decompress(body):
            self._new.append(inflated)

    def on_message_complete(self) -> None:
        """Note the end of the answer."""
        self.complete = bool(self.status)

    def send(self, head: bytes, body: bytes) -> None:
        """Begin an exchange."""
        self._parser = httptools.HttpResponseParser(self)
        self._blocks.clear()
        self._size, self.status, self.headers, self.complete, self._inflate = 0, 0, {}, False, None
        self._heard = False
        self._transport.writelines((head, body))

    async def head(self) -> None:
        """Wait for status and headers; raises `HttpError`."""
        while not self.status:
            await self._more()

    async def block(self) -> bytes:
        """The next piece of the body, all that has been read; empty at its end. Raises `HttpError`."""
        while not self._blocks:
            if self.complete:
                return b""
            await self._more()
        block = self._blocks[0] if len(self._blocks) == 1 else b"".join(self._blocks)
        self._blocks.clear()
        self._size = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return block

    @property
    def reusable(self) -> bool:
        """Whether another exchange may follow."""
        return self.complete and self._keeps and self._framed

    @property
    def alive(self) -> bool:
        """Whether the service has not closed it."""
        return self.failure is None and not self._transport.is_closing()

    @property
    def quiet(self) -> bool:
        """Whether nothing waits to be read: a close that a busy loop has not come to see yet would show here."""
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not poll.poll(0)

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    async def _more(self) -> None:
        if self.failure is not None:
            raise self.failure
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _fail(self, reason: str) -> None:
        if self.failure is None:
            self.failure = HttpError(reason, started=bool(self.status))
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Pool:
    """The connections of one event loop, by origin."""

    def __init__(self) -> None:
        self._idle: dict[Origin, deque[Connection]] = {}  # the oldest at the left
        self._tls: ssl.SSLContext | None = None

    async def take(self, origin: Origin, connect_s: float, *, fresh: bool = False) -> Connection:
        """An idle connection to (scheme, host, port), or a new one; raises `OSError` or `TimeoutError`."""
        idle = None if fresh else self._idle.get(origin)
        loop = asyncio.get_running_loop()
        while idle:
            connection = idle.pop()
            rested = loop.time() - connection.idle_since
            if connection.alive and rested < IDLE_S and (rested < FRESH_S or connection.quiet):
                return connection
            connection.abort()
        async with asyncio.timeout(connect_s):
            return await self._connect(*origin)

    async def _connect(self, scheme: str, host: str, port: int) -> Connection:
        loop = asyncio.get_running_loop()
        if scheme == "http":
            return (await loop.create_connection(Connection, host, port))[1]
        if self._tls is None:
            self._tls = ssl.create_default_context()
        proxy = proxy_for(host, port)
        if proxy is None:
            return (await loop.create_connection(Connection, host, port, ssl=self._tls))[1]
        return await open_tunnel(proxy, host, port, tls=self._tls, make=Connection)

    def give(self, origin: Origin, connection: Connection) -> None:
        """Take a connection back when its exchange is over; one that cannot be used again is closed.

        So are all that have been idle for `IDLE_S`, and the oldest beyond `MAX_IDLE` of one origin.
        """
        now = asyncio.get_running_loop().time()
        if connection.reusable and connection.alive:
            connection.idle_since = now
            self._idle.setdefault(origin, deque()).append(connection)
        else:
            connection.abort()
        for idle in self._idle.values():
            while idle and (now - idle[0].idle_since >= IDLE_S or len(idle) > MAX_IDLE):
                idle.popleft().abort()

    def close(self) -> None:
        """Close every idle connection."""
        for connections in self._idle.values():
            for connection in connections:
                connection.abort()
        self._idle.clear()


async def _open() -> Pool:
    return Pool()


async def _close(kept: Pool) -> None:
    kept.close()


_pools = PerLoop(_open, _close)
pool = _pools.get
"""The pool of the running loop, closed when the loop is."""


def request_head(method: str, url: str, headers: Mapping[str, str], length: int) -> tuple[Origin, bytes]:
    """The origin of an address, and the head of a request to it; raises `ValueError` for what HTTP cannot carry."""
    origin, first = _first_lines(method, url)
    lines = [first, f"content-length: {length}", *(f"{name}: {value}" for name, value in headers.items()), "\r\n"]
    head = "\r\n".join(lines)
    if head.count("\n") != len(lines) + 1 or head.count("\r") != len(lines) + 1:
        raise ValueError("a header holds a line break")
    return origin, head.encode("latin-1")


@lru_cache(maxsize=256)
def _first_lines(method: str, url: str) -> tuple[Origin, str]:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"{url!r} is not an http or https address")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    if (parts.scheme, port) not in {("http", 80), ("https", 443)}:
        host = f"{host}:{port}"
    return (parts.scheme, parts.hostname, port), f"{method} {path} HTTP/1.1\r\nhost: {host}"
