"""Threads for synchronous functions: reused, and daemons, as one that never returns must not keep the process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import closing, suppress
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any

from penstock.errors import ToolFailed
from penstock.tools.function.crew import Crew, Job, settle

MOST = 64


class _Call(Job):
    """One call on its way through a thread; `left` when nobody waits for it any more."""

    __slots__ = ("call", "left", "running")

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__()
        context = copy_context()
        self.call: Callable[[], Any] = lambda: context.run(call)
        self.running = self.left = False


class Threads(Crew[_Call]):
    """Runs functions in threads, as many as run at once; over `most` they wait.

    One that overruns takes no place, until `most` of them do nothing but that: the next ones take places, and when
    they have all of them, calls are refused.
    """

    def _clear(self) -> None:
        super()._clear()
        self._left = 0

    @property
    def _places(self) -> int:
        return self._most + min(self._left, self._most)

    async def run(self, call: Callable[[], Any]) -> Any:
        """What `call()` returns or raises, in the caller's context; a cancelled caller leaves its thread.

        Raises `ToolFailed` where every thread is busy with a call that was left.
        """
        if self._left >= 2 * self._most:
            raise _overrun(self._left)
        work = _Call(call)
        self.submit(work)
        try:
            return await work.done
        except asyncio.CancelledError:
            self._leave(work)
            raise

    def _leave(self, work: _Call) -> None:
        with self._lock:
            work.left = True
            self._left += work.running
            more = self._more()
        if more:
            with suppress(RuntimeError):  # the system gives no more threads: who waits goes on waiting
                self._start()

    def _serve(self) -> None:
        while (work := self._next()) is not None:
            with self._lock:
                work.running = not work.left
            value, error = None, None
            if work.running:
                try:
                    value = work.call()
                except BaseException as raised:  # carried to who waits for it
                    error = raised
            with self._lock:
                self._left -= work.running and work.left
                work.running = False
                spare = self._running > self._places
                self._running -= spare
                self._free += not spare
            work.end(value, error)
            if spare:
                return
            del work, value, error


THREADS = Threads(MOST)


def _overrun(count: int) -> ToolFailed:
    text = f"{count} functions that overran are still running in their threads: try again when one has ended"
    return ToolFailed(text, code="unavailable", retryable=True)


_left: set[threading.Thread] = set()
"""The threads of generators whose reader was cancelled."""


async def iterate(make: Callable[[], Generator[Any, Any, Any]]) -> AsyncGenerator[Any, None]:
    """The items of a generator that lives in one thread from its first step to its close, in the caller's context.

    It makes an item when it is asked for one. A cancelled caller does not wait for its close. Raises `ToolFailed` where
    `MOST` of those that were left have not come to it.
    """
    _left.difference_update([thread for thread in _left.copy() if not thread.is_alive()])
    if len(_left) >= MOST:
        raise _overrun(len(_left))
    asked: SimpleQueue[asyncio.Future[Any] | None] = SimpleQueue()
    loop = asyncio.get_running_loop()
    closed: asyncio.Future[Any] = loop.create_future()
    context = copy_context()
    thread = threading.Thread(
        target=lambda: context.run(_produce, make, asked, closed), name="penstock-tool-stream", daemon=True
    )
    thread.start()
    try:
        try:
            while True:
                item: asyncio.Future[Any] = loop.create_future()
                asked.put(item)
                if (value := await item) is asked:
                    return
                yield value
        except GeneratorExit:
            asked.put(None)
            await closed
            raise
    except asyncio.CancelledError:
        _left.add(thread)
        raise
    finally:
        asked.put(None)


def _produce(
    make: Callable[[], Generator[Any, Any, Any]],
    asked: SimpleQueue[asyncio.Future[Any] | None],
    closed: asyncio.Future[Any],
) -> None:
    tell = closed.get_loop().call_soon_threadsafe
    item, error = asked.get(), None
    try:
        with closing(make()) as items:
            while item is not None and (value := next(items, asked)) is not asked:
                tell(settle, item, value, None)
                item = asked.get()
    except BaseException as raised:  # carried to who waits for it
        error = raised
    with suppress(RuntimeError):  # the loop was closed meanwhile
        if item is not None:
            tell(settle, item, asked, error)
        tell(settle, closed, None, None if item is not None else error)
