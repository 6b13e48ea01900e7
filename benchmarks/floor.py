"""The gateway's floor: the least an ASGI application with a general HTTP client does to forward a chat and see it.

It passes the bytes on, reads text and usage from a narrow view of them, lets go of the upstream when its client leaves
and records one span. It checks nothing: no tokens, no fields, no repairs. `UPSTREAM` is the address it forwards to.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import aiohttp
import msgspec
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span

URL = f"{os.environ.get('UPSTREAM', 'http://127.0.0.1:9000')}/v1/chat/completions"
HEADERS = {"content-type": "application/json"}


class Said(msgspec.Struct):
    """The text of a delta or of a message."""

    content: str | None = None


class Choice(msgspec.Struct):
    """A choice, whole or streamed."""

    delta: Said | None = None
    message: Said | None = None


class Used(msgspec.Struct):
    """The tokens of an answer."""

    total_tokens: int = 0


class View(msgspec.Struct):
    """What is read of an answer or of a chunk."""

    choices: list[Choice] = []
    usage: Used | None = None


class Dropped(SpanExporter):
    """An exporter that takes every span and sends none."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:  # noqa: ARG002  # the SDK's signature
        """Say that all went well."""
        return SpanExportResult.SUCCESS


class Seen:
    """The text and the tokens of one answer, read from its bytes as they pass."""

    __slots__ = ("_rest", "texts", "tokens")

    def __init__(self) -> None:
        self._rest = b""
        self.texts: list[str] = []
        self.tokens = 0

    def events(self, data: bytes) -> None:
        *events, self._rest = (self._rest + data).split(b"\n\n")
        for event in events:
            if event != b"data: [DONE]":
                self.piece(event[6:])

    def whole(self, data: bytes) -> None:
        self._rest += data

    def end(self) -> None:
        if self._rest:
            self.piece(self._rest)

    def piece(self, data: bytes) -> None:
        view = decode(data)
        for choice in view.choices:
            said = choice.delta or choice.message
            if said is not None and said.content:
                self.texts.append(said.content)
        if view.usage is not None:
            self.tokens = view.usage.total_tokens


decode = msgspec.json.Decoder(View).decode
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(Dropped()))
tracer = provider.get_tracer("floor")
sessions: list[aiohttp.ClientSession] = []


async def app(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """Forward every POST to the upstream, and say 200 to everything else."""
    if scope["type"] == "lifespan":
        await live(receive, send)
    elif scope["method"] != "POST":
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})
    else:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        await forward(body, receive, send)


async def live(receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """Hold one session from the server's start to its end."""
    await receive()
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=600)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
        sessions.append(session)
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def forward(body: bytes, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """Answer one chat request in a span; a client that leaves cancels it."""
    task = asyncio.current_task()
    watch = asyncio.create_task(until_left(receive, task))
    span = tracer.start_span("chat")
    try:
        await pass_on(body, send, span)
    except asyncio.CancelledError:  # nobody is left to answer
        span.set_attribute("left", value=True)
    finally:
        watch.cancel()
        span.end()


async def until_left(receive: Callable[[], Awaitable[Any]], task: asyncio.Task[Any] | None) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    if task is not None:
        task.cancel()


async def pass_on(body: bytes, send: Callable[[Any], Awaitable[None]], span: Span) -> None:
    """Send the upstream's answer on as it comes, and note on the span what it said."""
    seen = Seen()
    async with sessions[0].post(URL, data=body, headers=HEADERS) as answer:
        kind = answer.headers.get("content-type", "application/json").encode()
        await send({"type": "http.response.start", "status": answer.status, "headers": [(b"content-type", kind)]})
        see = seen.events if kind.startswith(b"text/event-stream") else seen.whole
        async for data in answer.content.iter_any():
            await send({"type": "http.response.body", "body": data, "more_body": True})
            see(data)
    await send({"type": "http.response.body", "body": b""})
    seen.end()
    span.set_attributes({"output.value": "".join(seen.texts), "llm.token_count.total": seen.tokens})
