"""The way to the client of one answer: what was sent, what waits, and whether anybody is still there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, Literal, Protocol, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Headers: TypeAlias = Iterable[tuple[bytes, bytes]]

CONNECTION = "penstock.connection"
KERNEL_TAKES = 64 * 1024
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

    def pending(self) -> int:
        """How many bytes were written that have not left."""
        ...

    async def drained(self) -> None:
        """Wait until all that was written has left, or the connection is lost."""
        ...

    def abort(self) -> None:
        """Close the connection at once, whatever still waits to be sent."""
        ...


class ClientGone(Exception):  # it is the client's state, not an error of anybody
    """The client left, or took nothing for too long."""


class Client:
    """The way to the client: what was sent, since when a write waits, and whether anybody is still there."""

    __slots__ = (
        "_headers",
        "_pending",
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
        self.status = self._pending = 0

    async def write(
        self, body: bytes, *, more: bool = True, status: int = 200, headers: Headers = _STREAM_HEADERS
    ) -> None:
        """Send a piece, after the head where it is the first; returns when there is room for the next.

        Raises `ClientGone` when nobody is there.
        """
        while (ping := self.pinging) is not None and not ping.done() and ping is not asyncio.current_task():
            await asyncio.wait((ping,))
        self.waiting, self.last, self.ended = True, monotonic(), not more
        try:
            if not self.started:
                self.started, self.status = True, status
                head = [*headers, *self._headers]
                await self._send({"type": "http.response.start", "status": status, "headers": head})
            await self._send({"type": "http.response.body", "body": body, "more_body": more})
            if len(body) > KERNEL_TAKES and not more and self.connection is not None:
                await self.connection.drained()
        except Exception as error:  # whatever the server raises when it cannot send, nobody is there any more
            self.gone = True
            raise ClientGone(str(error)) from error
        finally:
            self.waiting = False

    def takes(self) -> bool:
        """Whether the client has taken anything since this was last asked, as far as can be seen."""
        if self.connection is None:
            return False
        before, self._pending = self._pending, self.connection.pending()
        return self._pending < before

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
