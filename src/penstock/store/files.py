"""What the store's SQLite files share: how one is opened and migrated, what its failures mean, and who is alive."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Literal
from uuid import uuid4

from penstock.errors import StoreFailed

Sync = Literal["normal", "full"]
BUSY_S = 10.0
BUSY_STEP_S = 0.002
FOREIGN = (sqlite3.Error, OSError, ValueError)
HINTS = {
    sqlite3.SQLITE_FULL: "make room on the disk and try again",
    sqlite3.SQLITE_NOTADB: "it is not a {what}: give another path, or move the file away",
    sqlite3.SQLITE_CORRUPT: "the file is damaged: restore it, or move it away",
    sqlite3.SQLITE_BUSY: "another process holds it: try again",
    sqlite3.SQLITE_CONSTRAINT: "another process has taken over what was held here: was a lock file removed?",
    sqlite3.SQLITE_READONLY: "make the file and its folder writable",
    sqlite3.SQLITE_CANTOPEN: "make the file and its folder readable and writable",
}


@dataclass(frozen=True, slots=True)
class Schema:
    """What a kind of file holds: `migrations[n]` brings version n to n + 1, by statements or by a function.

    `what` names the kind in errors, `mark` (a number, SQLite's `application_id`) tells it from others.
    """

    what: str
    mark: int
    migrations: tuple[tuple[str, ...] | Callable[[sqlite3.Connection], object], ...]

    def failure(self, path: Path, error: Exception) -> StoreFailed:
        """A foreign error of such a file, as ours."""
        if isinstance(error, StoreFailed):
            return error
        hint = HINTS.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, "").format(what=self.what)
        failed = StoreFailed(f"the {self.what} {str(path)!r}: {error}" + (f": {hint}" if hint else ""))
        failed.__cause__ = error
        return failed


def opened(path: Path, schema: Schema, sync: Sync) -> sqlite3.Connection:
    """A connection to the file, which is made or brought to this version where needed.

    Raises `StoreFailed` when it holds something else, or was written by a newer version.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        _write_ahead(db)
        db.execute(f"PRAGMA synchronous = {sync}")
        if not _current(db, path, schema):
            _migrate(db, schema)
    except (*FOREIGN, StoreFailed):
        db.close()
        raise
    return db


def _write_ahead(db: sqlite3.Connection) -> None:
    """Switch to the write-ahead log; SQLite itself does not wait where several processes make one file at once."""
    until = monotonic() + BUSY_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or monotonic() > until:
                raise
            sleep(BUSY_STEP_S)
        else:
            return


def _current(db: sqlite3.Connection, path: Path, schema: Schema) -> bool:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (mark,) = db.execute("PRAGMA application_id").fetchone()
    if version > len(schema.migrations):
        raise StoreFailed(f"{str(path)!r} was written by another version ({version}): give another path")
    holds = version or db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if holds and mark != schema.mark:
        raise StoreFailed(f"{str(path)!r} holds something else: it is not a {schema.what}: give another path")
    return bool(version == len(schema.migrations))


def _migrate(db: sqlite3.Connection, schema: Schema) -> None:
    db.execute("BEGIN IMMEDIATE")
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()  # another process may have been first
        for step in schema.migrations[version:]:
            if callable(step):
                step(db)
            else:
                for statement in step:
                    db.execute(statement)
        db.execute(f"PRAGMA application_id = {schema.mark}")
        db.execute(f"PRAGMA user_version = {len(schema.migrations)}")
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


class Owner:
    """A locked file beside a store's: what it claims is alive while the lock is held, which ends with the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = uuid4().hex
        fresh = path.with_name(f"{path.name}.new-{self.name}")
        self._handle = fresh.open("w")
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX)
            self._handle.write(str(os.getpid()))
            self._handle.flush()
            fresh.rename(_file(path, self.name))  # locked before anybody can see it
        except OSError:
            fresh.unlink(missing_ok=True)
            self._handle.close()
            raise
        for file in path.parent.glob(f"{path.name}.owner-*"):
            lives(path, file.name.rpartition("-")[2])

    def lives(self, owner: str) -> bool:
        """Whether an owner of this file is there; what is left of one that is not is removed."""
        return lives(self._path, owner)

    def close(self) -> None:
        """Give the lock back."""
        _file(self._path, self.name).unlink(missing_ok=True)
        self._handle.close()


def lives(path: Path, owner: str) -> bool:
    """Whether an owner of the store at a path is there; the file of one that is not is removed."""
    file = _file(path, owner)
    try:
        with file.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    file.unlink(missing_ok=True)
    return False


def process_of(path: Path, owner: str) -> int:
    """The process id of a living owner; 0 where its file does not tell."""
    with suppress(OSError, ValueError):
        return int(_file(path, owner).read_text())
    return 0


def _file(path: Path, owner: str) -> Path:
    return path.with_name(f"{path.name}.owner-{owner}")
