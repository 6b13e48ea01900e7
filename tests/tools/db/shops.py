"""One shop on each SQL database: the same table, and tools that ask it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import asyncmy
import asyncpg

from penstock.tools.db import (
    MySqlExecutor,
    MySqlToolSpec,
    PostgreSqlExecutor,
    PostgreSqlToolSpec,
    SqliteExecutor,
    SqliteToolSpec,
)
from penstock.tools.db.mysql import address_of

ROWS = 10_000
TABLE = "CREATE TABLE item (id INTEGER PRIMARY KEY, name VARCHAR(200) NOT NULL, price NUMERIC(10, 2))"
FILL = "INSERT INTO item SELECT {n}, {name}, {n} + 0.25 FROM {numbers}"
WRITER = "CREATE FUNCTION rename_all(n INT) RETURNS INT BEGIN UPDATE item SET name = 'x'; RETURN n; END"
SqlExecutor: TypeAlias = SqliteExecutor | PostgreSqlExecutor | MySqlExecutor


@dataclass(frozen=True, slots=True)
class Shop:
    """A database with ten thousand items; `tool(...)` makes a tool, `endless` is a statement that runs on and on."""

    name: str
    make: Callable[..., SqlExecutor]
    endless: str

    def tool(self, statement: str, parameters: dict[str, Any] | None = None, **spec: Any) -> SqlExecutor:
        """A tool called `ask`; `parameters` is a mapping of names to types."""
        return self.make(statement=statement, tool_name="ask", parameters=parameters, **spec)

    async def ask(self, statement: str, **arguments: Any) -> Any:
        """What a writing tool gives for one statement; for what a test has to look up."""
        tool = self.tool(statement, read_only=False, fetch="all")
        try:
            return (await tool.execute(arguments)).content
        finally:
            await tool.aclose()


def sqlite_shop(folder: Path) -> Shop:
    """A shop in a file."""
    path = folder / "shop.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(TABLE)
        numbers = "(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 10000) SELECT n FROM s)"
        connection.execute(FILL.format(n="n", name="'item ' || n", numbers=numbers))
    connection.close()
    endless = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT count(*) AS n FROM c"
    return Shop("sqlite", lambda **spec: SqliteExecutor(SqliteToolSpec(path=str(path), **spec)), endless)


def postgresql_shop(dsn: str) -> Shop:
    """A shop in PostgreSQL."""

    async def fill() -> None:
        connection = await asyncpg.connect(dsn)
        await connection.execute(TABLE)
        numbers = f"generate_series(1, {ROWS}) AS s(n)"
        await connection.execute(FILL.format(n="n", name="'item ' || n", numbers=numbers))
        await connection.close()

    asyncio.run(fill())
    endless = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT 1 FROM c) SELECT count(*) AS n FROM c"
    return Shop("postgresql", lambda **spec: PostgreSqlExecutor(PostgreSqlToolSpec(dsn=dsn, **spec)), endless)


def mysql_shop(dsn: str) -> Shop:
    """A shop in MariaDB."""

    async def fill() -> None:
        connection: Any = await asyncmy.connect(**address_of(dsn), autocommit=True)
        await connection.query(TABLE)
        numbers = f"seq_1_to_{ROWS}"
        await connection.query(FILL.format(n="seq", name="concat('item ', seq)", numbers=numbers))
        await connection.query(WRITER)
        connection.close()

    asyncio.run(fill())
    endless = "SELECT count(*) AS n FROM item a, item b, item c, item d"
    return Shop("mysql", lambda **spec: MySqlExecutor(MySqlToolSpec(dsn=dsn, **spec)), endless)
