"""`Commits`: what is asked of an SQLite file at one moment shares one transaction."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from penstock.errors import PenstockError, StoreFailed
from penstock.store.files import BUSY_S, FOREIGN, Schema

HERE_BYTES = 16_384  # more than about this is written in the thread: the event loop would wait
CHECKPOINT_PAGES = 4000
LINGER_S = 0.01  # for how long the thread waits for more: to wake it is quicker than to give it new work
WORK, LEAVE = True, False


class Table:
    """The open file. One thread at a time uses it."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.pages = 0  # written since the last checkpoint, about; counted where SQLite is told not to make any

    def together(self, calls: Sequence[Callable[[Any], Any]]) -> list[Any]:
        """The answers of all calls, made in one transaction."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            answers = [call(self) for call in calls]
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        return answers

    def wait(self, seconds: float) -> None:
        """Set for how long another process's transaction is waited for."""
        self._db.execute(f"PRAGMA busy_timeout = {seconds * 1000:.0f}")

    def checkpoint(self) -> None:
        """Bring what was written into the file proper."""
        self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        self.pages = 0

    def close(self) -> None:
        """Close the file."""
        self._db.close()


Opened = TypeVar("Opened", bound=Table)
_Asked = tuple[Callable[[Any], Any], asyncio.Future[Any]]
"""One call of a table, and who waits for its answer."""


class Commits(ABC, Generic[Opened]):
    """A file that is opened when it is first used; its writers wait together for one commit.

    The work is done in a thread of its own. Where a commit does not wait for the disk (`inline`), little work is done
    on the event loop, since the way to a thread and back takes longer; what is much, finds the file busy or fails goes
    to the thread. Event loops of several threads may share one.
    """

    def __init__(self, path: str | Path, schema: Schema, *, inline: bool) -> None:
        self._path = Path(path).absolute()
        self._schema = schema
        self._inline = inline
        self._asked: deque[_Asked] = deque()
        self._bytes = 0
        self._due: asyncio.AbstractEventLoop | None = None  # where the next commit was arranged
        self._using = threading.Lock()
        self._more: SimpleQueue[bool] = SimpleQueue()  # wakes the thread while it lingers: there is work, or none
        self._lingers = False
        self._thread = ThreadPoolExecutor(1, f"penstock-{schema.what}")  # starts with its first work, ends with self
        self._table: Opened | None = None

    @abstractmethod
    def _open(self) -> Opened:
        """The opened file; in the thread."""

    async def aclose(self) -> None:
        """Close the file, when all that was asked is written; the next use opens it again."""
        self._more.put(LEAVE)
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)

    def _ask(self, call: Callable[[Opened], Any], size: int = 0, *, at_once: bool = False) -> asyncio.Future[Any]:
        """The answer to come of a call that writes about so many bytes; `at_once` gathers no others."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._asked.append((call, answer))
        self._bytes += size
        if at_once and self._inline:
            self._here()
        elif self._due is not loop:
            self._due = loop
            if self._inline:
                loop.call_soon(self._here)
            else:
                self._hand_over()
        return answer

    def _here(self) -> None:
        """Answer all that is asked by now, or leave it to the thread; on the event loop."""
        self._due = None
        if not self._asked:
            return
        if self._bytes > HERE_BYTES or not self._using.acquire(blocking=False):
            self._hand_over()
            return
        answers: list[Any] | None = None
        asked, table = self._take(), self._table
        try:
            if table is not None:
                with suppress(*FOREIGN, StoreFailed):
                    answers = table.together([call for call, _ in asked])
        finally:
            if answers is None:
                self._asked.extendleft(reversed(asked))
            if answers is None or (table and table.pages > CHECKPOINT_PAGES):
                self._hand_over()
            self._using.release()
        if answers is not None:
            _settle(zip(asked, answers, strict=True), asyncio.get_running_loop())

    def _hand_over(self) -> None:
        if self._lingers:
            self._more.put(WORK)
        else:
            self._lingers = True
            self._thread.submit(self._there)

    def _there(self) -> None:
        """Answer what is asked until nothing more comes; in the thread."""
        more = True
        try:
            while more or self._asked:
                self._lingers = True
                self._answer()
                try:
                    more = self._more.get(timeout=LINGER_S)
                except Empty:
                    more = False
                self._lingers = more
                self._due = None  # whoever asks from here on is either seen by this loop or starts the next
        finally:
            if self._lingers:  # an answer failed in a way that is not foreseen
                self._lingers, self._due = False, None
                if self._asked:
                    self._hand_over()

    def _answer(self) -> None:
        """Answer all that is asked by now, and tell it when the event loop may use the file again."""
        asked: list[_Asked] = []
        answers: list[Any] = []
        try:
            with self._using:
                self._due = None
                asked = self._take()
                answers = [StoreFailed(f"the {self._schema.what} {str(self._path)!r} could not answer")] * len(asked)
                answers = self._answers([call for call, _ in asked])
        finally:
            _settle(zip(asked, answers, strict=True))
        if self._inline:
            with self._using, suppress(sqlite3.Error):  # a checkpoint that fails only comes later
                if self._table is not None and self._table.pages > CHECKPOINT_PAGES:
                    self._table.checkpoint()

    def _take(self) -> list[_Asked]:
        self._bytes = 0
        return [self._asked.popleft() for _ in range(len(self._asked))]

    def _answers(self, calls: list[Callable[[Any], Any]]) -> list[Any]:
        if not calls:
            return []
        try:
            if self._table is None:
                self._table = self._open()
            if not self._inline:
                return self._table.together(calls)
            self._table.wait(BUSY_S)
            try:
                return self._table.together(calls)
            finally:
                self._table.wait(0)
        except (*FOREIGN, StoreFailed) as error:
            if len(calls) > 1:  # one of them may be to blame
                return [self._answers([call])[0] for call in calls]
            return [self._schema.failure(self._path, error)]

    def _close(self) -> None:
        self._answer()
        with self._using:
            table, self._table = self._table, None
            if table is not None:
                table.close()


def _settle(told: Iterable[tuple[_Asked, Any]], here: asyncio.AbstractEventLoop | None = None) -> None:
    """Give the answers to those who wait: at once on the loop that runs here, by one call on each other."""
    elsewhere: dict[asyncio.AbstractEventLoop, list[tuple[_Asked, Any]]] = {}
    for asked, said in told:
        answer = asked[1]
        if (loop := answer.get_loop()) is not here:
            elsewhere.setdefault(loop, []).append((asked, said))
        elif answer.done():
            continue
        elif isinstance(said, PenstockError):
            answer.set_exception(said)
        else:
            answer.set_result(said)
    for loop, those in elsewhere.items():
        with suppress(RuntimeError):  # it was closed meanwhile
            loop.call_soon_threadsafe(_settle, those, loop)
