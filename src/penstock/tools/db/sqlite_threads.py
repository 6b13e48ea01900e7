"""SQLite connections, each owned by one thread; what a caller no longer waits for is stopped."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, TypeAlias

IDLE_S = 10.0
STUCK_S = 0.005
LOOK_EVERY = 10_000  # instructions of SQLite's virtual machine: well below a millisecond

Connect: TypeAlias = Callable[[], sqlite3.Connection]
Work: TypeAlias = Callable[[sqlite3.Connection, Sequence[Any]], Any]


class _Answers:
    """The way back into a loop: what threads finish until it looks is handed over at once, as waking it is dear."""

    __slots__ = ("_ready", "_woken", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._ready: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._woken = False

    def put(self, future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
        """Hand an answer to who waits, from another thread."""
        self._ready.append((future, value, error))
        if not self._woken:  # looked at after the answer is there, as `_deliver` changes it before it looks
            self._woken = True
            with suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits
                self.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False
        while self._ready:
            future, value, error = self._ready.popleft()
            if future.done():
                continue
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)


class _Job:
    """One question: its values, who waits for the answer, and until when (monotonic seconds)."""

    __slots__ = ("_answers", "abandoned", "future", "until", "values")

    def __init__(self, values: Sequence[Any] | None, answers: _Answers, until: float) -> None:
        self.values, self._answers, self.until = values, answers, until
        self.future: asyncio.Future[Any] = answers.loop.create_future()
        self.abandoned = False

    def settle(self, value: Any, error: BaseException | None) -> None:
        """Hand the answer to who waits, from another thread."""
        self._answers.put(self.future, value, error)


class SqliteThreads:
    """Does `work` on connections from `connect`: on one thread, and on up to `most` while others are held up."""

    def __init__(self, connect: Connect, work: Work, *, most: int) -> None:
        self._connect, self._work, self._most = connect, work, most
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = self._served = 0
        self._watched: asyncio.AbstractEventLoop | None = None
        self._answers: _Answers | None = None

    async def ask(self, values: Sequence[Any], timeout: float) -> Any:
        """What `work` returns or raises for these values; it is stopped after `timeout` seconds, or on a cancel."""
        loop = asyncio.get_running_loop()
        answers = self._answers
        if answers is None or answers.loop is not loop:
            answers = self._answers = _Answers(loop)
        job = _Job(values, answers, monotonic() + timeout)
        with self._lock:
            self._jobs.put(job)
            if not self._threads:
                self._start()
        if self._most > 1 and self._watched is not loop:
            self._watch(loop, self._served)
        try:
            return await job.future
        except asyncio.CancelledError:
            job.abandoned = True
            raise

    async def aclose(self) -> None:
        """Close every connection, and wait until it is; what runs is finished first."""
        answers, self._answers = _Answers(asyncio.get_running_loop()), None
        with self._lock:
            ends = [_Job(None, answers, 0.0) for _ in range(self._threads)]
            for end in ends:
                self._jobs.put(end)
        await asyncio.gather(*(end.future for end in ends))

    def _start(self) -> None:
        self._threads += 1
        threading.Thread(target=self._serve, name="penstock-sqlite", daemon=True).start()

    def _watch(self, loop: asyncio.AbstractEventLoop, served: int) -> None:
        self._watched = loop
        loop.call_later(STUCK_S, self._look, loop, served)

    def _look(self, loop: asyncio.AbstractEventLoop, served: int) -> None:
        """Add a thread where some wait and nothing was finished since the last look."""
        self._watched = None
        with self._lock:
            waiting = not self._jobs.empty()
            if waiting and served == self._served and 0 < self._threads < self._most:
                self._start()
        if waiting:
            self._watch(loop, self._served)

    def _serve(self) -> None:
        connection: sqlite3.Connection | None = None
        running: _Job | None = None

        def stop() -> bool:
            return running is None or running.abandoned or monotonic() > running.until

        while (running := self._next()) is not None and running.values is not None:
            value, error = None, None
            if not running.abandoned:
                try:
                    if connection is None:
                        connection = self._connect()
                        connection.set_progress_handler(stop, LOOK_EVERY)
                    value = self._work(connection, running.values)
                except BaseException as raised:  # carried to who waits for it, or the thread would be lost for good
                    error = raised
                running.settle(value, error)
            self._served += 1
            value = error = None
        if connection is not None:
            connection.set_progress_handler(None, 0)
            connection.close()
        if running is not None:
            running.settle(None, None)

    def _next(self) -> _Job | None:
        """The next job, or None when there was none for so long that the thread may end."""
        while True:
            try:
                job = self._jobs.get(timeout=IDLE_S)
            except Empty:
                job = None
            if job is not None and job.values is not None:
                return job
            with self._lock:  # so that no job is put for a thread that is about to end
                if job is not None or self._jobs.empty():
                    self._threads -= 1
                    return job
