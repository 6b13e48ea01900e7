"""Clients that leave: in every phase the upstream sees it at once, and nobody else notices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from tests.rig.upstream import Plain, Silence, Stream, Upstream, chunk, completion, text_stream, usage_of
from tests.server.gateway import (
    AccessLog,
    Gateway,
    access_log,
    chat,
    dechunked,
    error_of,
    gateway,
    raw_chat,
    sse_bytes,
)

TIMES = 30
WITHIN_S = 1.0
LONG = Stream([chunk("", role="assistant"), *(chunk(f" {n}") for n in range(400)), chunk(finish="stop")], delay_s=0.02)


@pytest.fixture
def served(upstream: Upstream) -> Iterator[Gateway]:
    with gateway(upstream) as found:
        yield found


@pytest.fixture
def log() -> Iterator[AccessLog]:
    with access_log() as found:
        yield found


async def leave(served: Gateway, upstream: Upstream, *, after: bytes = b"", stream: bool = True) -> float:
    """Send a request, read up to `after`, leave; returns the seconds until the upstream saw it."""
    seen, left = len(upstream.requests), len(upstream.closed_early)
    reader, writer = await served.open(stream=stream)
    await asyncio.to_thread(upstream.wait_requests, seen + 1)
    if after:
        await asyncio.wait_for(reader.readuntil(after), 5)
    gone_at = time.monotonic()
    writer.transport.abort()
    closed = await asyncio.to_thread(upstream.wait_closed, left + 1)
    return closed[left].at - gone_at


@pytest.mark.parametrize("phase", ["mid-stream", "before the first token", "not streaming"])
async def test_case_01_the_upstream_sees_a_leaving_client(
    phase: str, served: Gateway, upstream: Upstream, log: AccessLog
) -> None:
    upstream.default = lambda _: LONG if phase == "mid-stream" else Silence()
    after = b'" 1"' if phase == "mid-stream" else b""
    took = [await leave(served, upstream, after=after, stream=phase != "not streaming") for _ in range(TIMES)]
    assert max(took) < WITHIN_S
    await log.row(TIMES)
    assert {row["status"] for row in log.rows} == {499}
    assert {row["cancelled"] for row in log.rows} == {"the client left"}


async def test_case_01_the_others_get_identical_bytes(served: Gateway, upstream: Upstream) -> None:
    answer = Stream(text_stream("a b c d e f g h i j k l m n o p q r s t"), delay_s=0.01)
    upstream.default = lambda _: answer

    async def read() -> bytes:
        reader, writer = await served.open()
        await reader.readuntil(b"\r\n\r\n")
        body = await reader.readuntil(b"0\r\n\r\n")
        writer.close()
        return dechunked(body)

    readers = [asyncio.create_task(read()) for _ in range(49)]
    await leave(served, upstream, after=b'" c"')
    assert set(await asyncio.gather(*readers)) == {sse_bytes(answer)}
    assert len(upstream.closed_early) == 1


async def test_case_01_a_client_that_leaves_while_it_sends_its_request(
    served: Gateway, upstream: Upstream, log: AccessLog
) -> None:
    whole = raw_chat(padding="x" * 100_000)
    _, writer = await served.open()
    writer.write(whole[: len(whole) // 2])
    await writer.drain()
    await log.row()
    writer.transport.abort()
    assert (await log.row(2))["status"] == 499
    assert len(upstream.requests) == 1


async def test_case_01_a_large_body_does_not_hide_that_its_client_leaves(served: Gateway, upstream: Upstream) -> None:
    upstream.default = lambda _: Silence()
    whole = raw_chat(stream=False, padding="x" * 200_000)
    head, body = whole[:400], whole[400:]
    _, writer = await served.open(stream=False)
    await asyncio.to_thread(upstream.wait_requests, 1)
    writer.transport.abort()
    _, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rsplit(":", 1)[1]))
    writer.write(head)
    await asyncio.sleep(0.05)  # so that the body arrives while it is waited for
    writer.write(body)
    await asyncio.to_thread(upstream.wait_requests, 2)
    gone_at = time.monotonic()
    writer.transport.abort()
    closed = await asyncio.to_thread(upstream.wait_closed, 2)
    assert closed[1].at - gone_at < WITHIN_S


async def test_case_01_pipelined_requests_do_not_hide_that_their_client_leaves(
    served: Gateway, upstream: Upstream
) -> None:
    upstream.script(Plain(completion("first"), think_s=0.1), Silence(), Silence())
    reader, writer = await served.open(stream=False)
    writer.write(raw_chat(stream=False))
    assert b"first" in await reader.readuntil(b"}}")
    await asyncio.to_thread(upstream.wait_requests, 2)
    writer.write(raw_chat(stream=False))
    await asyncio.sleep(0.05)
    gone_at = time.monotonic()
    writer.transport.abort()
    closed = await asyncio.to_thread(upstream.wait_closed, 1)
    assert closed[0].at - gone_at < WITHIN_S
    await asyncio.sleep(0.05)
    assert len(upstream.requests) == 2, "the third request was run for nobody"


async def test_case_03_finish_reads_the_answer_to_its_end(served: Gateway, upstream: Upstream, log: AccessLog) -> None:
    usage = usage_of(prompt=3, completion=21)
    answer = Stream(text_stream(" ".join("abcdefghijklmnopqrst"), usage=usage), delay_s=0.01)
    upstream.script(answer, Plain(completion("whole", usage=usage), think_s=0.2))
    for stream in (True, False):
        _, writer = await served.open(stream=stream, headers={"x-disconnect-policy": "finish"})
        await asyncio.to_thread(upstream.wait_requests, 1 if stream else 2)
        writer.transport.abort()
        row = await log.row(1 if stream else 2)
        assert "cancelled" not in row
        assert "error" not in row
        assert (row["in"], row["out"], row["partial"]) == (3, 21, None)
    assert upstream.closed_early == []


def test_case_03_detach_is_refused(served: Gateway, upstream: Upstream) -> None:
    answer = served.post(chat(), x_disconnect_policy="detach")
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "unsupported_value"
    assert error_of(answer)["param"] == "x-disconnect-policy"
    assert upstream.requests == []


async def test_case_03_the_configuration_sets_the_policy(upstream: Upstream, log: AccessLog) -> None:
    upstream.default = lambda _: Plain(completion("whole"), think_s=0.2)
    with gateway(upstream, server={"disconnect": "finish"}) as served:
        for policy in (None, "cancel"):
            headers = {"x-disconnect-policy": policy} if policy else {}
            _, writer = await served.open(stream=False, headers=headers)
            await asyncio.to_thread(upstream.wait_requests, 2 if policy else 1)
            writer.transport.abort()
            await log.row(2 if policy else 1)
    assert "cancelled" not in log.rows[0]
    assert "cancelled" in log.rows[1]


async def test_case_14_a_cancelled_stream_logs_its_usage_as_partial(
    served: Gateway, upstream: Upstream, log: AccessLog
) -> None:
    pieces = 12
    upstream.script(Stream([chunk(f" {n}") for n in range(pieces + 1)], stall_after=pieces))
    reader, writer = await served.open()
    await asyncio.wait_for(reader.readuntil(f'" {pieces - 1}"'.encode()), 5)
    writer.transport.abort()
    row = await log.row()
    assert row["partial"] is True
    assert abs(row["out"] - pieces) <= 1
    assert row["in"] > 0


async def test_case_17_slots_return_after_disconnects(upstream: Upstream) -> None:
    upstream.default = lambda _: LONG
    with gateway(upstream, model={"limit": {"concurrent": 5}}) as served:
        for _ in range(4):
            closed = len(upstream.closed_early)
            streams = [await served.open() for _ in range(5)]
            for reader, _ in streams:
                await asyncio.wait_for(reader.readuntil(b'" 0"'), 5)
            refused = await asyncio.to_thread(served.post, chat())
            assert refused.status_code == 429
            for _, writer in streams:
                writer.transport.abort()
            await asyncio.to_thread(upstream.wait_closed, closed + 5)
        upstream.default = lambda _: Plain(completion("free"))
        assert (await asyncio.to_thread(served.post, chat(stream=False))).status_code == 200
