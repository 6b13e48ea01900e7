"""What a connection does with heads of requests: one without end, and offers to speak another protocol."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit

from tests.rig.upstream import Upstream
from tests.server.gateway import chat, gateway, raw_chat


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port)


async def test_a_head_without_end_is_refused(upstream: Upstream) -> None:
    with gateway(upstream) as served:
        reader, writer = await connect(served.url)
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\nx-a: ")
        sent = 0
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                writer.write(b"a" * 1_000_000)
                await writer.drain()
                sent += 1
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = await reader.read()
        assert sent < 50
        assert not answer or answer.startswith(b"HTTP/1.1 431 ")
        assert served.get("/health").status_code == 200
        writer.close()


async def test_a_head_that_is_large_but_ends_is_read(upstream: Upstream) -> None:
    with gateway(upstream) as served:
        assert served.post(chat(stream=False), x_note="n" * 40_000).status_code == 200
        reader, writer = await connect(served.url)
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 70_000)
        await asyncio.sleep(0.2)
        writer.write(b"\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 431 ")
        writer.close()


async def test_an_offer_of_http_2_is_ignored(upstream: Upstream) -> None:
    offer = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAMAAABkAARAAAAAAAIAAAAA"}
    with gateway(upstream) as served:
        reader, writer = await connect(served.url)
        for _ in range(2):
            writer.write(raw_chat(stream=False, headers=offer))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
            await reader.readexactly(int(length.split(b":")[1]))
        writer.close()
