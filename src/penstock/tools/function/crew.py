"""A crew of threads that take jobs from one queue: as many as there are jobs at once, ended when they are idle."""

from __future__ import annotations

import asyncio
import os
import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from penstock.errors import ToolFailed

IDLE_S = 10.0


class Job:
    """What a thread does for a caller in an event loop, who waits for `done`."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def end(self, value: Any, error: BaseException | None) -> None:
        """Tell who waits for it; called in the thread."""
        with suppress(RuntimeError):  # the loop was closed meanwhile
            self.done.get_loop().call_soon_threadsafe(settle, self.done, value, error)


Kind = TypeVar("Kind", bound=Job)


class Crew(ABC, Generic[Kind]):
    """At most `most` threads, daemons each, which end when nothing came for `idle_s` seconds."""

    def __init__(self, most: int, idle_s: float = IDLE_S) -> None:
        self._most, self._idle_s = most, idle_s
        self._clear()
        if hasattr(os, "register_at_fork"):  # a forked child has none of the threads
            os.register_at_fork(after_in_child=self._clear)

    def _clear(self) -> None:
        self._queue: SimpleQueue[Kind] = SimpleQueue()
        self._lock = threading.Lock()
        self._running = 0
        self._free = 0  # threads that wait, less the jobs that wait for one

    def submit(self, job: Kind) -> None:
        """Have a job done as soon as a thread is free; raises `RuntimeError` where the system gives no thread."""
        with self._lock:
            self._free -= 1
            more = self._more()
        try:
            if more:
                self._start()
        except RuntimeError:
            with self._lock:
                self._free += 1
            raise
        self._queue.put(job)

    @property
    def _places(self) -> int:
        return self._most

    def _more(self) -> bool:
        more = self._free < 0 and self._running < self._places
        self._running += more
        self._free += more
        return more

    def _start(self) -> None:
        try:
            threading.Thread(target=self._serve, name="penstock-tool", daemon=True).start()
        except RuntimeError:
            with self._lock:
                self._running -= 1
                self._free -= 1
            raise

    @abstractmethod
    def _serve(self) -> None:
        """Do jobs until `_next` gives none; after each one a thread counts itself free again."""

    def _next(self) -> Kind | None:
        while True:
            try:
                return self._queue.get(timeout=self._idle_s)
            except Empty:
                with self._lock:
                    if self._free > 0:  # else a job was just promised this thread
                        self._free -= 1
                        self._running -= 1
                        return None


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
