"""Clients that read slowly, or not at all: reading upstream pauses with them, and nobody waits forever."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.rig.upstream import Plain, Stream, Upstream, chunk, completion
from tests.server.gateway import Gateway, access_log, chat, dechunked, gateway, raw_chat, sse_bytes
from tests.server.test_middleware import hiding

MB = 1024 * 1024
BIG = Stream([chunk("", role="assistant"), *(chunk("x" * 10_000) for _ in range(2400)), chunk(finish="stop")])
# What the kernel takes on the two connections, whatever Penstock does, and Penstock's own part.
MOST = 12 * MB


def slow_client(served: Gateway, **fields: Any) -> socket.socket:
    """A connection with a request on it and the smallest receive buffer."""
    parts = urlsplit(served.url)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((parts.hostname, parts.port))
    client.sendall(raw_chat(**fields))
    return client


def settled(read: Callable[[], int], quiet_s: float = 0.2) -> int:
    """A number once it has not changed for a while."""
    seen, since = read(), time.monotonic()
    while time.monotonic() - since < quiet_s:
        time.sleep(0.02)
        if (now := read()) != seen:
            seen, since = now, time.monotonic()
    return seen


def read_all(client: socket.socket) -> bytes:
    """Everything up to the end of the body."""
    parts: list[bytes] = []
    client.settimeout(10)
    while not (parts and parts[-1].endswith(b"0\r\n\r\n")):
        data = client.recv(1 << 20)
        if not data:
            break
        parts.append(data)
    return b"".join(parts)


def test_case_11_reading_upstream_pauses_with_a_slow_reader(upstream: Upstream) -> None:
    upstream.script(BIG)
    with gateway(upstream) as served, slow_client(served) as client:
        upstream.wait_requests()
        paused_at = settled(lambda: upstream.sent_bytes)
        assert paused_at < MOST < len(sse_bytes(BIG))
        head, _, body = read_all(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert dechunked(body) == sse_bytes(BIG)
    assert upstream.closed_early == []


@pytest.mark.parametrize("policy", ["cancel", "finish"])
@pytest.mark.parametrize(
    ("front", "plain"), [pytest.param(None, False, id="penstock's"), pytest.param(hiding, True, id="plain uvicorn")]
)
async def test_case_11_a_client_that_takes_nothing_is_gone(
    policy: str, front: Callable[[Any], Any] | None, plain: bool, upstream: Upstream
) -> None:
    upstream.script(BIG)
    server = {"write_stall_s": 0.25, "heartbeat_s": 5.0}
    with (
        access_log() as log,
        gateway(upstream, server=server, front=front, plain=plain) as served,
        slow_client(served, headers={"x-disconnect-policy": policy}) as client,
    ):
        row = await log.row()
        assert row["status"] == 499
        if policy == "cancel":
            assert row["cancelled"] == "the client took nothing for 0.25 s"
            assert len(await asyncio.to_thread(upstream.wait_closed)) == 1
        else:
            assert upstream.sent_bytes > len(sse_bytes(BIG))
            assert upstream.closed_early == []
        if not plain:
            got = await asyncio.to_thread(read_all, client)
            assert not got.endswith(b"0\r\n\r\n")


def test_case_11_a_reader_that_is_slow_but_reads_is_not_gone(upstream: Upstream) -> None:
    some = Stream([*BIG.chunks[:600], BIG.chunks[-1]])
    upstream.script(some)
    with gateway(upstream, server={"write_stall_s": 0.5}) as served, slow_client(served) as client:
        got, slow_until = bytearray(), time.monotonic() + 1.2
        while not got.endswith(b"0\r\n\r\n"):
            if time.monotonic() < slow_until:
                time.sleep(0.008)
            data = client.recv(1 << 16)
            assert data, "closed"
            got += data
    assert dechunked(bytes(got).partition(b"\r\n\r\n")[2]) == sse_bytes(some)


def test_case_11_others_are_served_meanwhile(upstream: Upstream) -> None:
    upstream.script(BIG)
    with gateway(upstream) as served, slow_client(served):
        upstream.wait_requests()
        for _ in range(20):
            assert served.post(chat()).status_code == 200


async def test_case_14_a_slow_reader_who_leaves_is_counted(upstream: Upstream) -> None:
    upstream.script(BIG)
    with access_log() as log, gateway(upstream) as served:
        with slow_client(served) as client:
            await asyncio.to_thread(settled, lambda: upstream.sent_bytes)
            client.recv(100)
        row = await log.row()
    assert row["partial"]
    assert 0 < row["out"] < 2400


async def test_case_11_a_whole_answer_that_nobody_takes_is_given_up(upstream: Upstream) -> None:
    upstream.script(Plain(completion("x" * 20_000_000)))
    server = {"write_stall_s": 0.25}
    with access_log() as log, gateway(upstream, server=server) as served, slow_client(served, stream=False):
        row = await log.row()
    assert row["status"] == 499


def test_case_11_a_whole_answer_that_is_read_slowly_is_not_given_up(upstream: Upstream) -> None:
    upstream.script(Plain(completion("x" * 8_000_000)))
    with gateway(upstream, server={"write_stall_s": 0.5}) as served, slow_client(served, stream=False) as client:
        got, slow_until = bytearray(), time.monotonic() + 1.2
        while not got.endswith(b"}}"):
            if time.monotonic() < slow_until:
                time.sleep(0.008)
            data = client.recv(1 << 16)
            assert data, "closed"
            got += data
    assert len(got) > 8_000_000
