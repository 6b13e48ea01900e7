"""The answers that the upstream of the tests can give, and their bytes."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from tests.rig.wire import JsonObject, completion, text_stream, usage_of

LAST_CHUNK = b"0\r\n\r\n"
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One request: header names are in lower case, `at` is the monotonic time when its body was complete."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float

    @property
    def json(self) -> JsonObject:
        """The body as an object."""
        decoded: JsonObject = json.loads(self.body)
        return decoded


@dataclass(frozen=True, slots=True)
class ClosedEarly:
    """A peer that left before its answer ended: its request, the monotonic time, the bytes it had been sent."""

    request: Received
    at: float
    sent: int


@dataclass(frozen=True, slots=True)
class Plain:
    """A whole answer: an object as JSON, or bytes as they are, after `think_s` seconds."""

    body: JsonObject | bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    think_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream of server-sent events: an object or a text becomes one event, bytes are written as they are.

    `think_s` passes before the status line (after it with `early_headers`), `delay_s` before each chunk but the first.
    `cut_after` ends the connection after so many chunks, with a TCP reset if `reset`. `stall_after` sends nothing more
    until `Upstream.release`. `split` writes pieces of so many bytes, each by itself. Without `chunked` the end of the
    connection ends the body. Without `done` the marker `[DONE]` is missing.
    """

    chunks: Sequence[JsonObject | str | bytes]
    delay_s: float = 0.0
    think_s: float = 0.0
    early_headers: bool = False
    cut_after: int | None = None
    reset: bool = False
    stall_after: int | None = None
    done: bool = True
    split: int | None = None
    newline: str = "\n"
    bom: bool = False
    chunked: bool = True
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Silence:
    """Takes the request and never answers."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Takes the request and closes the connection without an answer, with a TCP reset if `reset`."""

    reset: bool = False


Answer: TypeAlias = Plain | Stream | Silence | Refuse | bytes
"""Bytes are everything that is sent, from the status line on; the connection ends after them."""


def echo(request: Received) -> Answer:
    """The answer when none is scripted: the last user's words, whole or one by one, with their usage."""
    asked = request.json
    messages: list[JsonObject] = asked.get("messages") or []
    said = [str(message.get("content") or "") for message in messages if message.get("role") == "user"]
    text, model = said[-1] if said else "nothing", str(asked.get("model") or "echo")
    usage = usage_of(prompt=sum(len(words.split()) for words in said), completion=len(text.split()))
    if not asked.get("stream"):
        return Plain(completion(text, model=model, usage=usage))
    options: JsonObject = asked.get("stream_options") or {}
    return Stream(text_stream(text, model=model, usage=usage if options.get("include_usage") else None))


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} {http.client.responses.get(status, 'Unknown')}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def plain_bytes(answer: Plain) -> bytes:
    """A plain answer from its status line on."""
    body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
    own = {name.lower(): value for name, value in answer.headers.items()}
    headers = {"content-type": "application/json", "content-length": str(len(body)), **own}
    return _head(answer.status, headers) + body


def stream_head(answer: Stream) -> bytes:
    """The status line and headers of a stream."""
    own = {name.lower(): value for name, value in answer.headers.items()}
    body = {"transfer-encoding": "chunked"} if answer.chunked else {"connection": "close"}
    return _head(200, {"content-type": "text/event-stream", "cache-control": "no-cache", **body, **own})


def _events(answer: Stream) -> list[bytes]:
    """The chunks as bytes of the body, and the end marker if it is to be sent."""
    events = [_event(item, answer.newline) for item in (*answer.chunks, *(["[DONE]"] if answer.done else []))]
    if answer.bom and events:
        events[0] = BOM + events[0]
    return events


def _event(item: JsonObject | str | bytes, newline: str) -> bytes:
    if isinstance(item, bytes):
        return item
    data = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
    return f"data: {data}{newline}{newline}".encode()


def stream_writes(answer: Stream) -> list[list[bytes]]:
    """What is to be written for each event, one list of pieces each; the end of the body goes with the last one.

    A client may leave as soon as it has read `[DONE]`: with the end of the body in the same write that is not early.
    """
    events = _events(answer)
    writes = [[_framed(piece, answer) for piece in _split(event, answer.split)] for event in events[: answer.cut_after]]
    if answer.chunked and answer.cut_after is None:
        if writes and answer.stall_after != len(writes):
            writes[-1][-1] += LAST_CHUNK
        else:
            writes.append([LAST_CHUNK])
    return writes


def _split(data: bytes, size: int | None) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)] if size else [data]


def _framed(data: bytes, answer: Stream) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if answer.chunked else data
