"""`SqliteLedger`: which calls began and how they ended, in one SQLite file that several processes may share."""

from __future__ import annotations

import asyncio
import fcntl
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import time
from typing import Any, NamedTuple, cast
from uuid import uuid4

from penstock.errors import StoreFailed
from penstock.policies.idempotency import Entry, State

VERSION = 1
BUSY_S = 10.0
DROP_AT_ONCE = 100
SCHEMA = (
    """
CREATE TABLE IF NOT EXISTS entries (
    key TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    state TEXT NOT NULL,
    at REAL NOT NULL,
    value BLOB NOT NULL,
    owner TEXT NOT NULL,
    expires REAL
)
""",
    """
CREATE INDEX IF NOT EXISTS undecided ON entries (state, owner) WHERE state IN ('running', 'unknown')
""",
    """
CREATE INDEX IF NOT EXISTS expiring ON entries (expires) WHERE expires IS NOT NULL
""",
)
COLUMNS = "key, fingerprint, state, at, value"

HINTS = {
    sqlite3.SQLITE_FULL: "make room on the disk and try again",
    sqlite3.SQLITE_NOTADB: "it is not a ledger: give another path, or move the file away",
    sqlite3.SQLITE_CORRUPT: "the file is damaged: restore it, or move it away",
    sqlite3.SQLITE_BUSY: "another process holds it: try again",
    sqlite3.SQLITE_READONLY: "make the file and its folder writable",
    sqlite3.SQLITE_CANTOPEN: "make the file and its folder readable and writable",
}


class _Owner:
    """A locked file beside the ledger: its claims are alive while the lock is held, which ends with the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = uuid4().hex
        fresh = path.with_name(f"{path.name}.new-{self.name}")
        self._handle = fresh.open("wb")
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        fresh.rename(self._file(self.name))  # locked before anybody can see it
        for file in path.parent.glob(f"{path.name}.owner-*"):
            self.lives(file.name.rpartition("-")[2])

    def _file(self, owner: str) -> Path:
        return self._path.with_name(f"{self._path.name}.owner-{owner}")

    def lives(self, owner: str) -> bool:
        """Whether another owner's process is there; the file of one that is not is removed."""
        file = self._file(owner)
        try:
            with file.open("rb") as handle:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        file.unlink(missing_ok=True)
        return False

    def close(self) -> None:
        """Give the lock back."""
        self._file(self.name).unlink(missing_ok=True)
        self._handle.close()


class _Table:
    """The open file, as its one thread sees it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._held: set[str] = set()
        self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
        try:
            self._prepare(path)
            self._owner = _Owner(path)
        except (OSError, sqlite3.Error, StoreFailed):
            self._db.close()
            raise

    def _prepare(self, path: Path) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == VERSION:
            return
        if version:
            raise StoreFailed(f"{str(path)!r} was written by another version ({version}): give another path")
        self._db.execute("BEGIN IMMEDIATE")
        for statement in SCHEMA:
            self._db.execute(statement)
        self._db.execute(f"PRAGMA user_version = {VERSION}")
        self._db.execute("COMMIT")

    def together(self, calls: Sequence[Callable[[_Table], Any]]) -> list[Any]:
        """The answers of all calls, made in one transaction."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            oldest = "SELECT rowid FROM entries WHERE expires <= ? LIMIT ?"
            self._db.execute(f"DELETE FROM entries WHERE rowid IN ({oldest})", (time(), DROP_AT_ONCE))  # noqa: S608
            answers = [call(self) for call in calls]
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        return answers

    def sweep(self) -> None:
        """Mark `unknown` what ran in processes that are gone, and what could not be settled here."""
        running = self._db.execute("SELECT key, owner FROM entries WHERE state = 'running'").fetchall()
        lost = [(time(), key) for key, owner in running if not self._runs(key, owner)]
        self._db.executemany("UPDATE entries SET state = 'unknown', at = ? WHERE key = ?", lost)

    def claim(self, key: str, fingerprint: str) -> Entry | None:
        """Take a key, or give the entry that has it."""
        now = time()
        row = self._db.execute(
            f"SELECT {COLUMNS}, owner FROM entries WHERE key = ? AND (expires IS NULL OR expires > ?)",  # noqa: S608
            (key, now),
        ).fetchone()
        if row is None:
            self._db.execute(
                "INSERT OR REPLACE INTO entries VALUES (?, ?, 'running', ?, x'', ?, NULL)",
                (key, fingerprint, now, self._owner.name),
            )
            self._held.add(key)
            return None
        *found, owner = row
        if found[2] == "running" and not self._runs(key, owner):
            self._db.execute("UPDATE entries SET state = 'unknown', at = ? WHERE key = ?", (now, key))
            found[2:4] = "unknown", now
        return Entry(*found)

    def _runs(self, key: str, owner: str) -> bool:
        return key in self._held if owner == self._owner.name else self._owner.lives(owner)

    def settle(self, key: str, state: State, value: bytes, expires: float | None) -> None:
        """Write how a claimed call ended."""
        changed = self._db.execute(
            "UPDATE entries SET state = ?, at = ?, value = ?, expires = ?"
            " WHERE key = ? AND owner = ? AND state = 'running'",
            (state, time(), value, expires, key, self._owner.name),
        )
        self._let_go(key, changed)

    def release(self, key: str) -> None:
        """Drop a claimed key."""
        changed = self._db.execute(
            "DELETE FROM entries WHERE key = ? AND owner = ? AND state = 'running'", (key, self._owner.name)
        )
        self._let_go(key, changed)

    def _let_go(self, key: str, changed: sqlite3.Cursor) -> None:
        self._held.discard(key)
        if changed.rowcount != 1:
            raise StoreFailed(f"the ledger has lost the claim of {key!r}: was its file replaced?")

    def entries(self, state: State) -> list[Entry]:
        """The entries in a state, the oldest first."""
        self.sweep()
        rows = self._db.execute(
            f"SELECT {COLUMNS} FROM entries WHERE state = ? AND (expires IS NULL OR expires > ?) ORDER BY at",  # noqa: S608
            (state, time()),
        )
        return [Entry(*row) for row in rows]

    def forget(self, key: str) -> bool:
        """Drop an entry whose call does not run."""
        self.sweep()
        return self._db.execute("DELETE FROM entries WHERE key = ? AND state <> 'running'", (key,)).rowcount == 1

    def close(self) -> None:
        """Close the file, and give back what the system holds for it."""
        self._db.close()
        self._owner.close()


class _Asked(NamedTuple):
    """One call of a table, and who waits for its answer."""

    call: Callable[[_Table], Any]
    answer: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


class SqliteLedger:
    """A `Ledger` in an SQLite file, which is opened, or made, when it is first used.

    What many calls write at once goes to the disk in one transaction, and each returns when it is there: neither a
    killed process nor a loss of power loses a claim. A claim whose process is gone is `unknown`. Raises `StoreFailed`
    when the file cannot be read or written.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).absolute()
        self._asked: deque[_Asked] = deque()
        self._thread = ThreadPoolExecutor(1, "penstock-ledger")  # starts with its first work, ends with the ledger
        self._table: _Table | None = None

    async def claim(self, key: str, fingerprint: str) -> Entry | None:
        """Take a key as `running`: None, or the entry that has it."""
        return cast("Entry | None", await self._ask(partial(_Table.claim, key=key, fingerprint=fingerprint)))

    async def commit(self, key: str, value: bytes, *, failed: bool, ttl_s: float) -> None:
        """Keep how a claimed call ended, for `ttl_s` seconds: `done`, or `failed`."""
        state: State = "failed" if failed else "done"
        await self._ask(partial(_Table.settle, key=key, state=state, value=value, expires=time() + ttl_s))

    async def release(self, key: str) -> None:
        """Forget a claimed key: its call did nothing."""
        await self._ask(partial(_Table.release, key=key))

    async def doubt(self, key: str) -> None:
        """Mark a claimed key `unknown`, until it is forgotten."""
        await self._ask(partial(_Table.settle, key=key, state="unknown", value=b"", expires=None))

    async def entries(self, state: State) -> list[Entry]:
        """The entries in a state, the oldest first: what is `unknown` waits for an operator."""
        return cast("list[Entry]", await self._ask(partial(_Table.entries, state=state)))

    async def forget(self, key: str) -> bool:
        """Drop an entry, so that its key may be used again; False where there is none, or its call is running."""
        return bool(await self._ask(partial(_Table.forget, key=key)))

    async def aclose(self) -> None:
        """Close the file; the next use opens it again. What is claimed and not settled becomes `unknown`."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)

    async def _ask(self, call: Callable[[_Table], Any]) -> Any:
        loop = asyncio.get_running_loop()
        asked = _Asked(call, loop.create_future(), loop)
        self._asked.append(asked)
        self._thread.submit(self._work)
        return await asked.answer

    def _work(self) -> None:
        """Answer all that is asked by now; in the thread."""
        asked = [self._asked.popleft() for _ in range(len(self._asked))]
        if not asked:
            return
        answers: list[Any] = [StoreFailed(f"the ledger {str(self._path)!r} could not answer")] * len(asked)
        try:
            answers = self._answers([one.call for one in asked])
        finally:
            for one, answer in zip(asked, answers, strict=True):
                with suppress(RuntimeError):  # its loop was closed meanwhile
                    one.loop.call_soon_threadsafe(_tell, one.answer, answer)

    def _answers(self, calls: list[Callable[[_Table], Any]]) -> list[Any]:
        try:
            if self._table is None:
                self._table = _Table(self._path)
            return self._table.together(calls)
        except (sqlite3.Error, OSError, ValueError, StoreFailed) as error:
            if len(calls) > 1:  # one of them may be to blame
                return [self._answers([call])[0] for call in calls]
            return [error if isinstance(error, StoreFailed) else self._failed(error)]

    def _failed(self, error: sqlite3.Error | OSError | ValueError) -> StoreFailed:
        hint = HINTS.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, "")
        failed = StoreFailed(f"the ledger {str(self._path)!r}: {error}" + (f": {hint}" if hint else ""))
        failed.__cause__ = error
        return failed

    def _close(self) -> None:
        if self._table is not None:
            self._table.close()
            self._table = None


def _tell(answer: asyncio.Future[Any], said: Any) -> None:
    if answer.done():
        return
    if isinstance(said, StoreFailed):
        answer.set_exception(said)
    else:
        answer.set_result(said)
