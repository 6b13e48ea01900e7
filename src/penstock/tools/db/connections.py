"""`Connections`: those of one tool in one event loop, each lent to one caller at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

IDLE_S = 300.0
CLOSE_S = 2.0
CLOSED = "the tool was closed meanwhile"


class Connection(Protocol):
    """What a driver's connection can do."""

    def is_closed(self) -> bool:
        """Whether it was closed, from here or from there."""
        ...

    def terminate(self) -> None:
        """Close it at once; a call that is waiting for its answer fails."""
        ...

    def close(self) -> Awaitable[object]:
        """Take leave of the server."""
        ...


One = TypeVar("One", bound=Connection)


class Connections(Generic[One]):
    """Up to `most` connections, opened when they are needed; callers who wait are served in the order they came.

    `take` one, and `give` it back: a lost one makes room for another. One that was idle for `IDLE_S` is closed.
    """

    def __init__(self, connect: Callable[[], Awaitable[One]], *, most: int) -> None:
        self._connect, self._most, self._room = connect, most, most
        self._open: set[One] = set()
        self._free: list[One] = []
        self._spare = 0  # how many of the free ones, the first of them, nobody took since the last look
        self._waiting: deque[asyncio.Future[One | None]] = deque()
        self._looking: asyncio.TimerHandle | None = None
        self._idle: asyncio.Future[None] | None = None
        self._closed = False

    async def take(self) -> One:
        """A connection; raises what connecting raises, and `ConnectionError` after `aclose()`."""
        if self._free:
            connection: One | None = self._free.pop()
            self._spare = min(self._spare, len(self._free))
        else:
            connection = await self._turn()
        if connection is not None and not connection.is_closed():
            return connection
        if connection is not None:
            self._forget(connection)
        return await self._opened()

    def give(self, connection: One) -> None:
        """Give a connection back, closed or not."""
        if connection.is_closed():
            self._forget(connection)
            self._serve(None)
        else:
            self._serve(connection)

    async def aclose(self) -> None:
        """Close all. Who uses one, or waits for one, has 2 s to end; then those calls fail."""
        if self._looking is not None:
            self._looking.cancel()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self._leave()
        finally:
            self._closed = True
            for connection in self._open.copy():
                self._forget(connection)
            while self._waiting:
                self._serve(None)

    async def _leave(self) -> None:
        """Wait until all are given back, and take leave of the server."""
        while not self._all_back():
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle
        self._closed = True
        await asyncio.gather(*(one.close() for one in self._open), return_exceptions=True)

    async def _turn(self) -> One | None:
        """A connection that another gives back, or None for the room to open one."""
        if self._room:
            self._room -= 1
            return None
        turn: asyncio.Future[One | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except (asyncio.CancelledError, GeneratorExit):
            if turn.done() and not turn.cancelled():  # served, but gone in the same moment
                self._serve(turn.result())
            turn.cancel()
            raise

    async def _opened(self) -> One:
        room = True
        try:
            if self._closed:
                raise ConnectionError(CLOSED)
            connection = self._kept(await self._connect())
            room = False
        finally:
            if room:
                self._serve(None)
        return connection

    def _kept(self, connection: One) -> One:
        if self._closed:  # while it was opened
            connection.terminate()
            raise ConnectionError(CLOSED)
        self._open.add(connection)
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(IDLE_S, self._look)
        return connection

    def _forget(self, lost: One) -> None:
        lost.terminate()  # its driver may not have noticed all of the end
        self._open.discard(lost)

    def _serve(self, connection: One | None) -> None:
        """Pass a connection on, or the room for one, to who waits first."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(connection)
                return
        if connection is None:
            self._room += 1
        else:
            self._free.append(connection)
        if self._idle is not None and not self._idle.done() and self._all_back():
            self._idle.set_result(None)

    def _all_back(self) -> bool:
        return self._room + len(self._free) == self._most

    def _look(self) -> None:
        """Close what nobody needed, and look again later."""
        unused, self._free = self._free[: self._spare], self._free[self._spare :]
        for connection in unused:
            self._forget(connection)
        self._room += len(unused)
        self._spare = len(self._free)
        self._looking = asyncio.get_running_loop().call_later(IDLE_S, self._look) if self._open else None
