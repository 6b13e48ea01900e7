"""`respond`: answers one request of any ASGI application with an executor.

It keeps the answer alive with heartbeats, watches for the client's leaving in every phase, and ends the answer as the
run ended: complete, or with an error that a client cannot miss.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast

import msgspec
from starlette.responses import Response

from penstock.errors import PenstockError, Unavailable
from penstock.events import Chunks, Event, Fold, Told, Used
from penstock.messages import ChatReply, Usage
from penstock.outcome import Cancelled, Outcome
from penstock.root import Closing
from penstock.run import Executor, Principal, execute
from penstock.server.sse import PING, Encoder, fresh_id, reply_bytes, reply_of
from penstock.server.wire import answer_of

if TYPE_CHECKING:
    from opentelemetry.trace import Span

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Headers: TypeAlias = Iterable[tuple[bytes, bytes]]

CONNECTION = "penstock.connection"
WATCH_AFTER_S = 0.002
_log = logging.getLogger("penstock.server")
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]


@dataclass(frozen=True, slots=True)
class Manner:
    """How an answer treats its client; `disconnect` says what becomes of the run when the client leaves."""

    disconnect: Literal["cancel", "finish"] = "cancel"
    heartbeat_s: float = 15.0
    write_stall_s: float = 60.0


class Connection(Protocol):
    """What a server may offer under the scope extension `CONNECTION`, to spare a task that waits for a disconnect."""

    lost: Callable[[], None] | None
    """Called when the connection is lost."""

    def listen(self) -> None:
        """Go on reading, without which a loss would not be seen."""
        ...

    def abort(self) -> None:
        """Close the connection at once, whatever still waits to be sent."""
        ...


class ClientGone(Exception):  # it is the client's state, not an error of anybody
    """The client left, or took nothing for too long."""


class respond(Response):  # noqa: N801  # read as a verb, and a Response only so that FastAPI returns it as it is
    """An ASGI callable that runs `executor(request)` and sends its answer.

    Streams server-sent events when `request.stream` is true (for a request without that field, always), else one JSON
    body. `headers` are added to the answer. What is told of the end is in `status`, `outcome` and `usage` afterwards.
    """

    background = None

    def __init__(  # the arguments of `execute`, and how to answer  # noqa: PLR0913
        self,
        executor: Executor[Any, Any],
        request: Any,
        *,
        principal: Principal | None = None,
        parent: Span | None = None,
        closing: Iterable[Closing] = (),
        manner: Manner | None = None,
        headers: Headers = (),
    ) -> None:
        self._run = (executor, request)
        self._options: dict[str, Any] = {"principal": principal, "parent": parent, "closing": closing}
        self._manner = manner or Manner()
        self._extra = list(headers)
        self._stop: PenstockError | None = None
        self._task: asyncio.Task[Any] | None = None
        self.status = 0
        self.usage = Usage()
        self.ttft_s: float | None = None
        self.outcome: Outcome[Any] = Cancelled("not started")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; returns when the answer has ended, in whichever way, and never raises an executor's error."""
        executor, request = self._run
        headers = self._extra
        if not any(name == b"x-request-id" for name, _ in headers):
            headers.append((b"x-request-id", f"req_{fresh_id()}".encode()))
        kind = _Stream if getattr(request, "stream", True) else _Whole
        sink = kind(self, request, _Client(send, headers, scope), self._manner)
        self._task = task = cast("asyncio.Task[Any]", asyncio.current_task())
        watch = _Watch(sink.client, self._manner, task, pings=kind is _Stream)
        cancels = task.cancelling()
        watch.begin(receive)
        try:
            await self._answer(executor, request, sink)
        except asyncio.CancelledError:
            if task.cancelling() > cancels and not (watch.cancelled or self._stop):
                raise  # somebody else's
            while task.cancelling() > cancels:
                task.uncancel()
            await sink.fail(ClientGone() if watch.cancelled else self._stop or RuntimeError("cancelled itself"))
        finally:
            watch.stop()
            self.status = sink.client.status

    async def _answer(self, executor: Executor[Any, Any], request: Any, sink: _Whole) -> None:
        try:
            result = await execute(executor, request, sink.tell, **self._options)
            await sink.finish(result)
        except ClientGone as gone:
            await sink.fail(gone)
        except Exception as error:  # every failure becomes the answer's honest end
            if not isinstance(error, PenstockError):
                _log.exception("the executor failed")
            await sink.fail(error)

    def stop(self, reason: str) -> None:
        """End the run early, with an error that says so: the server is going down."""
        if self._task is not None and not self._task.done() and self._stop is None:
            self._stop = Unavailable(reason, provider="penstock", code="shutting_down")
            self._task.cancel(reason)


class _Client:
    """The way to the client: what was sent, since when a write waits, and whether anybody is still there."""

    __slots__ = (
        "_headers",
        "_send",
        "connection",
        "ended",
        "gone",
        "last",
        "pinging",
        "started",
        "status",
        "waiting",
        "writing",
    )

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]], scope: Scope) -> None:
        self._send, self._headers = send, headers
        extensions: dict[str, Any] = scope.get("extensions") or {}
        self.connection: Connection | None = extensions.get(CONNECTION)
        self.gone = self.started = self.ended = self.waiting = False
        self.pinging: asyncio.Task[None] | None = None
        self.writing: asyncio.Task[None] | None = None
        self.last = monotonic()
        self.status = 0

    async def write(
        self, body: bytes, *, more: bool = True, status: int = 200, headers: Headers = _STREAM_HEADERS
    ) -> None:
        """Send a piece, after the head where it is the first; returns when there is room for the next.

        Raises `ClientGone` when nobody is there.
        """
        if self.pinging is not None and self.pinging is not asyncio.current_task():
            await asyncio.wait((self.pinging,))
        self.waiting, self.last, self.ended = True, monotonic(), not more
        try:
            if not self.started:
                self.started, self.status = True, status
                head = [*headers, *self._headers]
                await self._send({"type": "http.response.start", "status": status, "headers": head})
            await self._send({"type": "http.response.body", "body": body, "more_body": more})
        except Exception as error:  # whatever the server raises when it cannot send, nobody is there any more
            self.gone = True
            raise ClientGone(str(error)) from error
        finally:
            self.waiting = False

    async def part(self) -> None:
        """End the answer to a client that left, as a middleware in front may wait for one: 499 into the void."""
        self.gone = True
        if not self.ended:
            with suppress(ClientGone):
                await self.write(b"", more=False, status=499, headers=())
        self.status = 499

    def drop(self) -> None:
        """Give the client up, and close the connection where the server lets us."""
        self.gone = True
        if self.connection is not None:
            self.connection.abort()
            return
        self.ended = True  # whatever else was sent would wait as this does
        if self.writing is not None:
            self.writing.cancel()


class _Whole:
    """Answers with one JSON body when the run has ended."""

    def __init__(self, owner: respond, request: Any, client: _Client, manner: Manner) -> None:
        self.owner, self.request, self.client, self.manner = owner, request, client, manner
        self._events: list[Event] = []

    def tell(self, event: Event) -> Awaitable[None] | None:
        if isinstance(event, Used):
            self.owner.usage, self.owner.ttft_s = self.owner.usage + event.usage, event.ttft_s
        elif isinstance(event, Told):
            self._events.append(event)
        else:
            self.owner.outcome = event
        return None

    async def finish(self, result: Any) -> None:
        model, said = getattr(self.request, "model", ""), ""
        if not isinstance(result, ChatReply):
            fold = Fold()
            for event in self._events:
                fold.add(event)
            said = fold.content
        await self._answer(200, reply_bytes(reply_of(result, model, said), model=model, usage=self.owner.usage))

    async def fail(self, error: BaseException) -> None:
        if isinstance(error, ClientGone) or self.client.gone:
            await self.client.part()
            return
        try:
            await self._refuse(error)
        except ClientGone:
            await self.client.part()

    async def _refuse(self, error: BaseException) -> None:
        told = answer_of(error)
        await self._answer(told.status, msgspec.json.encode(told.body), _retry_after(told.retry_after))

    async def _answer(self, status: int, body: bytes, headers: Headers = ()) -> None:
        if self.client.gone:
            await self.client.part()
            return
        length = str(len(body)).encode()
        head = [(b"content-type", b"application/json"), (b"content-length", length), *headers]
        await self.client.write(body, more=False, status=status, headers=head)


class _Stream(_Whole):
    """Answers with server-sent events as they are told."""

    def __init__(self, owner: respond, request: Any, client: _Client, manner: Manner) -> None:
        super().__init__(owner, request, client, manner)
        self._encoder = Encoder(request)

    def tell(self, event: Event) -> Awaitable[None] | None:
        if isinstance(event, Chunks) or (isinstance(event, Told) and not isinstance(event, Used)):
            body = self._encoder.event(event)
            if not body or self.client.gone:
                return None
            return self._write(body) if self.manner.disconnect == "finish" else self.client.write(body)
        return super().tell(event)

    async def _write(self, body: bytes) -> None:
        """Send a piece of an answer that goes on without its client."""
        if self.client.connection is not None:
            with suppress(ClientGone):
                await self.client.write(body)
            return
        # A task of its own, which can be given up alone: here nothing else ends a write that waits.
        task = self.client.writing = asyncio.ensure_future(self.client.write(body))
        try:
            await asyncio.wait((task,))
        finally:
            task.cancel()
        if not task.cancelled():
            task.exception()

    async def finish(self, result: Any) -> None:
        if self.client.gone:
            await self.client.part()
        else:
            await self.client.write(self._encoder.end(result, self.owner.usage), more=False)

    async def _refuse(self, error: BaseException) -> None:
        if self.client.started:
            await self.client.write(self._encoder.error(error), more=False)
        else:
            await super()._refuse(error)


class _Watch:
    """Watches over one answer: the client's leaving, its silence, and ours, with one timer."""

    __slots__ = ("_client", "_loop", "_manner", "_pings", "_task", "_timer", "_watching", "cancelled")

    def __init__(self, client: _Client, manner: Manner, task: asyncio.Task[Any], *, pings: bool) -> None:
        self._client, self._manner, self._task, self._pings = client, manner, task, pings
        self._loop = asyncio.get_running_loop()
        self._watching: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle
        self.cancelled = False

    def begin(self, receive: Receive) -> None:
        if self._client.connection is not None:
            self._client.connection.lost = self._left
            self._client.connection.listen()
            self._guard()
        else:
            self._timer = self._loop.call_later(WATCH_AFTER_S, self._watch, receive)

    def stop(self) -> None:
        self._timer.cancel()
        connection = self._client.connection
        if connection is not None and connection.lost == self._left:  # the next answer on it may have begun
            connection.lost = None
        for task in (self._watching, self._client.pinging):
            if task is not None:
                task.cancel()

    def _guard(self) -> None:
        self._timer = self._loop.call_later(min(self._manner.heartbeat_s, self._manner.write_stall_s), self._check)

    def _watch(self, receive: Receive) -> None:
        async def watch() -> None:
            whole = False
            while (message := await receive())["type"] != "http.disconnect":
                if whole:  # a server that does not wait for the client would be asked forever
                    return
                whole = not message.get("more_body")
            if not self._client.ended:  # some servers say so after a complete answer too
                self._left()

        self._watching = self._loop.create_task(watch())
        self._watching.add_done_callback(self._watched)
        self._guard()

    def _watched(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.warning("receive() failed, as when the client has left: %r", error)
            self._left()

    def _left(self, reason: str = "the client left") -> None:
        self._client.gone = True
        if self._manner.disconnect == "cancel" and not self.cancelled:
            self.cancelled = True
            self._task.cancel(reason)

    def _check(self) -> None:
        silent = monotonic() - self._client.last
        stall, beat = self._manner.write_stall_s, self._manner.heartbeat_s
        if self._client.waiting:
            stall -= silent
            if stall <= 0:
                self._client.drop()
                self._left(f"the client took nothing for {self._manner.write_stall_s:g} s")
                return
        elif self._pings and not self._client.gone:
            if silent >= beat:
                self._client.pinging = self._loop.create_task(self._ping())
            else:
                beat -= silent
        self._timer = self._loop.call_later(max(min(stall, beat), 0.005), self._check)

    async def _ping(self) -> None:
        try:
            await self._client.write(PING)
        except ClientGone:
            self._left()
        finally:
            self._client.pinging = None


def _retry_after(seconds: float | None) -> Headers:
    return [] if seconds is None else [(b"retry-after", str(max(1, round(seconds + 0.499))).encode())]
