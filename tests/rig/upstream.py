"""A loopback OpenAI-compatible upstream that misbehaves as a test scripts it; runs in a thread with its own event loop.

python -m tests.rig.upstream
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Mapping
from typing import Any, TypeVar, assert_never

from tests.rig.answers import (
    Answer,
    ClosedEarly,
    Plain,
    Received,
    Refuse,
    Silence,
    Stream,
    echo,
    plain_bytes,
    stream_head,
    stream_writes,
)
from tests.rig.wire import (
    JsonObject,
    chunk,
    completion,
    error_body,
    model_list,
    text_stream,
    tool_call,
    tool_fragment,
    usage_of,
)

__all__ = [
    "Answer",
    "ClosedEarly",
    "JsonObject",
    "Plain",
    "Received",
    "Refuse",
    "Silence",
    "Stream",
    "Upstream",
    "chunk",
    "completion",
    "echo",
    "error_body",
    "model_list",
    "text_stream",
    "tool_call",
    "tool_fragment",
    "upstream",
    "usage_of",
]

T = TypeVar("T")

MAX_HEAD = 1 << 20
SETTLE_S = 0.01
_CALLS = ("/chat/completions", "/responses", "/messages", ":generateContent", ":streamGenerateContent")


class _End(enum.Enum):
    """What becomes of the connection after an answer."""

    KEEP = enum.auto()
    CLOSE = enum.auto()
    RESET = enum.auto()


class _Connection(asyncio.StreamReaderProtocol):
    """A connection that notes at once, in the middle of an answer too, that its peer has closed."""

    def __init__(self, serve: Callable[[_Connection], Coroutine[Any, Any, None]]) -> None:
        self.reader = asyncio.StreamReader(limit=MAX_HEAD)
        self.left = asyncio.Event()
        self.left_at = 0.0
        self.sent = 0
        self._serve = serve
        super().__init__(self.reader, self._opened)

    async def _opened(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # With no buffer of our own drain() returns when the kernel has taken everything, so `sent` is exact.
        writer.transport.set_write_buffer_limits(high=0)
        await self._serve(self)

    def eof_received(self) -> bool | None:
        self._note()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._note()
        super().connection_lost(exc)

    def _note(self) -> None:
        if not self.left.is_set():
            self.left_at = time.monotonic()
            self.left.set()

    async def receive(self) -> Received | None:
        """The next request, or None when the peer has no more."""
        try:
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.rstrip().split("\r\n")
            headers = {
                name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
            }
            if headers.get("expect", "").lower() == "100-continue":
                self.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = await self._body(headers)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        method, path, _ = first.split(" ")
        return Received(method=method, path=path, headers=headers, body=body, at=time.monotonic())

    async def _body(self, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return await self.reader.readexactly(int(headers.get("content-length", "0")))
        pieces: list[bytes] = []
        while size := int((await self.reader.readline()).split(b";")[0] or b"0", 16):
            pieces.append((await self.reader.readexactly(size + 2))[:-2])
        await self.reader.readline()
        return b"".join(pieces)

    def close(self, *, reset: bool) -> None:
        """Ends the connection, with a TCP reset if asked; everything written has been sent by then."""
        if reset and not self.writer.is_closing():
            linger_not_at_all = struct.pack("ii", 1, 0)
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_not_at_all)
        self.writer.transport.abort()


class Upstream:
    """A scriptable upstream; everything public may be used from any thread.

    `default` answers a chat request when the script is empty, `models` answers `GET /v1/models`. `sent_bytes` counts
    what the kernel has taken so far, over all connections.
    """

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self.closed_early: list[ClosedEarly] = []
        self.faults: list[Exception] = []
        self.default: Callable[[Received], Answer] = echo
        self.models: Answer = Plain(model_list("echo"))
        self.connections = 0
        self.open_connections = 0
        self.sent_bytes = 0
        self.port = 0
        self._script: deque[Answer] = deque()
        self._changed = threading.Condition()
        self._open: set[_Connection] = set()
        self._loop = asyncio.new_event_loop()
        self._released = asyncio.Event()
        self._stopped = asyncio.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upstream", daemon=True)

    @property
    def base_url(self) -> str:
        """The address for `OPENAI_BASE_URL`."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def chats(self) -> list[Received]:
        """The requests for a chat completion, without those for models."""
        return [request for request in self.requests if _is_chat(request)]

    def script(self, *answers: Answer) -> None:
        """Adds answers for the next chat requests, in the order in which they arrive."""
        self._script.extend(answers)

    def release(self) -> None:
        """Lets every stream that stalls, now or later, go on."""
        self._loop.call_soon_threadsafe(self._released.set)

    def wait_closed(self, n: int = 1, timeout_s: float = 5.0) -> list[ClosedEarly]:
        """Blocks until `n` peers have left early; beside a client on the same loop, use `asyncio.to_thread`."""
        return self._wait(self.closed_early, n, timeout_s)

    def wait_requests(self, n: int = 1, timeout_s: float = 5.0) -> list[Received]:
        """Blocks until `n` requests have come; beside a client on the same loop, use `asyncio.to_thread`."""
        return self._wait(self.requests, n, timeout_s)

    def start(self) -> None:
        """Starts to serve on a free port of the loopback."""
        self._thread.start()
        if not self._started.wait(10.0):
            raise TimeoutError("the upstream did not start within 10 s")

    def stop(self) -> None:
        """Closes every connection, once; raises what went wrong in the upstream itself."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join(10.0)
        if self._thread.is_alive():
            raise TimeoutError("the upstream did not stop within 10 s")
        if self.faults:
            raise ExceptionGroup("the upstream of the tests failed", self.faults)

    def _wait(self, seen: list[T], n: int, timeout_s: float) -> list[T]:
        with self._changed:
            if not self._changed.wait_for(lambda: len(seen) >= n, timeout_s):
                raise TimeoutError(f"saw {len(seen)} of {n} within {timeout_s:g} s: {seen!r}")
            return list(seen)

    def _add(self, seen: list[T], item: T) -> None:
        with self._changed:
            seen.append(item)
            self._changed.notify_all()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._listen())

    async def _listen(self) -> None:
        self._loop.set_exception_handler(self._fault)
        server = await self._loop.create_server(lambda: _Connection(self._serve), "127.0.0.1", 0, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stopped.wait()
        # asyncio forgets, and never closes, a connection that it is accepting while its server closes.
        await asyncio.sleep(SETTLE_S)
        server.close()
        while self._open:
            for connection in self._open:
                connection.close(reset=False)
            await asyncio.sleep(0)

    def _fault(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.faults.append(context.get("exception") or RuntimeError(context["message"]))

    async def _serve(self, connection: _Connection) -> None:
        self._open.add(connection)
        self.connections += 1
        self.open_connections += 1
        end = _End.CLOSE
        try:
            while request := await connection.receive():
                self._add(self.requests, request)
                end = await self._answer(connection, request)
                if end is not _End.KEEP:
                    break
        finally:
            self._open.discard(connection)
            self.open_connections -= 1
            connection.close(reset=end is _End.RESET)

    async def _answer(self, connection: _Connection, request: Received) -> _End:
        giving = asyncio.ensure_future(self._give(connection, self._choose(request)))
        leaving = asyncio.ensure_future(connection.left.wait())
        try:
            await asyncio.wait((giving, leaving), return_when=asyncio.FIRST_COMPLETED)
            if giving.done() and not isinstance(giving.exception(), ConnectionError):
                return giving.result()
        finally:
            giving.cancel()
            leaving.cancel()
        if not self._stopped.is_set():
            self._add(self.closed_early, ClosedEarly(request, connection.left_at, connection.sent))
        return _End.CLOSE

    def _choose(self, request: Received) -> Answer:
        if _is_chat(request):
            return self._script.popleft() if self._script else self.default(request)
        if request.method == "GET" and request.path.partition("?")[0].endswith("/models"):
            return self.models
        return Plain(error_body(f"no such path: {request.path!r}", code="not_found"), status=404)

    async def _give(self, connection: _Connection, answer: Answer) -> _End:
        match answer:
            case Plain():
                await asyncio.sleep(answer.think_s)
                await self._write(connection, plain_bytes(answer))
                return _End.KEEP
            case Stream():
                return await self._stream(connection, answer)
            case Silence():
                await asyncio.Event().wait()
                return _End.CLOSE
            case Refuse():
                return _End.RESET if answer.reset else _End.CLOSE
            case bytes():
                await self._write(connection, answer)
                return _End.CLOSE
            case _:
                assert_never(answer)

    async def _stream(self, connection: _Connection, answer: Stream) -> _End:
        await asyncio.sleep(0.0 if answer.early_headers else answer.think_s)
        await self._write(connection, stream_head(answer))
        await asyncio.sleep(answer.think_s if answer.early_headers else 0.0)
        for number, pieces in enumerate(stream_writes(answer)):
            await self._pause(answer, number)
            for piece in pieces:
                await self._write(connection, piece)
        if answer.cut_after is not None:
            return _End.RESET if answer.reset else _End.CLOSE
        return _End.KEEP if answer.chunked else _End.CLOSE

    async def _pause(self, answer: Stream, number: int) -> None:
        if number == answer.stall_after:
            await self._released.wait()
        if number and answer.delay_s:
            await asyncio.sleep(answer.delay_s)

    async def _write(self, connection: _Connection, data: bytes) -> None:
        connection.writer.write(data)
        await connection.writer.drain()
        connection.sent += len(data)
        self.sent_bytes += len(data)


def _is_chat(request: Received) -> bool:
    return request.path.partition("?")[0].endswith(_CALLS)


@contextlib.contextmanager
def upstream() -> Generator[Upstream]:
    """Runs an upstream in a thread."""
    served = Upstream()
    served.start()
    try:
        yield served
    finally:
        served.stop()


if __name__ == "__main__":
    with upstream() as serving:
        sys.stdout.write(f"READY {serving.base_url}\n")
        sys.stdout.flush()
        threading.Event().wait()
