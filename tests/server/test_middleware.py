"""Clients that leave behind other people's middleware, and on uvicorn's own protocol: seen, and nothing logged."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.server.sse import PING
from tests.rig.upstream import Plain, Silence, Stream, Upstream, chunk, completion, text_stream
from tests.server.gateway import Gateway, access_log, chat, dechunked, gateway, sse_bytes

TIMES = 6
LONG = Stream([chunk("", role="assistant"), *(chunk(f" {n}") for n in range(400))], delay_s=0.01)
Front = Callable[[Any], Any]


def hiding(app: ASGIApp) -> ASGIApp:
    """Hides what the server offers, and takes its time after each message."""

    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        async def slowly(message: Message) -> None:
            await send(message)
            await asyncio.sleep(0.002)

        await app({name: said for name, said in scope.items() if name != "extensions"}, receive, slowly)

    return front


async def _through(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    answer = await call_next(request)
    answer.headers["x-front"] = "seen"
    return answer


def based(app: ASGIApp) -> ASGIApp:
    """Starlette's own."""
    return BaseHTTPMiddleware(app, dispatch=_through)


def hiding_and_based(app: ASGIApp) -> ASGIApp:
    return hiding(based(app))


FRONTS = [
    pytest.param(hiding, False, id="a pure one that hides extensions"),
    pytest.param(based, False, id="BaseHTTPMiddleware"),
    pytest.param(based, True, id="BaseHTTPMiddleware on plain uvicorn"),
    pytest.param(hiding_and_based, False, id="both"),
    pytest.param(None, True, id="plain uvicorn"),
]
fronts = pytest.mark.parametrize(("front", "plain"), FRONTS)


def assert_nothing_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def leave(served: Gateway, upstream: Upstream, *, after: bytes, headers: dict[str, str], stream: bool) -> float:
    seen = len(upstream.requests)
    reader, writer = await served.open(stream=stream, headers=headers)
    await asyncio.to_thread(upstream.wait_requests, seen + 1)
    if after:
        await asyncio.wait_for(reader.readuntil(after), 5)
    gone_at = time.monotonic()
    writer.transport.abort()
    return gone_at


@fronts
async def test_case_02_a_leaving_client_is_seen_behind_middleware(
    front: Front | None, plain: bool, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    with access_log() as log, gateway(upstream, front=front, plain=plain) as served:
        for n in range(3 * TIMES):
            phase = ("mid-stream", "before the first token", "not streaming")[n % 3]
            upstream.script(LONG if phase == "mid-stream" else Silence())
            after = b'" 1"' if phase == "mid-stream" else b""
            gone_at = await leave(served, upstream, after=after, headers={}, stream=phase != "not streaming")
            closed = await asyncio.to_thread(upstream.wait_closed, n + 1)
            assert closed[n].at - gone_at < 1.0, phase
        await log.row(3 * TIMES)
        assert {row["status"] for row in log.rows} == {499}
    assert_nothing_logged(caplog)


@fronts
async def test_case_02_finish_goes_on_behind_middleware(
    front: Front | None, plain: bool, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    long = Stream(text_stream(" ".join("abcdefghijklmnop")), delay_s=0.01)
    upstream.default = lambda asked: long if asked.json["stream"] else Plain(completion("whole"), think_s=0.1)
    with access_log() as log, gateway(upstream, front=front, plain=plain) as served:
        for n, (stream, after) in enumerate([(True, b""), (True, b'" c"'), (False, b"")]):
            await leave(served, upstream, after=after, headers={"x-disconnect-policy": "finish"}, stream=stream)
            row = await log.row(n + 1)
            assert "cancelled" not in row
            assert "error" not in row
    assert upstream.closed_early == []
    assert_nothing_logged(caplog)


@fronts
async def test_case_02_those_who_stay_are_answered_behind_middleware(
    front: Front | None, plain: bool, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    answer = Stream(text_stream("a b c d e f g h"), delay_s=0.005)
    thinking = Stream(text_stream("a b"), think_s=0.3)
    full = Plain({"error": {"message": "full"}}, status=429)
    upstream.script(answer, Plain(completion("whole")), full, Stream(text_stream("a b c"), cut_after=2), thinking)
    with access_log() as log, gateway(upstream, front=front, plain=plain, server={"heartbeat_s": 0.1}) as served:
        reader, writer = await served.open()
        await reader.readuntil(b"\r\n\r\n")
        streamed = dechunked(await reader.readuntil(b"0\r\n\r\n"))
        assert streamed.replace(PING, b"") == sse_bytes(answer)  # a busy machine may have paused for a heartbeat
        writer.close()
        whole = await asyncio.to_thread(served.post, chat(stream=False))
        assert whole.json()["choices"][0]["message"]["content"] == "whole"
        refused = await asyncio.to_thread(served.post, chat())
        assert (refused.status_code, refused.json()["error"]["message"]) == (429, "full")
        cut = await asyncio.to_thread(served.post, chat())
        assert (cut.status_code, b'"error"' in cut.content, b"[DONE]" in cut.content) == (200, True, False)
        slow = await asyncio.to_thread(served.post, chat())
        assert slow.content.startswith(b": ping\n\n")
        assert slow.content.endswith(b"data: [DONE]\n\n")
        await log.row(5)
        assert [row["status"] for row in log.rows] == [200, 200, 429, 200, 200]
    assert upstream.closed_early == []
    assert_nothing_logged(caplog)
