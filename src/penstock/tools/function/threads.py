"""Threads for synchronous functions: reused, and daemons, as one that never returns must not keep the process."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import closing, suppress
from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import Any

from penstock.errors import ToolFailed

MOST = 64
IDLE_S = 10.0


class _Work:
    """One call on its way through a thread; `left` when nobody waits for it any more."""

    __slots__ = ("call", "done", "left", "loop", "running")

    def __init__(self, call: Callable[[], Any]) -> None:
        context = copy_context()
        self.call: Callable[[], Any] = lambda: context.run(call)
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[Any] = self.loop.create_future()
        self.running = self.left = False


class Threads:
    """Runs functions in threads, as many as run at once; over `most` they wait. One that overruns takes no place."""

    def __init__(self, most: int = MOST, idle_s: float = IDLE_S) -> None:
        self._most, self._idle_s = most, idle_s
        self._clear()
        if hasattr(os, "register_at_fork"):  # a forked child has none of the threads
            os.register_at_fork(after_in_child=self._clear)

    def _clear(self) -> None:
        self._queue: SimpleQueue[_Work] = SimpleQueue()
        self._lock = threading.Lock()
        self._running = 0
        self._free = 0  # threads that wait, less the calls that wait for one

    async def run(self, call: Callable[[], Any]) -> Any:
        """What `call()` returns or raises, in the caller's context; a cancelled caller leaves its thread."""
        work = _Work(call)
        with self._lock:
            self._free -= 1
            more = self._more()
        try:
            if more:
                self._start()
        except RuntimeError:
            work.left = True  # else a thread would do what is told to have failed
            raise
        finally:
            self._queue.put(work)
        try:
            return await work.done
        except asyncio.CancelledError:
            self._leave(work)
            raise

    def _more(self) -> bool:
        more = self._free < 0 and self._running < self._most
        self._running += more
        self._free += more
        return more

    def _start(self) -> None:
        try:
            threading.Thread(target=self._serve, name="penstock-tool", daemon=True).start()
        except RuntimeError:  # the system gives no more threads
            with self._lock:
                self._running -= 1
                self._free -= 1
            raise

    def _leave(self, work: _Work) -> None:
        with self._lock:
            work.left = True
            self._running -= work.running
            more = work.running and self._more()
        if more:
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
                replaced = work.running and work.left
                work.running = False
                self._free += not replaced
            with suppress(RuntimeError):  # the loop was closed while the function ran
                work.loop.call_soon_threadsafe(settle, work.done, value, error)
            if replaced:
                return
            del work, value, error

    def _next(self) -> _Work | None:
        while True:
            try:
                return self._queue.get(timeout=self._idle_s)
            except Empty:
                with self._lock:
                    if self._free > 0:  # else a call was just promised this thread
                        self._free -= 1
                        self._running -= 1
                        return None


THREADS = Threads()


def settle(done: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    """Give a future its end, unless it has one; never one that would end the event loop."""
    if done.done():
        return
    if error is None:
        done.set_result(value)
    elif isinstance(error, Exception) and not isinstance(error, StopIteration):
        done.set_exception(error)
    else:
        failed = ToolFailed(
            f"the function raised {type(error).__name__}: {error}", details={"type": type(error).__name__}
        )
        failed.__cause__ = error
        done.set_exception(failed)


async def iterate(make: Callable[[], Generator[Any, Any, Any]]) -> AsyncGenerator[Any, None]:
    """The items of a generator that lives in one thread from its first step to its close, in the caller's context.

    It makes an item when it is asked for one. A cancelled caller does not wait for its close.
    """
    asked: SimpleQueue[asyncio.Future[Any] | None] = SimpleQueue()
    loop = asyncio.get_running_loop()
    closed: asyncio.Future[Any] = loop.create_future()
    context = copy_context()
    threading.Thread(
        target=lambda: context.run(_produce, make, asked, closed), name="penstock-tool-stream", daemon=True
    ).start()
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
