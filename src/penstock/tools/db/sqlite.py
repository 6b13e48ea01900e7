"""`SqliteExecutor`: a declared statement on a SQLite file, on threads that own their connections."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penstock.errors import ToolError, ToolTimeout
from penstock.tools.db.base import BaseDbExecutor, Failures, failed, shaped
from penstock.tools.db.spec import SqliteToolSpec
from penstock.tools.db.sqlite_threads import SqliteThreads
from penstock.tools.db.statement import read_statement
from penstock.tools.db.values import bound, rows_of
from penstock.tools.result import ToolContext

NEVER = frozenset({sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH, sqlite3.SQLITE_PRAGMA})
PRAGMAS = frozenset({"data_version", "foreign_key_list", "table_info", "table_list", "table_xinfo"}) | frozenset(
    {"index_info", "index_list", "index_xinfo"}
)
"""Those that only tell."""

CODES: Mapping[int, str] = {
    sqlite3.SQLITE_AUTH: "read_only_violation",
    sqlite3.SQLITE_BUSY: "database_locked",
    sqlite3.SQLITE_CANTOPEN: "unavailable",
    sqlite3.SQLITE_CONSTRAINT: "constraint_violation",
    sqlite3.SQLITE_CORRUPT: "database_damaged",
    sqlite3.SQLITE_ERROR: "bad_statement",
    sqlite3.SQLITE_FULL: "disk_full",
    sqlite3.SQLITE_INTERRUPT: "timeout",
    sqlite3.SQLITE_IOERR: "io_error",
    sqlite3.SQLITE_LOCKED: "database_locked",
    sqlite3.SQLITE_MISMATCH: "invalid_value",
    sqlite3.SQLITE_NOTADB: "database_damaged",
    sqlite3.SQLITE_PERM: "permission_denied",
    sqlite3.SQLITE_RANGE: "invalid_value",
    sqlite3.SQLITE_READONLY: "read_only_violation",
    sqlite3.SQLITE_SCHEMA: "database_locked",
    sqlite3.SQLITE_TOOBIG: "invalid_value",
}
# SQLite has one code for all of these: only its words tell them apart.
WORDS = (("no such table", "missing_table"), ("no such column", "missing_column"), ("syntax error", "syntax_error"))


class SqliteExecutor(BaseDbExecutor[SqliteToolSpec]):
    """Runs the statement of its spec; what reads may run on several threads, what writes runs on one.

    A `read_only` one opens the file in SQLite's read-only mode and sets `query_only`. Neither can be undone, as pragmas
    that set something are refused; so are, for writing tools too, other files and extensions.
    """

    speaks = False
    _raised = (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, OSError, MemoryError)

    def __init__(self, spec: SqliteToolSpec, **options: Any) -> None:
        super().__init__(spec, **options)
        statement = read_statement(spec.statement, "sqlite")
        self._sql, self._names = statement.numbered("?"), statement.names
        self._uri = f"{Path(spec.path).absolute().as_uri()}?mode={'ro' if spec.read_only else 'rw'}"
        self._threads = SqliteThreads(self._connect, self._run, most=spec.pool_size if spec.read_only else 1)
        self._failures = Failures(translated)

    async def _execute_db_operation(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> Any:
        values = [bound(args.get(name)) for name in self._names]
        return await self._threads.ask(values, timeout)

    async def aclose(self) -> None:
        """Close the connections; the next call opens new ones."""
        await self._threads.aclose()

    def _connect(self) -> sqlite3.Connection:
        spec = self.spec
        connection = sqlite3.connect(self._uri, uri=True, timeout=spec.lock_wait_s, isolation_level=None)
        if spec.read_only:
            connection.execute("PRAGMA query_only = ON")
        connection.set_authorizer(_stays_inside)
        return connection

    def _run(self, connection: sqlite3.Connection, values: Sequence[Any]) -> Any:
        cursor = connection.cursor()
        try:
            cursor.execute(self._sql, values)
            if self.spec.fetches == "affected":
                cursor.fetchall()  # a statement with RETURNING counts as it is read
                return {"affected": max(0, cursor.rowcount)}
            rows = cursor.fetchmany(1 if self.spec.fetches == "one" else self.spec.max_rows + 1)
            if not self.spec.read_only:
                deque(cursor, maxlen=0)  # a write is committed with its last row: only here its failure is told
            names = [column[0] for column in cursor.description or ()]
        finally:
            cursor.close()  # ends the statement, and with it the lock of one that was not read to its end
        return shaped(rows_of(names, rows), self.spec)


def _stays_inside(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    """Whether a statement may be prepared that does this: not one that reaches another file, or changes a setting."""
    tells = action == sqlite3.SQLITE_PRAGMA and first in PRAGMAS
    reaches_out = (action in NEVER and not tells) or second == "load_extension"
    return sqlite3.SQLITE_DENY if reaches_out else sqlite3.SQLITE_OK


def translated(error: BaseException) -> ToolError:
    """The tool error that an error of sqlite3 means."""
    if isinstance(error, MemoryError):
        return failed("SQLite has not the memory that this statement needs", "out_of_resources")
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # raised by the module, not by SQLite: a value that it cannot hold
        return failed(f"SQLite cannot take this value: {error}", "invalid_value")
    kind = CODES.get(code & 0xFF, "database_error")
    if kind == "timeout":
        return ToolTimeout("the statement was stopped at the time limit")
    if kind == "bad_statement":
        kind = next((name for words, name in WORDS if words in str(error)), kind)
    reason = getattr(error, "sqlite_errorname", "")
    return failed(f"SQLite: {error}", kind, retryable=kind == "database_locked", reason=reason)
