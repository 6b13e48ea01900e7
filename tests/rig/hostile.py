"""A real HTTP server on loopback that answers as it is told, redirects, dribbles and endless bodies included."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

from aiohttp.abc import AbstractResolver, ResolveResult


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it came, its target undecoded and its header names in small letters."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


Answer: TypeAlias = "bytes | Callable[[Seen], bytes | AsyncIterator[bytes]]"


@dataclass(slots=True)
class Hostile:
    """The server: what it saw, how many connections came, are open, and were left by the peer before their answer."""

    answers: Mapping[str, Answer]
    port: int = 0
    seen: list[Seen] = field(default_factory=list[Seen])
    connections: int = 0
    open: int = 0
    left: asyncio.Event = field(default_factory=asyncio.Event)
    sent: int = 0
    writers: set[asyncio.StreamWriter] = field(default_factory=set[asyncio.StreamWriter])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, request after request."""
        self.connections += 1
        self.open += 1
        self.writers.add(writer)
        try:
            first = await _next(reader)
            while first:
                seen = await _request(first, reader)
                self.seen.append(seen)
                coming = asyncio.ensure_future(_next(reader))
                giving = asyncio.ensure_future(self._give(seen, writer))
                await asyncio.wait((coming, giving), return_when=asyncio.FIRST_COMPLETED)
                if not giving.done():
                    giving.cancel()
                    self.left.set()
                    return
                giving.result()
                first = await coming
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left.set()
        finally:
            self.open -= 1
            self.writers.discard(writer)
            writer.transport.abort()

    async def _give(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        answer = self.answers.get(seen.target.partition("?")[0], self.answers.get("*", said(404)))
        given = answer if isinstance(answer, bytes) else answer(seen)
        if isinstance(given, bytes):
            writer.write(given)
            await writer.drain()
            return
        async for piece in given:
            writer.write(piece)
            await writer.drain()
            self.sent += len(piece)
        writer.close()


async def _next(reader: asyncio.StreamReader) -> bytes:
    """The first byte of the next request; empty where the peer has left."""
    try:
        return await reader.read(1)
    except ConnectionError:
        return b""


async def _request(first: bytes, reader: asyncio.StreamReader) -> Seen:
    head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    start, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
    method, target, _ = start.split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Seen(method, target, headers, await reader.readexactly(int(headers.get("content-length", 0))))


@asynccontextmanager
async def hostile(answers: Mapping[str, Answer], tls: ssl.SSLContext | None = None) -> AsyncIterator[Hostile]:
    """Serves `answers`, by path; "*" stands for every other one."""
    served = Hostile(answers)
    listening = socket.create_server(("127.0.0.1", 0))
    server = await asyncio.start_server(served.serve, sock=listening, ssl=tls)
    served.port = listening.getsockname()[1]
    try:
        yield served
    finally:
        server.close()
        for writer in served.writers:
            writer.transport.abort()
        while served.open:
            await asyncio.sleep(0.005)


def said(status: int, body: bytes = b"", kind: str = "text/plain", **headers: str) -> bytes:
    """A whole answer; underscores in header names stand for dashes."""
    lines = [f"HTTP/1.1 {status} Said", f"content-length: {len(body)}", f"content-type: {kind}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def to(where: str, status: int = 302) -> bytes:
    """A redirect."""
    return said(status, location=where)


def bomb(size: int, kind: str = "text/plain") -> bytes:
    """An answer of a few kilobytes that unpacks to `size` zeros."""
    return said(200, gzip.compress(bytes(size)), kind, content_encoding="gzip")


def endless(kind: str = "text/plain", pause_s: float = 0.0) -> Callable[[Seen], AsyncIterator[bytes]]:
    """A body without end, in pieces of 16 KiB."""

    async def give(_: Seen) -> AsyncIterator[bytes]:
        yield f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n\r\n".encode()
        while True:
            yield b"x" * 16_384
            await asyncio.sleep(pause_s)

    return give


async def silence(_: Seen) -> AsyncIterator[bytes]:
    """No answer at all."""
    await asyncio.Event().wait()
    yield b""


class Names(AbstractResolver):
    """Looks names up in a table; each look-up of a name gives its next list of addresses, the last one for ever."""

    def __init__(self, table: Mapping[str, list[list[str]]]) -> None:
        self._table = {name: list(lists) for name, lists in table.items()}
        self.asked: list[str] = []

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_INET,  # asked for, not needed
    ) -> list[ResolveResult]:
        self.asked.append(host)
        if host not in self._table:
            raise OSError(None, f"no such name: {host!r}")
        lists = self._table[host]
        found = lists.pop(0) if len(lists) > 1 else lists[0]
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in found
        ]

    async def close(self) -> None:
        """Nothing is held."""
