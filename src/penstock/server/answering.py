"""`respond`: answers one request of any ASGI application with an executor.

It keeps the answer alive with heartbeats, watches for the client's leaving in every phase, and ends the answer as the
run ended: complete, or with an error that a client cannot miss.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from decimal import Decimal
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

import msgspec
from starlette.background import BackgroundTask
from starlette.responses import Response

from penstock.errors import PenstockError, ToolFailed
from penstock.events import Chunks, Event, Fold, Retrying, Switched, Told, Used, summed
from penstock.messages import Usage
from penstock.outcome import Cancelled, Outcome
from penstock.root import Closing
from penstock.run import Executor, Principal, Run, execute
from penstock.server.client import Client, ClientGone, Headers, Manner, Receive, Scope, Send
from penstock.server.sse import PING, Encoder, Encoding, fresh_id, reply_bytes, reply_of
from penstock.server.wire import answer_of, shutting_down

if TYPE_CHECKING:
    from opentelemetry.trace import Span

WATCH_AFTER_S = 0.002
_log = logging.getLogger("penstock.server")


class respond(Response):  # noqa: N801  # read as a verb, and a Response only so that FastAPI returns it as it is
    """An ASGI callable that runs `executor(request)` and sends its answer.

    Streams server-sent events when `request.stream` is true (for a request without that field, always), else one JSON
    body. With `render`, the answer is `render(result)`, which is JSON too; a stream is what an `encoder()` makes of its
    events, else chunks of a chat completion. `headers` are added to the answer. What is told of the end is in `status`,
    `outcome`, `usage` and `cost` afterwards, what the way there was in `llm` (which one answered), `retries` and
    `switched`.
    """

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
        render: Callable[[Any], bytes] | None = None,
        encoder: Callable[[], Encoding] | None = None,
    ) -> None:
        self._run = (executor, request)
        self._options: dict[str, Any] = {"principal": principal, "parent": parent, "closing": closing}
        self._manner = manner or Manner()
        self._extra = list(headers)
        self.rendering, self.encoding = render, encoder
        self.background: BackgroundTask | None = None
        self._stop: PenstockError | None = None
        self._task: asyncio.Task[Any] | None = None
        self.status = 0
        self.usage = Usage()
        self.cost: Decimal | None = Decimal(0)
        self.ttft_s: float | None = None
        self.llm = ""
        self.retries = 0
        self.switched: list[str] = []
        self.outcome: Outcome[Any] = Cancelled("not started")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; returns when the answer has ended, in whichever way, and never raises an executor's error."""
        executor, request = self._run
        headers = self._extra
        if not any(name == b"x-request-id" for name, _ in headers):
            headers.append((b"x-request-id", f"req_{fresh_id()}".encode()))
        kind = _Stream if self.rendering is None and getattr(request, "stream", True) else _Whole
        sink = kind(self, request, Client(send, headers, scope), self._manner)
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
        if self.background is not None:
            await self.background()

    async def _answer(self, executor: Executor[Any, Any], request: Any, sink: _Whole) -> None:
        try:
            result = await execute(self._counted(executor), request, sink.tell, **self._options)
            await sink.finish(result)
        except ClientGone as gone:
            await sink.fail(gone)
        except Exception as error:  # every failure becomes the answer's honest end
            cause = error.__cause__ if isinstance(error, ToolFailed) else error
            if cause is not None and not isinstance(cause, PenstockError):  # ours tell all there is to know
                _log.error("the executor failed", exc_info=cause)
            await sink.fail(error)

    def _counted(self, executor: Executor[Any, Any]) -> Executor[Any, Any]:
        """The executor with its usage and its detours heard also when its client hears nothing any more."""

        def count(event: Event) -> None:
            if isinstance(event, Chunks):
                return
            if isinstance(event, Used):
                self.usage, self.ttft_s = self.usage + event.usage, event.ttft_s
                self.cost = summed(self.cost, event)
                self.llm = f"{event.provider}:{event.model}"
            elif isinstance(event, Retrying):
                self.retries += 1
            elif isinstance(event, Switched):
                self.switched.append(f"to {event.to} after {type(event.error).__name__}")

        async def call(request: Any, run: Run, /) -> Any:
            return await executor(request, run.listening(count))

        return call

    def stop(self, reason: str) -> None:
        """End the run early, with an error that says so: the server is going down."""
        if self._task is not None and not self._task.done() and self._stop is None:
            self._stop = shutting_down(reason)
            self._task.cancel(reason)


class _Whole:
    """Answers with one JSON body when the run has ended."""

    def __init__(self, owner: respond, request: Any, client: Client, manner: Manner) -> None:
        self.owner, self.request, self.client, self.manner = owner, request, client, manner
        self._fold = Fold()

    def tell(self, event: Event) -> Awaitable[None] | None:
        if not isinstance(event, Told):
            self.owner.outcome = event
        elif not isinstance(event, Used):
            self._fold.add(event)
        return None

    async def finish(self, result: Any) -> None:
        if self.owner.rendering is not None:
            body = self.owner.rendering(result)
        else:
            model = getattr(self.request, "model", "")
            reply = reply_of(result, model, said=self._fold.content)
            body = reply_bytes(reply, model=model, usage=self.owner.usage)
        await self._answer(200, body, [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))])

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
        body = msgspec.json.encode(told.body)
        await self._answer(told.status, body, told.headers(len(body)))

    async def _answer(self, status: int, body: bytes, headers: Headers) -> None:
        if self.client.gone:
            await self.client.part()
        else:
            await self.client.write(body, more=False, status=status, headers=headers)


class _Stream(_Whole):
    """Answers with server-sent events as they are told."""

    def __init__(self, owner: respond, request: Any, client: Client, manner: Manner) -> None:
        super().__init__(owner, request, client, manner)
        self._encoder: Encoding = owner.encoding() if owner.encoding else Encoder(request)

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

    def __init__(self, client: Client, manner: Manner, task: asyncio.Task[Any], *, pings: bool) -> None:
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
        self._timer = self._loop.call_later(min(self._manner.heartbeat_s, self._manner.write_stall_s / 4), self._check)

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
            if self._client.takes():
                self._client.last, silent = monotonic(), 0.0
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
        self._timer = self._loop.call_later(max(min(stall, beat, self._manner.write_stall_s / 4), 0.005), self._check)

    async def _ping(self) -> None:
        try:
            await self._client.write(PING)
        except ClientGone:
            self._left()
        finally:
            self._client.pinging = None
