"""A closed loop of clients: each asks again as soon as it is answered, and every answer is checked.

`python -m benchmarks.load --port 8000 --model c50-d20-t0 --connections 100 --stream` prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from time import perf_counter
from typing import cast

import httptools
import msgspec
import uvloop

from benchmarks.shape import shape_of, text

PATIENCE_S = 30.0
AGAIN_S = 0.05


class Report(msgspec.Struct):
    """What a load came to: right answers and the chunks in them, how much of the upstream's pace arrived, faults.

    `pace` is the time the right answers should have taken by their shape, divided by the time they took; `faults`
    counts the wrong ones by what was wrong.
    """

    answers: int
    chunks: int
    pace: float
    faults: dict[str, int]


class Said(msgspec.Struct):
    """The text of a delta or of a message."""

    content: str | None = None


class Choice(msgspec.Struct):
    """The one choice of an answer, whole or streamed."""

    delta: Said | None = None
    message: Said | None = None
    finish_reason: str | None = None


class Used(msgspec.Struct):
    """The tokens of an answer, of which there is one for each chunk."""

    completion_tokens: int


class Piece(msgspec.Struct):
    """A whole answer, or one chunk of a stream."""

    choices: list[Choice]
    usage: Used | None = None


class Check:
    """Says what is wrong with an answer of a model; one that equals the last right one byte by byte is right too."""

    def __init__(self, model: str, *, stream: bool) -> None:
        self._chunks = shape_of(model).chunks
        self._look = self._streamed if stream else self._whole
        self._decode = msgspec.json.Decoder(Piece).decode
        self._right: bytes | None = None

    def __call__(self, status: int, body: bytes) -> str | None:
        """The fault of an answer, or None."""
        if status != 200:
            return f"status {status}"
        if body == self._right:
            return None
        try:
            fault = self._look(body)
        except msgspec.MsgspecError:
            return "JSON"
        if fault is None:
            self._right = body
        return fault

    def _whole(self, body: bytes) -> str | None:
        piece = self._decode(body)
        said = [choice.message.content for choice in piece.choices if choice.message is not None]
        if said != [text(self._chunks)]:
            return "text"
        return None if piece.usage == Used(self._chunks) else "usage"

    def _streamed(self, body: bytes) -> str | None:
        *events, rest = body.split(b"\n\n")
        events = [event for event in events if not event.startswith(b":")]
        if rest or not events or events.pop() != b"data: [DONE]":
            return "no [DONE]"
        pieces = [self._decode(event.removeprefix(b"data: ")) for event in events]
        said = [choice.delta.content for piece in pieces for choice in piece.choices if choice.delta is not None]
        words = [content for content in said if content]
        if len(words) != self._chunks:
            return "count"
        if "".join(words) != text(self._chunks):
            return "order"
        if [choice.finish_reason for piece in pieces for choice in piece.choices if choice.finish_reason] != ["stop"]:
            return "finish reason"
        last = pieces[-1]
        used = [piece.usage for piece in pieces if piece.usage is not None]
        return None if used == [last.usage] == [Used(self._chunks)] and not last.choices else "usage"


class Load:
    """What all clients of one run share: the request, the check, the end of the run, and the tally."""

    def __init__(self, port: int, model: str, *, stream: bool, seconds: float) -> None:
        self.port = port
        self.request = chat(model, stream=stream)
        self.check = Check(model, stream=stream)
        self.until = perf_counter() + seconds
        self.answers = 0
        self.waited_s = 0.0
        self.faults: Counter[str] = Counter()

    @property
    def over(self) -> bool:
        """Whether nothing more is to be asked."""
        return perf_counter() >= self.until


def chat(model: str, *, stream: bool) -> bytes:
    """A chat request as it goes over the wire."""
    asked: dict[str, object] = {"model": model, "messages": [{"role": "user", "content": "Say as much as you like."}]}
    if stream:
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
    body = msgspec.json.encode(asked)
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


class Client(asyncio.Protocol):
    """One connection that asks until the run is over; `ended` is done when its last answer is there."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._parts: list[bytes] = []
        self._waiting = False
        self._parser = httptools.HttpResponseParser(self)
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._give_up("framing")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self._give_up("cut")

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        self._waiting = False
        fault = self._load.check(self._parser.get_status_code(), b"".join(self._parts))
        if fault is None:
            self._load.answers += 1
            self._load.waited_s += perf_counter() - self._asked
        else:
            self._load.faults[fault] += 1
        if self._load.over or not self._parser.should_keep_alive():
            self._end()
        else:
            self._ask()

    def _ask(self) -> None:
        self._parts.clear()
        self._waiting = True
        self._asked = perf_counter()
        self._transport.write(self._load.request)

    def _give_up(self, fault: str) -> None:
        if self._waiting:
            self._waiting = False
            self._load.faults[fault] += 1
        self._end()

    def _end(self) -> None:
        self._transport.close()
        if not self.ended.done():
            self.ended.set_result(None)


async def one(load: Load, wait_s: float) -> None:
    """Ask on one connection after another, as long as the run lasts."""
    await asyncio.sleep(wait_s)
    loop = asyncio.get_running_loop()
    while not load.over:
        try:
            _, client = await loop.create_connection(lambda: Client(load), "127.0.0.1", load.port)
        except OSError:
            load.faults["connect"] += 1
            await asyncio.sleep(AGAIN_S)
        else:
            await client.ended


async def run(load: Load, connections: int, ramp_s: float) -> None:
    """Start the connections evenly over the ramp and wait for the last answer; what never ends is counted as stuck."""
    tasks = [asyncio.create_task(one(load, number * ramp_s / connections)) for number in range(connections)]
    _, stuck = await asyncio.wait(tasks, timeout=load.until - perf_counter() + PATIENCE_S)
    if stuck:
        load.faults["stuck"] = len(stuck)


def main() -> None:
    """Run one load as the command line says, and print its report."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--model", required=True)
    options.add_argument("--connections", type=int, default=1)
    options.add_argument("--seconds", type=float, default=1.0)
    options.add_argument("--ramp", type=float, default=0.0, help="seconds over which the connections are opened")
    options.add_argument("--stream", action="store_true")
    asked = options.parse_args()
    load = Load(asked.port, asked.model, stream=asked.stream, seconds=asked.seconds)
    uvloop.run(run(load, asked.connections, asked.ramp))
    shape = shape_of(asked.model)
    pace = load.answers * shape.lasts_s / load.waited_s if load.answers else 0.0
    report = Report(load.answers, load.answers * shape.chunks, pace, dict(load.faults))
    sys.stdout.buffer.write(msgspec.json.encode(report))


if __name__ == "__main__":
    main()
