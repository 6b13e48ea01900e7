"""`PostgreSqlExecutor`: a declared statement on PostgreSQL, through connections of asyncpg."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
from pydantic import SecretStr
from pydantic_core import to_json

from penstock.errors import ToolError, ToolTimeout, UsageError
from penstock.net.loops import PerLoop
from penstock.tools.db.base import BaseDbExecutor, Failures, driver_module, failed, password_of, revealed, sent, shaped
from penstock.tools.db.connections import Connections
from penstock.tools.db.spec import PostgreSqlToolSpec
from penstock.tools.db.statement import Statement, read_statement
from penstock.tools.db.values import rows_of
from penstock.tools.result import ToolContext

CONNECT_S = 10.0
RELEASE_S = 0.5
WRAPPED = frozenset({"SELECT", "WITH", "VALUES", "TABLE"})
AS_TEXT = ("date", "time", "timetz", "interval")
RETRYABLE = frozenset({"conflict", "database_locked", "too_many_connections", "unavailable"})
"""Nothing of the statement was done: PostgreSQL rolled it back, or never began it."""

# By SQLSTATE, or by its class (PostgreSQL, appendix A).
STATES: Mapping[str, str] = {
    "08": "connection_lost",
    "21": "invalid_value",
    "22": "invalid_value",
    "23": "constraint_violation",
    "25006": "read_only_violation",
    "28": "login_refused",
    "38": "function_failed",
    "39": "function_failed",
    "3D": "missing_database",
    "40": "conflict",
    "40003": "connection_lost",
    "42": "bad_statement",
    "42501": "permission_denied",
    "42601": "syntax_error",
    "42703": "missing_column",
    "42P01": "missing_table",
    "44": "constraint_violation",
    "53": "out_of_resources",
    "53100": "disk_full",
    "53300": "too_many_connections",
    "54": "invalid_value",
    "55P03": "database_locked",
    "57": "connection_lost",
    "57014": "timeout",
    "57P03": "unavailable",
    "P0": "function_failed",
}


class PostgreSqlExecutor(BaseDbExecutor[PostgreSqlToolSpec]):
    """Runs the statement of its spec, prepared once on each connection.

    Where it is `read_only` every transaction begins read-only; no statement that only reads can change that for its own
    transaction, and a connection on which it changed it for the next is closed. PostgreSQL stops a statement at the
    tool's time limit by itself, and at a cancel because it is told to.
    """

    speaks = False

    def __init__(self, spec: PostgreSqlToolSpec, **options: Any) -> None:
        super().__init__(spec, **options)
        self._asyncpg = pg = driver_module("asyncpg", extra="postgresql")
        self._raised = (pg.PostgresError, pg.InterfaceError, pg.InternalClientError, OSError, EOFError, ValueError)
        dsn = revealed(spec.dsn, self.variable)
        if not dsn.startswith(("postgresql://", "postgres://")):
            raise UsageError("the dsn is no address of PostgreSQL: write postgresql://user:password@host:port/database")
        statement = read_statement(spec.statement, "postgresql")
        self._sql, self._names = _limited(statement, spec), statement.names
        self._connections = PerLoop(self._open, Connections[Any].aclose)
        self._failures = Failures(partial(translated, safe=self.safe), password_of(dsn))
        self._dsn = SecretStr(dsn)

    async def _execute_db_operation(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> Any:
        values = [args.get(name) for name in self._names]
        connections = await self._connections.get()
        connection = await connections.take()
        settled = False
        try:
            with sent():
                answer = await self._ask(connection, values)
            settled = True
        except (self._asyncpg.PostgresError, ValueError):  # the server's answer, or refused before it was sent
            settled = True
            raise
        except GeneratorExit:  # the call was dropped: it cannot wait
            connection.terminate()
            raise
        finally:
            # No reset, which costs a round trip: a declared statement may not begin a transaction, set a variable,
            # listen or declare a cursor, and a setting that it changes through a function is its own.
            if settled or connection.is_closed():
                connections.give(connection)
            else:
                await asyncio.shield(self._mend(connections, connection))
        return answer

    async def aclose(self) -> None:
        """Close this loop's connections; the next call opens new ones."""
        await self._connections.aclose()

    async def _ask(self, connection: Any, values: Sequence[Any]) -> Any:
        answer = await self._fetched(connection, values)
        if self.spec.read_only and not _still_reads(connection):
            connection.terminate()
        return answer

    async def _fetched(self, connection: Any, values: Sequence[Any]) -> Any:
        if self.spec.fetches == "affected":
            status: str = await connection.execute(self._sql, *values)
            count = status.rpartition(" ")[2]
            return {"affected": int(count) if count.isdigit() else 0}
        if self.spec.fetches == "one":
            row = await connection.fetchrow(self._sql, *values)
            rows = [] if row is None else [row]
        else:
            rows = await connection.fetch(self._sql, *values)
        return shaped(rows_of(list(rows[0].keys()), rows) if rows else [], self.spec)

    async def _mend(self, connections: Connections[Any], connection: Any) -> None:
        """Wait until the server has stopped what a call left behind, and give the connection back.

        Where the server is gone, or takes its time, the connection is closed.
        """
        mended = False
        try:
            with suppress(OSError, self._asyncpg.PostgresError, self._asyncpg.InterfaceError):
                await connection.reset(timeout=RELEASE_S)
                mended = True
        finally:
            if not mended:
                connection.terminate()
            connections.give(connection)

    async def _open(self) -> Connections[Any]:
        return Connections(self._connect, most=self.spec.pool_size)

    async def _connect(self) -> Any:
        settings = {"DateStyle": "ISO", "IntervalStyle": "iso_8601"}
        settings["statement_timeout"] = str(math.ceil(self.spec.timeout_s * 1000))
        if self.spec.read_only:
            settings["default_transaction_read_only"] = "on"
        dsn = self._dsn.get_secret_value()
        connection = await self._asyncpg.connect(dsn, timeout=CONNECT_S, server_settings=settings)
        await _choose_codecs(connection)
        return connection


def _limited(statement: Statement, spec: PostgreSqlToolSpec) -> str:
    """The statement with `$1`, and cut by PostgreSQL one row past what may be given."""
    sql = statement.numbered("$")
    if spec.read_only and spec.fetches == "all" and statement.kind in WRAPPED:
        return f"SELECT * FROM (\n{sql}\n) AS answer LIMIT {spec.max_rows + 1}"  # noqa: S608  # of the spec alone
    return sql


def _still_reads(connection: Any) -> bool:
    # PostgreSQL tells this setting at once whenever it changes, so that looking costs no round trip.
    return bool(connection.get_settings().default_transaction_read_only == "on")


async def _choose_codecs(connection: Any) -> None:
    """Let dates and times travel as text, which PostgreSQL itself reads and checks, and JSON as values."""
    for name in AS_TEXT:
        await connection.set_type_codec(name, schema="pg_catalog", encoder=str, decoder=str, format="text")
    for name in ("timestamp", "timestamptz"):
        await connection.set_type_codec(name, schema="pg_catalog", encoder=str, decoder=_with_t, format="text")
    for name in ("json", "jsonb"):
        await connection.set_type_codec(name, schema="pg_catalog", encoder=_json, decoder=_decoded, format="text")


def _with_t(text: str) -> str:
    return text.replace(" ", "T", 1)


def _json(value: Any) -> str:
    return value if isinstance(value, str) else to_json(value).decode()


def _decoded(text: str) -> Any:
    return msgspec.json.decode(text)


def translated(error: Any, *, safe: bool) -> ToolError:
    """The tool error that an error of asyncpg or of the network means."""
    pg = driver_module("asyncpg", extra="postgresql")
    if isinstance(error, pg.PostgresError):
        state = str(getattr(error, "sqlstate", None) or "")
        kind = STATES.get(state) or STATES.get(state[:2], "database_error")
        if kind == "timeout":
            return ToolTimeout("the statement was stopped at the time limit")
        retryable = kind in RETRYABLE or (kind == "connection_lost" and safe)
        known = {name: getattr(error, f"{name}_name", None) for name in ("constraint", "table", "column")}
        told = {name: getattr(error, name, None) for name in ("detail", "hint")}
        return failed(f"PostgreSQL: {error.args[0]}", kind, retryable=retryable, sqlstate=state, **known, **told)
    if isinstance(error, pg.ClientConfigurationError) or type(error) is ValueError:
        return failed("the dsn cannot be read: write postgresql://user:password@host:port/database", "not_configured")
    if isinstance(error, ValueError):  # asyncpg's own, before anything is sent
        return failed(f"PostgreSQL cannot take this value: {error}", "invalid_value")
    if isinstance(error, OSError):
        return failed(f"PostgreSQL cannot be reached: {error}", "unavailable", retryable=True)
    kind = "connection_lost" if isinstance(error, pg.InterfaceError | EOFError) else "database_error"
    return failed(f"PostgreSQL: {error}", kind, retryable=safe)
