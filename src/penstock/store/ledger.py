"""`SqliteLedger`: which calls began and how they ended, in one SQLite file that several processes may share."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import time
from typing import Any, cast

from penstock.errors import StoreFailed
from penstock.policies.idempotency import Entry, State
from penstock.store.commits import Commits, Table
from penstock.store.files import FOREIGN, Owner, Schema, opened

DROP_AT_ONCE = 100
SCHEMA = Schema(
    "ledger",
    mark=0,
    migrations=(
        (
            """
CREATE TABLE entries (
    key TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    state TEXT NOT NULL,
    at REAL NOT NULL,
    value BLOB NOT NULL,
    owner TEXT NOT NULL,
    expires REAL
)
""",
            "CREATE INDEX undecided ON entries (state, owner) WHERE state IN ('running', 'unknown')",
            "CREATE INDEX expiring ON entries (expires) WHERE expires IS NOT NULL",
        ),
    ),
)
COLUMNS = "key, fingerprint, state, at, value"


class _Table(Table):
    """The open file, as its one thread sees it."""

    def __init__(self, db: sqlite3.Connection, owner: Owner) -> None:
        super().__init__(db)
        self._held: set[str] = set()
        self._owner = owner

    def together(self, calls: Sequence[Callable[[Any], Any]]) -> list[Any]:
        """The answers of all calls, made in one transaction that also drops what has expired."""
        return super().together([_Table.drop, *calls])[1:]

    def drop(self) -> None:
        """Forget some of what has expired."""
        oldest = "SELECT rowid FROM entries WHERE expires <= ? LIMIT ?"
        self._db.execute(f"DELETE FROM entries WHERE rowid IN ({oldest})", (time(), DROP_AT_ONCE))  # noqa: S608

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
        super().close()
        self._owner.close()


class SqliteLedger(Commits[_Table]):
    """A `Ledger` in an SQLite file, which is opened, or made, when it is first used.

    What many calls write at once goes to the disk in one transaction, and each returns when it is there: neither a
    killed process nor a loss of power loses a claim. A claim whose process is gone is `unknown`. Raises `StoreFailed`
    when the file cannot be read or written.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, SCHEMA, inline=False)

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
        await super().aclose()

    def _open(self) -> _Table:
        db = opened(self._path, SCHEMA, "full")
        try:
            return _Table(db, Owner(self._path))
        except FOREIGN:
            db.close()
            raise
