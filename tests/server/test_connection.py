"""What Penstock's own protocol tells an answer: when the system has taken all of it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from penstock.server.client import CONNECTION
from penstock.server.protocol import Protocol
from tests.rig.serving import serve_asgi

MB = 1024 * 1024


class Answering:
    """An application that sends `size` bytes and then waits until they have been taken."""

    def __init__(self, size: int, before: Callable[[Protocol], None] = lambda _: None) -> None:
        self._size, self._before = size, before
        self.left: list[int] = []

    async def __call__(self, scope: Any, _: Any, send: Any) -> None:
        connection: Protocol = scope["extensions"][CONNECTION]
        transport: Any = connection.transport
        before = transport.get_write_buffer_limits()
        length = (b"content-length", str(self._size).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": b"x" * self._size})
        self._before(connection)
        await connection.drained()
        open_still = connection in connection.connections
        assert not open_still or transport.get_write_buffer_limits() == before
        self.left.append(transport.get_write_buffer_size() if open_still else -1)

    async def ends(self, count: int = 1) -> None:
        async with asyncio.timeout(10):
            while len(self.left) < count:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def asked(app: Any, head: bytes = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n") -> AsyncIterator[socket.socket]:
    """A client with a small buffer that has asked."""
    with serve_asgi(app, lifespan="off", http=Protocol) as url, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((urlsplit(url).hostname, urlsplit(url).port))
        client.sendall(head)
        client.settimeout(10)
        yield client


def take(client: socket.socket, size: int) -> None:
    while size > 0:
        data = client.recv(MB)
        assert data
        size -= len(data)


@pytest.mark.parametrize("size", [2, 40_000])
async def test_a_small_answer_is_taken_at_once(size: int) -> None:
    app = Answering(size)
    async with asked(app, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 2):
        await app.ends(2)
    assert app.left == [0, 0]


@pytest.mark.parametrize("close", [b"", b"connection: close\r\n"])
async def test_a_large_answer_is_taken_when_its_client_has_read(close: bytes) -> None:
    app = Answering(16 * MB)
    async with asked(app, b"GET / HTTP/1.1\r\nhost: x\r\n%b\r\n" % close) as client:
        await asyncio.sleep(0.3)
        assert app.left == []
        await asyncio.to_thread(take, client, 16 * MB)
        await app.ends()
    assert app.left[0] in ({-1, 0} if close else {0})


async def test_the_end_of_an_answer_is_taken_when_its_client_has_read() -> None:
    left: list[int] = []

    async def app(scope: Any, _: Any, send: Any) -> None:
        connection: Protocol = scope["extensions"][CONNECTION]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not connection.transport.get_write_buffer_size():
            await send({"type": "http.response.body", "body": b"x" * 10_000, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        assert not connection.flow.write_paused
        await connection.drained()
        left.append(connection.transport.get_write_buffer_size())

    async with asked(app) as client, asyncio.timeout(10):
        await asyncio.sleep(0.3)
        assert left == []
        while not left:
            await asyncio.to_thread(client.recv, MB)
            await asyncio.sleep(0)
    assert left == [0]


@pytest.mark.parametrize("by", ["client", "server"])
async def test_a_lost_connection_ends_the_wait(by: str) -> None:
    app = Answering(16 * MB, Protocol.abort if by == "server" else lambda _: None)
    async with asked(app) as client:
        if by == "client":
            await asyncio.sleep(0.2)
            client.close()
        await app.ends()
    assert app.left == [-1]


async def test_nobody_waits_on_a_connection_that_is_lost_already() -> None:
    gone: list[bool] = []

    async def app(scope: Any, _: Any, send: Any) -> None:
        connection: Protocol = scope["extensions"][CONNECTION]
        await _answer(send)
        connection.abort()
        while connection in connection.connections:
            await asyncio.sleep(0.005)
        await connection.drained()
        gone.append(True)

    async with asked(app), asyncio.timeout(10):
        while not gone:
            await asyncio.sleep(0.005)


async def _answer(send: Callable[[Any], Awaitable[None]]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})
