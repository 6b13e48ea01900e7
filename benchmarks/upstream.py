"""A cheap OpenAI-compatible upstream whose answers have the shape that the model's name asks for.

`python -m benchmarks.upstream --port 9000`; `GET /stats` tells how many answers were begun, finished and left by their
reader, and when the last one was left (the system's monotonic clock, seconds).
"""

from __future__ import annotations

import argparse
import asyncio
from functools import lru_cache
from time import monotonic
from typing import cast

import httptools
import msgspec
import uvloop

from benchmarks.shape import Shape, shape_of, text, word

BLOCK = 200
CREATED = 1_700_000_000
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\n%s\r\n\r\n"


class Options(msgspec.Struct):
    """The part of `stream_options` that is kept to."""

    include_usage: bool = False


class Asked(msgspec.Struct):
    """The part of a chat request that decides the answer."""

    model: str
    stream: bool = False
    stream_options: Options | None = None


class Books(msgspec.Struct):
    """What has become of the answers so far."""

    started: int = 0
    finished: int = 0
    left: int = 0
    left_at: float = 0.0


def usage(chunks: int) -> dict[str, int]:
    return {"prompt_tokens": 1, "completion_tokens": chunks, "total_tokens": chunks + 1}


def framed(event: bytes) -> bytes:
    """One server-sent event as one piece of a chunked body."""
    data = b"data: " + event + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


def chunk(model: str, **rest: object) -> bytes:
    """One chunk of a stream; `rest` holds its choices and what else it carries."""
    head = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": CREATED, "model": model}
    return framed(msgspec.json.encode(head | rest))


@lru_cache(1024)
def block(model: str, first: int, end: int) -> bytes:
    """The chunks `first` to `end` of a stream as they go over the wire."""
    written = []
    for number in range(first, end):
        role = {} if number else {"role": "assistant"}
        choice = {"index": 0, "delta": role | {"content": word(number)}, "finish_reason": None}
        written.append(chunk(model, system_fingerprint="fp_bench", choices=[choice]))
    return b"".join(written)


@lru_cache
def tail(model: str, *, with_usage: bool) -> bytes:
    """The end of a stream: the finish reason, the usage where asked for, and [DONE]."""
    last = chunk(model, choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
    used = chunk(model, choices=[], usage=usage(shape_of(model).chunks)) if with_usage else b""
    return last + used + framed(b"[DONE]") + b"0\r\n\r\n"


@lru_cache
def whole(model: str) -> bytes:
    """An answer in one piece, with its head."""
    shape = shape_of(model)
    message = {"role": "assistant", "content": text(shape.chunks)}
    answer = {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": CREATED,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": usage(shape.chunks),
    }
    return plain(msgspec.json.encode(answer))


def plain(body: bytes) -> bytes:
    """A JSON body with its head."""
    return HEAD % (b"application/json", b"content-length: %d" % len(body)) + body


class Connection(asyncio.Protocol):
    """One reader: answers its requests one after another, and notes when it leaves in the middle of an answer."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._decode = msgspec.json.Decoder(Asked).decode
        self._timer: asyncio.TimerHandle | None = None
        self._answering = self._paused = False
        self._path = self._body = b""
        self._sent = 0
        self._due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def eof_received(self) -> None:
        self._leave()
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self._leave()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._answering and self._timer is None:
            self._go_on()

    def on_message_begin(self) -> None:
        self._path = self._body = b""

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._path == b"/stats":
            self._transport.write(plain(msgspec.json.encode(self._books)))
        elif self._body:
            self._begin(self._decode(self._body))
        else:
            self._transport.write(plain(b"{}"))

    def _begin(self, asked: Asked) -> None:
        self._asked = asked
        self._shape: Shape = shape_of(asked.model)
        self._answering, self._sent = True, 0
        self._books.started += 1
        if self._shape.think_s:
            self._wait(self._loop.time() + self._shape.think_s, first=True)
        else:
            self._first()

    def _wait(self, due: float, *, first: bool = False) -> None:
        self._due = due
        self._timer = self._loop.call_at(due, self._first if first else self._go_on)

    def _first(self) -> None:
        self._timer = None
        if not self._asked.stream:
            self._transport.write(whole(self._asked.model))
            self._finish()
            return
        self._due = self._loop.time()
        self._transport.write(HEAD % (b"text/event-stream", b"transfer-encoding: chunked"))
        self._go_on()

    def _go_on(self) -> None:
        self._timer = None
        model, shape = self._asked.model, self._shape
        while not self._paused:
            end = min(self._sent + (1 if shape.delay_s else BLOCK), shape.chunks)
            self._transport.write(block(model, self._sent, end))
            self._sent = end
            if end == shape.chunks:
                options = self._asked.stream_options
                self._transport.write(tail(model, with_usage=options is not None and options.include_usage))
                self._finish()
                return
            if shape.delay_s:
                self._wait(self._due + shape.delay_s)
                return

    def _finish(self) -> None:
        self._answering = False
        self._books.finished += 1

    def _leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._answering:
            self._answering = False
            self._books.left += 1
            self._books.left_at = monotonic()


async def serve(port: int) -> None:
    """Serve on a port of the loopback for ever."""
    books = Books()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(books), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--port", type=int, required=True)
    uvloop.run(serve(options.parse_args().port))
