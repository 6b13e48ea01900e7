"""`MySqlExecutor`: a declared statement on MySQL or MariaDB, prepared on the server, through asyncmy."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import SecretStr

from penstock.errors import ToolError, ToolTimeout, UsageError
from penstock.net.loops import PerLoop
from penstock.tools.db.base import BaseDbExecutor, Failures, driver_module, failed, password_of, revealed, sent, shaped
from penstock.tools.db.spec import MySqlToolSpec
from penstock.tools.db.statement import read_statement
from penstock.tools.db.values import bound, rows_of
from penstock.tools.result import ToolContext

CONNECT_S = 10
STOP_S = 5.0
IDLE_S = 60.0
RETRYABLE = frozenset({"conflict", "database_locked", "too_many_connections", "unavailable"})
"""Nothing of the statement was done: it was rolled back, or never begun."""

_BY_CODE: Mapping[str, tuple[int, ...]] = {
    "bad_statement": (1052, 1055, 1056, 1060, 1066, 1093, 1104, 1109, 1111, 1136, 1140, 1222, 1241, 1242, 1295, 1305),
    "conflict": (1213,),
    "connection_lost": (1053, 1158, 1159, 1160, 1161, 1927, 2006, 2013, 2014, 2027, 2055),
    "constraint_violation": (1022, 1048, 1062, 1169, 1216, 1217, 1364, 1451, 1452, 1557, 1586, 3819, 4025),
    "database_locked": (1205,),
    "disk_full": (1021, 1114),
    "invalid_value": (1153, 1210, 1264, 1265, 1267, 1292, 1365, 1366, 1367, 1406, 1411, 1690),
    "login_refused": (1045, 1130, 1251, 1698),
    "missing_column": (1054,),
    "missing_database": (1049,),
    "missing_table": (1051, 1146),
    "permission_denied": (1044, 1142, 1143, 1227, 1370),
    "read_only_violation": (1290, 1792, 1836),
    "syntax_error": (1064, 1149),
    "timeout": (1317, 1969, 3024),
    "too_many_connections": (1040, 1203, 1226),
    "unavailable": (2002, 2003, 2005),
}
# By error number (MySQL server and client error references, MariaDB error codes).
NUMBERS = {number: code for code, numbers in _BY_CODE.items() for number in numbers}


class MySqlExecutor(BaseDbExecutor[MySqlToolSpec]):
    """Runs the statement of its spec; values travel apart from it, in the binary protocol, and are never pasted in.

    A `read_only` one runs within START TRANSACTION READ ONLY, which no statement that only reads can end. The server
    stops a statement at the tool's time limit (MySQL: those that read), and at a cancel because it is told to.
    """

    speaks = False

    def __init__(self, spec: MySqlToolSpec, **options: Any) -> None:
        super().__init__(spec, **options)
        self._asyncmy = driver_module("asyncmy", extra="mysql")
        self._raised = (self._asyncmy.errors.MySQLError, OSError, EOFError, ValueError)
        dsn = revealed(spec.dsn, self.variable)
        secrets = password_of(dsn)
        address_of(dsn)  # refused now, not at the first call
        self._dsn = SecretStr(dsn)
        self._sql, self._names = read_statement(spec.statement, "mysql").marked()
        self._pool = PerLoop(self._open, _Connections.aclose)
        self._failures = Failures(partial(translated, safe=self.safe), secrets)

    async def _execute_db_operation(self, args: dict[str, Any], ctx: ToolContext, timeout: float) -> Any:
        values = [bound(args.get(name)) for name in self._names]
        connections = await self._pool.get()
        return await connections.ask(values)

    async def aclose(self) -> None:
        """Close this loop's connections; the next call opens new ones."""
        await self._pool.aclose()

    async def _open(self) -> _Connections:
        return _Connections(self._asyncmy, address_of(self._dsn.get_secret_value()), self.spec, self._sql)


class _Session:
    """A connection with the statement prepared on it."""

    __slots__ = ("connection", "rested", "statement")

    def __init__(self, connection: Any, statement: Any) -> None:
        self.connection, self.statement = connection, statement
        self.rested = monotonic()

    @property
    def usable(self) -> bool:
        """Whether the server has not closed it, as far as can be seen, nor may have."""
        return not self.connection._stream_broken and monotonic() - self.rested < IDLE_S  # noqa: SLF001  # as its pool does


class _Connections:
    """The connections of one loop; one whose call did not end in order is not used again."""

    def __init__(self, asyncmy: Any, address: Mapping[str, Any], spec: MySqlToolSpec, sql: str) -> None:
        self._asyncmy, self._address, self._spec, self._sql = asyncmy, address, spec, sql
        self._room = asyncio.Semaphore(spec.pool_size)
        self._idle: list[_Session] = []
        self._stopping: set[asyncio.Task[None]] = set()

    async def ask(self, values: Sequence[Any]) -> Any:
        """The answer of the statement for these values."""
        async with self._room:
            session, ended = await self._take(), False
            try:
                with sent():
                    answer = await self._run(session, values)
                ended = True
            finally:
                self._settle(session, ended=ended)
            return answer

    async def aclose(self) -> None:
        """Close what is idle, and wait for what is being stopped."""
        while self._idle:
            await self._idle.pop().connection.ensure_closed()
        if self._stopping:
            await asyncio.wait(self._stopping)

    async def _take(self) -> _Session:
        while self._idle:
            session = self._idle.pop()
            if session.usable:
                return session
            session.connection.close()
        return await self._connect()

    async def _connect(self) -> _Session:
        connection = await self._asyncmy.connect(**self._address, autocommit=True, connect_timeout=CONNECT_S)
        ready = False
        try:
            await self._limit(connection)
            session = _Session(connection, await connection.prepare(self._sql))
            ready = True
        finally:
            if not ready:
                connection.close()
        return session

    async def _limit(self, connection: Any) -> None:
        """Have the server itself stop long statements and long answers."""
        spec = self._spec
        mariadb = "MariaDB" in connection.get_server_info()
        seconds, milliseconds = (
            f"max_statement_time = {spec.timeout_s:f}",
            f"max_execution_time = {spec.timeout_s * 1000:.0f}",
        )
        await connection.query(f"SET SESSION {seconds if mariadb else milliseconds}")
        if spec.read_only and spec.fetches != "affected":
            rows = 1 if spec.fetches == "one" else spec.max_rows + 1
            await connection.query(f"SET SESSION sql_select_limit = {rows}")

    async def _run(self, session: _Session, values: Sequence[Any]) -> Any:
        if self._spec.read_only:
            await session.connection.query("START TRANSACTION READ ONLY")
        result = await session.statement.execute(values)
        if self._spec.read_only:
            await session.connection.query("ROLLBACK")
        session.rested = monotonic()
        if self._spec.fetches == "affected":
            return {"affected": result.affected_rows}
        names = [column[0] for column in result.description or ()]
        return shaped(rows_of(names, result.rows or ()), self._spec)

    def _settle(self, session: _Session, *, ended: bool) -> None:
        """Keep a connection whose call ended in order; close one that may be within a transaction, or was cut off."""
        lost = session.connection._stream_broken  # noqa: SLF001  # as its pool does
        if ended or not (lost or self._spec.read_only):
            self._idle.append(session)
            return
        number = session.connection.thread_id()
        session.connection.close()
        if lost:
            task = asyncio.get_running_loop().create_task(self._stop(number))
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)

    async def _stop(self, number: int) -> None:
        """Tell the server to stop what a connection runs, over another one: it does not notice that nobody listens."""
        with suppress(self._asyncmy.errors.MySQLError, OSError):  # the statement's own time limit is still there
            async with asyncio.timeout(STOP_S):
                connection = await self._asyncmy.connect(**self._address, connect_timeout=CONNECT_S)
                try:
                    await connection.kill(number)
                finally:
                    connection.close()


def address_of(dsn: str) -> dict[str, Any]:
    """What asyncmy connects to; raises `UsageError` for what is no address of MySQL."""
    wrong = UsageError("the dsn is no address of MySQL: write mysql://user:password@host:port/database")
    try:
        parts = urlsplit(dsn)
        port = parts.port or 3306
    except ValueError:
        raise wrong from None
    options = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    if parts.scheme not in ("mysql", "mariadb") or not parts.path.strip("/") or set(options) - {"unix_socket", "ssl"}:
        raise wrong
    found: dict[str, Any] = {"user": unquote(parts.username or ""), "password": unquote(parts.password or "")}
    found |= {"database": unquote(parts.path.strip("/")), "charset": "utf8mb4"}
    if options.get("ssl") == "true":
        found["ssl"] = ssl.create_default_context()
    if "unix_socket" in options:
        return found | {"unix_socket": options["unix_socket"]}
    return found | {"host": parts.hostname or "127.0.0.1", "port": port}


def translated(error: Any, *, safe: bool) -> ToolError:
    """The tool error that an error of asyncmy or of the network means."""
    errors = driver_module("asyncmy.errors", extra="mysql")
    kinds: Sequence[tuple[type[BaseException], str]] = (
        (errors.IntegrityError, "constraint_violation"),
        (errors.DataError, "invalid_value"),
        (errors.ProgrammingError, "bad_statement"),
        (errors.NotSupportedError, "bad_statement"),
        (errors.InterfaceError, "connection_lost"),
        (EOFError, "connection_lost"),
        (OSError, "unavailable"),
        (ValueError, "invalid_value"),
        (BaseException, "database_error"),
    )
    number = error.args[0] if error.args and isinstance(error.args[0], int) else None
    text = str(error.args[-1]) if error.args else type(error).__name__
    own = NUMBERS.get(number) if number is not None and isinstance(error, errors.MySQLError) else None
    code = own or next(code for kind, code in kinds if isinstance(error, kind))
    if code == "timeout":
        return ToolTimeout("the statement was stopped at the time limit")
    retryable = code in RETRYABLE or (code == "connection_lost" and safe)
    return failed(f"MySQL: {text}", code, retryable=retryable, errno=number, sqlstate=getattr(error, "sqlstate", None))
