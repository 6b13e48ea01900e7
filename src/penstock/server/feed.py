"""`Feed`: the log of a run as server-sent events, which a reader who left takes up where it was."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response

from penstock.errors import PenstockError
from penstock.server.client import CONNECTION, Connection, Manner, Receive, Scope, Send
from penstock.server.sse import PING
from penstock.server.wire import answer_of

if TYPE_CHECKING:
    from penstock.store.steps import Logged
    from penstock.tasks.engines import Engine

SHARE = 100
PIECE = 16 * 1024
AWAY_S = 0.5
GOES_ON = frozenset(("running", "paused", "interrupted"))
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]
_encode = msgspec.json.Encoder().encode


def entry_row(entry: Logged) -> dict[str, Any]:
    """An entry of a log as it is served: what is told of no task has none."""
    row = {"offset": entry.offset, "at": entry.at, "task": entry.step, "state": entry.state, "kind": entry.kind}
    row["value"] = entry.value
    return {name: value for name, value in row.items() if value is not None}


class Feed(Response):
    """Sends what is logged of a run behind an offset, until the run has ended, the reader leaves or `closing` is set.

    Each entry is an event whose id is its offset. An event named `end` is last where the run has ended, so that who
    does not get one reads on; whoever leaves changes nothing for the run.
    """

    def __init__(self, engine: Engine, run: str, *, after: int, manner: Manner, closing: asyncio.Event) -> None:
        self._engine, self._run, self._after = engine, run, after
        self._manner, self._closing = manner, closing
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the entries as they are logged."""
        extensions: dict[str, Any] = scope.get("extensions") or {}
        telling = asyncio.ensure_future(self._tell(send, extensions.get(CONNECTION)))
        others = [asyncio.ensure_future(_left(receive)), asyncio.ensure_future(self._closing.wait())]
        try:
            await asyncio.wait((telling, *others), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (telling, *others):
                task.cancel()
            await asyncio.wait((telling, *others))
        if not telling.cancelled():
            telling.result()
        elif self._closing.is_set():
            await send({"type": "http.response.body", "body": b""})

    async def _tell(self, send: Send, connection: Connection | None) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        pieces, more = [b""], True  # the head goes out at once
        try:
            while more:
                for piece in pieces:
                    async with asyncio.timeout(self._manner.write_stall_s):
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                pieces, more = await self._next()
            async with asyncio.timeout(self._manner.write_stall_s):
                await send({"type": "http.response.body", "body": b"".join(pieces)})
        except TimeoutError:  # it takes nothing: it is not there any more
            if connection is not None:
                connection.abort()

    async def _next(self) -> tuple[list[bytes], bool]:
        """What to send next, and whether there is more behind it."""
        try:
            return await self._logged()
        except PenstockError as error:
            return [b"data: %b\n\n" % _encode(answer_of(error).body)], False

    async def _logged(self) -> tuple[list[bytes], bool]:
        beat = self._manner.heartbeat_s
        found = await self._engine.events(self._run, after=self._after, limit=SHARE, wait_s=beat)
        if found:
            self._after = found[-1].offset
            return _pieces(b"id: %d\ndata: %b\n\n" % (one.offset, _encode(entry_row(one))) for one in found), True
        status = await self._engine.status(self._run, steps=False)
        if status.state not in GOES_ON and status.offset <= self._after:
            return [b"event: end\ndata: %b\n\n" % _encode({"status": status.state})], False
        if status.state == "interrupted":  # nothing waits for it, until a process takes it up
            await asyncio.sleep(min(AWAY_S, beat))
        return [PING], True


def _pieces(events: Iterable[bytes]) -> list[bytes]:
    """Events joined where they are small, so that little is queued for a slow reader."""
    pieces = [b""]
    for event in events:
        if len(pieces[-1]) > PIECE:
            pieces.append(event)
        else:
            pieces[-1] += event
    return pieces


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
